#!/usr/bin/env python3
"""Perplexity and size after pruning, by share and by method, with one calibration; speed beside unpruned.

    python benchmarks/pruning.py sample:smollm2-135m --text FILE [--calibration FILE] [--shares 10,20,30]
    python benchmarks/pruning.py sample:smollm2-135m --text FILE --ways wanda/none,flap/bias --speed

A way is a method and a compensation of `leptonc build`. Each is one build in float32 and one `leptonc eval` on 40
windows of 512 tokens; prints a line of JSON each, then a Markdown table. `--speed` builds the first way's last share
and the unpruned model in int8, and measures both in turn with benchmarks/speed.py: ratios above 1 are faster.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WAYS = "reconstruction/least-squares,magnitude/none,wanda/none,flap/bias"


def leptonc(*arguments: str) -> dict[str, Any]:
    """Runs a verb; returns what it prints as JSON."""
    command = [sys.executable, "-m", "leptonc", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def build(source: str, out: Path, *options: str) -> dict[str, Any]:
    return leptonc("build", source, "-o", str(out), "--force", "--no-check", *options)


def pruned(way: str, share: str, calibration: str | None) -> list[str]:
    method, compensation = way.split("/")
    options = ["--prune", f"{share}%", "--prune-method", method, "--prune-compensation", compensation]
    return [*options, *(["--calibration", calibration] if calibration else [])]


def row(args: argparse.Namespace, way: str, share: str, folder: Path) -> dict[str, Any]:
    """Builds and measures one artifact; share "0" is the whole model."""
    out, started = folder / "m.lepton", time.perf_counter()
    made = build(args.source, out, "--weights", "fp32", *(pruned(way, share, args.calibration) if way else []))
    seconds = time.perf_counter() - started
    scored = leptonc("eval", str(out), "--text", args.text, "--window", "512", "--max-windows", str(args.windows))
    about = made["report"].get("pruning", {})
    return {
        "way": way or "unpruned", "asked": share, "removed_percent": about.get("removed_percent", 0.0),
        "perplexity": scored["perplexity"], "mb": round(made["report"]["bytes"]["weights"] / 1e6, 1),
        "seconds": round(seconds, 1),
    }  # fmt: skip


def speed(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Speed of the last share in int8 as a ratio to unpruned int8."""
    small, whole = folder / "small.lepton", folder / "whole.lepton"
    build(args.source, whole, "--weights", "int8")
    way, share = args.ways.split(",")[0], args.shares.split(",")[-1]
    build(args.source, small, "--weights", "int8", *pruned(way, share, args.calibration))
    tool = str(HERE / "speed.py")
    peer = shlex.join([sys.executable, tool, str(whole)])
    command = [sys.executable, tool, str(small), "--rounds", "3", "--peer", peer]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return {"speed": way, "asked": share, **{name: each["ratio"] for name, each in found.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--text", required=True, help="held-out text")
    parser.add_argument("--calibration", help="text that methods look at; without it, the model writes one each time")
    parser.add_argument("--shares", default="10,20,30", help="percent of the layers' weights")
    parser.add_argument("--ways", default=WAYS, help="METHOD/COMPENSATION, …")
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--speed", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        whole = row(args, "", "0", folder)
        print(json.dumps(whole), flush=True)
        lines = ["| way | asked | removed | perplexity | | MB | build |", "| --- | --- | --- | --- | --- | --- | --- |"]
        for share in args.shares.split(","):
            for way in args.ways.split(","):
                found = row(args, way, share, folder)
                print(json.dumps(found), flush=True)
                rise = 100 * (found["perplexity"] / whole["perplexity"] - 1)
                lines.append(
                    f"| {way} | {share} % | {found['removed_percent']:.1f} % | {found['perplexity']:.2f} "
                    f"| {rise:+.0f} % | {found['mb']} | {found['seconds']:.0f} s |"
                )
        print("\n".join(lines), flush=True)
        if args.speed:
            print(json.dumps(speed(args, folder)))


if __name__ == "__main__":
    main()
