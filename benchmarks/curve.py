#!/usr/bin/env python3
"""Size, perplexity and decode speed of artifacts beside peers' models, in one run: a table, a plot, and who beats whom.

    leptonc sweep SOURCE --schemes fp32,int8,auto:92MB --keep points
    python benchmarks/curve.py peers.toml --ours points --text FILE --max-windows 40 --rounds 3 --out curve

`--ours` is a folder of artifacts, or one artifact; it may be given several times. peers.toml says what measures a peer:

    [[peer]]
    name = "llama.cpp Q4_K_M"
    files = ["models/q4_k_m.gguf"]               # their bytes are its size: graph and weights, no tokenizer
    quality = "PEER/bin/python benchmarks/peer_quality.py llama.cpp models/q4_k_m.gguf --windows {windows}"
    speed = "PEER/bin/python peer_speed.py llama.cpp models/q4_k_m.gguf"

Each command ends with one line of JSON: `perplexity`, `decode_tok_s` and `prefill_tok_s`. Names of files are relative
to peers.toml, where commands run. Quality is measured once; speed in rounds, all points in turn in each, and its median
counts. Each point is a process that does nothing else. curve.json, curve.md, size.html and speed.html go to `--out`.
Losses are those against the perplexity of `--plain ARTIFACT`, which is no point, or of a point named fp32.
With `--known DIR`, what an earlier run wrote there, peers of the same name and bytes keep the perplexity that they had:
on the very same windows, else it is an error.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent))  # the plots are the compiler's

from leptonc.pages.axes import Axis  # noqa: E402
from leptonc.pages.charts import Dot, scatter  # noqa: E402
from leptonc.pages.html import page  # noqa: E402
from runtime_edge.manifest import decode  # noqa: E402

SPEEDS = ("decode_tok_s", "prefill_tok_s")
FIELDS = {"name", "files", "quality", "speed"}


def last_line(command: list[str], folder: Path) -> dict[str, Any]:
    """Runs a command; returns the JSON of its last line of output."""
    print(shlex.join(command), file=sys.stderr)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        raise SystemExit(f"{shlex.join(command)} failed with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def artifacts(places: list[str]) -> list[Path]:
    """Artifacts that are given, or lie in folders that are."""
    found: list[Path] = []
    for place in map(Path, places):
        inside = sorted(each.parent for each in place.glob("*/manifest.json"))
        found += [place] if (place / "manifest.json").is_file() else inside
    if not found:
        raise SystemExit(f"expected artifacts, found none in {', '.join(places)}")
    return [each.resolve() for each in found]


def ours(path: Path, threads: int) -> dict[str, Any]:
    """A point of ours: what it is called, its bytes of graph and weights, and the commands that measure it."""
    manifest = decode((path / "manifest.json").read_bytes())
    stored = {path for _, path in manifest.variants[0].references}
    python, options = sys.executable, f"--threads {threads}"
    return {
        "name": path.stem, "ours": True, "folder": ROOT.parent,
        "bytes": sum(file.size for file in manifest.files if file.path in stored),
        "quality": f"{python} {ROOT}/peer_quality.py lepton {shlex.quote(str(path))} --windows {{windows}} {options}",
        "speed": f"{python} {ROOT}/speed.py {shlex.quote(str(path))} {options}",
    }  # fmt: skip


def peers(listing: Path) -> list[dict[str, Any]]:
    """The points that a peers.toml lists."""
    raw = tomllib.loads(listing.read_text(encoding="utf-8"))
    found = []
    for peer in raw.get("peer", []):
        if set(peer) != FIELDS:
            raise SystemExit(f"{listing}: expected [[peer]] with {', '.join(sorted(FIELDS))}, found {sorted(peer)}")
        paths = [path for pattern in peer["files"] for path in sorted(listing.parent.glob(pattern))]
        if not paths:
            raise SystemExit(f"{listing}: expected files of {peer['name']}, found none: {peer['files']}")
        sized = {"bytes": sum(path.stat().st_size for path in paths)}
        found.append({**peer, **sized, "ours": False, "folder": listing.resolve().parent})
    if not found:
        raise SystemExit(f"{listing}: expected [[peer]] tables, found none")
    return found


def judged(known: Path, windows: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Returns the perplexity of peers by name and bytes, as an earlier run on the same windows found it."""
    missing = [name for name in ("windows.json", "curve.json") if not (known / name).is_file()]
    if missing:
        raise SystemExit(f"expected what an earlier run wrote in {known}, found no {missing[0]}")
    if (known / "windows.json").read_text() != windows.read_text():
        raise SystemExit(f"expected the windows of {windows} in {known}, found others")
    found = json.loads((known / "curve.json").read_text())
    return {(p["name"], p["bytes"]): {"perplexity": p["perplexity"], "tokens": p["tokens"]}
            for p in found if not p["ours"]}  # fmt: skip


def perplexity(point: dict[str, Any], windows: Path) -> dict[str, Any]:
    """Measures a point's quality: `perplexity`, and the `tokens` that it is of."""
    command = [word.replace("{windows}", str(windows)) for word in shlex.split(point["quality"])]
    return {k: v for k, v in last_line(command, point["folder"]).items() if k in ("perplexity", "tokens")}


def measured(
    points: list[dict[str, Any]], windows: Path, rounds: int, known: dict[tuple[str, int], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Measures every point: quality once, speed in rounds."""
    for point in points:
        if not point["ours"] and (seen := known.get((point["name"], point["bytes"]))):
            point.update(seen)
            continue
        point.update(perplexity(point, windows))
    speeds: dict[str, list[dict[str, Any]]] = {point["name"]: [] for point in points}
    for _ in range(rounds):
        for point in points:
            speeds[point["name"]].append(last_line(shlex.split(point["speed"]), point["folder"]))
    kept = ("name", "ours", "bytes", "perplexity", "tokens")
    return [
        {name: point[name] for name in kept}
        | {name: statistics.median(run[name] for run in speeds[point["name"]]) for name in SPEEDS}
        | {"runs": [{name: run[name] for name in SPEEDS} for run in speeds[point["name"]]]}
        for point in points
    ]


def beats(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether a is at least as small, as good and as fast in decoding as b, and better in one of them."""
    mine, other = ((-p["bytes"], -p["perplexity"], p["decode_tok_s"]) for p in (a, b))
    return all(x >= y for x, y in zip(mine, other, strict=True)) and mine != other


def markdown(points: list[dict[str, Any]], plain: float | None) -> str:
    """The table, and a line for each of our points that a peer's beats."""
    lines = [
        "| | MB | perplexity | against fp32 | decode tok/s | prefill tok/s | beaten by |",
        "| --- |" + " ---: |" * 6,
    ]
    for point in sorted(points, key=lambda p: (p["bytes"], p["name"])):
        loss = f"{100 * (point['perplexity'] / plain - 1):+.2f} %" if plain else ""
        rivals = [other["name"] for other in points if other["ours"] != point["ours"] and beats(other, point)]
        name = f"**{point['name']}**" if point["ours"] else point["name"]
        lines.append(
            f"| {name} | {point['bytes'] / 1e6:.2f} | {point['perplexity']:.3f} | {loss} | "
            f"{point['decode_tok_s']:.1f} | {point['prefill_tok_s']:.1f} | {', '.join(rivals)} |"
        )
    return "\n".join(lines) + "\n"


def picture(points: list[dict[str, Any]], x: str, title: str, scale: float) -> bytes:
    """A plot of perplexity over size or speed, as a page."""
    marked = [
        Dot(p[x] / scale, p["perplexity"], p["name"], number + 1, p["ours"]) for number, p in enumerate(points)
    ]  # fmt: skip
    across, up = Axis.over(title, [dot.x for dot in marked]), Axis.over("perplexity", [dot.y for dot in marked])
    return page(title, scatter(title, "Filled points are ours, the others peers'.", marked, across, up))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", type=Path)
    parser.add_argument("--ours", action="append", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--max-windows", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plain", type=Path)
    parser.add_argument("--known", type=Path)
    parser.add_argument("--out", type=Path, default=Path("curve"))
    args = parser.parse_args()
    points = [*(ours(path, args.threads) for path in artifacts(args.ours)), *peers(args.peers)]
    names = [point["name"] for point in points]
    if len(set(names)) < len(names):
        raise SystemExit(f"expected each name once, found {sorted(names)}")
    args.out.mkdir(parents=True, exist_ok=True)
    windows = (args.out / "windows.json").resolve()
    limit = ["--max-windows", str(args.max_windows)] if args.max_windows else []
    first = artifacts(args.ours)[0]
    command = [sys.executable, f"{ROOT}/peer_quality.py", "windows", str(first), "--text", str(args.text.resolve())]
    cut = last_line([*command, "--window", str(args.window), *limit], ROOT.parent)
    windows.write_text(json.dumps(cut))
    found = measured(points, windows, args.rounds, judged(args.known, windows) if args.known else {})
    plain = next((p["perplexity"] for p in found if p["ours"] and p["name"] == "fp32"), None)
    if args.plain is not None:
        plain = perplexity(ours(args.plain.resolve(), args.threads), windows)["perplexity"]
    table = markdown(found, plain)
    (args.out / "curve.json").write_text(json.dumps(found, indent=2) + "\n")
    (args.out / "curve.md").write_text(table)
    (args.out / "size.html").write_bytes(picture(found, "bytes", "MB of graph and weights", 1e6))
    (args.out / "speed.html").write_bytes(picture(found, "decode_tok_s", "decode, tokens/s", 1))
    print(table, end="")
    mine = [p for p in found if p["ours"]]
    beaten = [p["name"] for p in mine if any(beats(other, p) for other in found if not other["ours"])]
    print(f"{len(beaten)} of our {len(mine)} points are beaten by a peer's: {', '.join(beaten) or 'none'}")


if __name__ == "__main__":
    main()
