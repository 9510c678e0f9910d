#!/usr/bin/env python3
"""How long builds said that they would take, and how long they took: with shipped rates, and with learnt ones.

    python benchmarks/estimates.py                     a few cheap builds of sample:smollm2-135m
    python benchmarks/estimates.py MODEL '--weights int4' '--activations int8 --prune 10%' [--fresh] [--stages]

Each build runs twice, in a cache folder that is empty at first: the first time with the shipped rates, or with what the
builds before taught; the second time with what the same build taught. With `--fresh` each has an empty folder, and
runs once. Prints a table of seconds, and exits with 1 where an estimate is off by more than a third.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BUILDS = ("--weights int4 --method rtn", "--weights int8 --method rtn --no-check", "--weights int8 --method gptq")
WITHIN = 4 / 3
SHOWN = 1.0  # seconds of a stage that has a row of its own


def build(source: str, options: str, folder: Path, cache: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Builds once; returns the seconds that were foreseen, and those that it took, by stage."""
    command = [sys.executable, "-m", "leptonc", "build", source, "-o", str(folder / "m.lepton"), "--force", "--json"]
    done = subprocess.run(
        [*command, *shlex.split(options)], env={**os.environ, "LEPTON_CACHE": str(cache)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} {options} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result["estimated_seconds"], own(result["seconds"])


def own(seconds: dict[str, float]) -> dict[str, float]:
    """Returns the seconds of stages by plain names; codes that are chosen inside passes count once."""
    plain: dict[str, float] = {}
    for name, taken in seconds.items():
        short = name.rpartition(": ")[2]
        if not short.startswith("pass ") or short == "pass calibrate":
            plain[short] = plain.get(short, 0.0) + taken
    inside = plain.get("pass calibrate", 0.0) + plain.get("heal", 0.0) + plain.get("heal fit", 0.0)
    if "passes" in plain:
        plain["passes"] = max(0.0, plain["passes"] - inside)
    return plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="sample:smollm2-135m")
    parser.add_argument("options", nargs="*", help="options of `leptonc build`, one argument a build")
    parser.add_argument("--fresh", action="store_true", help="one run a build, with nothing learnt")
    parser.add_argument("--stages", action="store_true", help="a row for each stage")
    args = parser.parse_args()
    beyond = False
    print(f"{'build':48} {'rates':8} {'foreseen':>9} {'took':>9} {'ratio':>6}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for at, options in enumerate(args.options or BUILDS):
            cache = folder / (f"cache-{at}" if args.fresh else "cache")
            for rates in ("shipped",) if args.fresh else ("shipped" if at == 0 else "others'", "learnt"):
                foreseen, took = build(args.source, options, folder, cache)
                total = sum(foreseen.values()), sum(took.values())
                beyond |= not 1 / WITHIN <= total[0] / total[1] <= WITHIN
                rows = [(options, rates, *total)]
                if args.stages:
                    names = dict.fromkeys((*foreseen, *took))
                    rows += [(f"  {stage}", "", foreseen.get(stage, 0.0), took.get(stage, 0.0)) for stage in names]
                for label, kind, left, right in rows:
                    if not label.startswith("  ") or max(left, right) >= SHOWN:
                        ratio = left / right if right else float("inf")
                        print(f"{label:48} {kind:8} {left:9.1f} {right:9.1f} {ratio:6.2f}", flush=True)
    raise SystemExit(1 if beyond else 0)


if __name__ == "__main__":
    main()
