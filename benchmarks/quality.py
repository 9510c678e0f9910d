#!/usr/bin/env python3
"""What builds of one model lose on several texts: size, perplexity of each text, mean loss, time and memory to build.

    python benchmarks/quality.py sample:smollm2-135m --text WIKI --text CODE '--weights int8' '--weights int4'
    python benchmarks/quality.py sample:smollm2-135m --text WIKI --text CODE old.lepton '--weights int4 --fast'

Each argument after the model is one build: options of `leptonc build`, or an artifact that is measured as it is. The
first row is the model in float32, and losses are relative to it. Of each text `--windows` windows of 512 tokens are
read, spread evenly over it; each token of a window but its first is scored given those before it. The mean loss is
that of the mean log-likelihoods of all texts. Prints a Markdown table, or with `--json` a line of JSON a row.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent))

from runtime_edge import load  # noqa: E402
from runtime_edge.cli.perplexity import Windows, perplexity  # noqa: E402
from runtime_edge.manifest import decode  # noqa: E402

WINDOW = 512  # tokens
FLOAT = "--weights fp32"


def spread(token_ids: Sequence[int], empty: Sequence[int], count: int) -> list[tuple[list[int], int]]:
    """Returns windows that lie evenly over a text: the tokens of each, and how many of them are scored.

    Args:
        token_ids: The text, int [tokens].
        empty: What the tokenizer makes of no text: tokens that every window begins with.
        count: Windows, at least 2.

    Raises:
        SystemExit: The text is shorter than a window.
    """
    lead = Windows.of(token_ids, empty, WINDOW).lead
    room = WINDOW - lead
    if len(token_ids) - lead < room:
        raise SystemExit(f"expected a text of at least {WINDOW} tokens, found {len(token_ids)}")
    step = (len(token_ids) - lead - room) // (count - 1)
    starts = (lead + at * step for at in range(count))
    scored = room if lead else room - 1
    return [([*token_ids[:lead], *token_ids[start : start + room]], scored) for start in starts]


def likelihoods(artifact: Path, texts: Sequence[Path], count: int, threads: int) -> list[float]:
    """Returns the mean negative log-likelihood of each text, in nats a token."""
    with load(artifact, threads=threads) as model:
        cuts = [spread(model.tokenize(text.read_text(encoding="utf-8")), model.tokenize(""), count) for text in texts]
        return [perplexity(model.score, windows).nll for windows in cuts]


def stored(artifact: Path) -> int:
    """Returns the bytes of graph and weights."""
    manifest = decode((artifact / "manifest.json").read_bytes())
    paths = {path for _, path in manifest.variants[0].references}
    return sum(file.size for file in manifest.files if file.path in paths)


def built(source: str, options: str, out: Path) -> dict[str, Any]:
    """Builds an artifact in a process of its own; returns its `seconds` and `peak_mb`, the check included."""
    command = [sys.executable, "-m", "leptonc", "build", source, *shlex.split(options), "-o", str(out), "--force"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{shlex.join(command)} failed with exit code {os.waitstatus_to_exitcode(status)}")
    return {"seconds": round(time.perf_counter() - started), "peak_mb": round(usage.ru_maxrss * 1024 / 1e6)}


def row(name: str, nats: Sequence[float], plain: Sequence[float]) -> dict[str, Any]:
    """Returns a build's perplexities, its losses in percent of float32's, and the mean loss."""
    lost = [mine - other for mine, other in zip(nats, plain, strict=True)]
    return {
        "build": name,
        "perplexity": [round(math.exp(value), 2) for value in nats],
        "loss_percent": [round(100 * math.expm1(value), 2) for value in lost],
        "mean_loss_percent": round(100 * math.expm1(sum(lost) / len(lost)), 2),
    }


def line(found: dict[str, Any]) -> str:
    pairs = zip(found["perplexity"], found["loss_percent"], strict=True)
    cells = [f"{value:.2f} ({loss:+.1f} %)" for value, loss in pairs]
    cells += [f"{found['mean_loss_percent']:+.1f} %", f"{found.get('seconds', '')}", f"{found.get('peak_mb', '')}"]
    return f"| `{found['build']}` | {found['mb']} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("builds", nargs="+", help="options of `leptonc build`, one argument a build, or an artifact")
    parser.add_argument("--text", type=Path, action="append", required=True, help="text to measure on; several times")
    parser.add_argument("--windows", type=int, default=10, help="windows a text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="a line of JSON a row in place of a table")
    args = parser.parse_args()
    if not args.json:
        print(f"| | MB | {' | '.join(text.stem for text in args.text)} | mean | s | MB at most |")
        print("| --- |" + " ---: |" * (len(args.text) + 4), flush=True)
    plain: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for build in (FLOAT, *args.builds):
            artifact, cost = Path(build), {}
            if not (artifact / "manifest.json").is_file():
                artifact = Path(folder) / "m.lepton"
                cost = built(args.source, build, artifact)
            nats = likelihoods(artifact, args.text, args.windows, args.threads)
            plain = plain or nats
            found = {**row(build, nats, plain), "mb": round(stored(artifact) / 1e6, 2), **cost}
            print(json.dumps(found) if args.json else line(found), flush=True)


if __name__ == "__main__":
    main()
