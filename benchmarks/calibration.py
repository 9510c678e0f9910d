#!/usr/bin/env python3
"""What each part of the default calibration text brings: a build each, and its loss on texts that nothing looked at.

    python benchmarks/calibration.py sample:smollm2-135m --text WIKI --text CODE --text DIALOGUE -- --weights int4
    python benchmarks/calibration.py sample:minilm-l6 --sts STS.tsv --right FILE -- --activations int8

What follows `--` are options of `leptonc build`, the same in all rows. Rows: the model in float32; weights rounded
(`--fast`); text that a decoder writes from nothing, from openings of many kinds, from these and questions in its chat
template; text that Lepton carries; half and half, which is the default; and `--right FILE`, of the measured kind. An
encoder has the rows without a text that it writes. Prints a table: each text's perplexity and its loss beside float32
in percent, or Spearman's correlation (times 100) with the scores of `--sts`. `--only NAME` leaves other rows out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from leptonc.build import calibration_text
from leptonc.calibrate.default_text import openings

ROOT = Path(__file__).resolve().parent


def from_nothing(tokenize: Any, start: Sequence[int], lead: Sequence[int] = (), render: Any = None) -> list[list[int]]:
    """Returns the one opening of a model that begins by itself."""
    return [list(start)]


def untold(tokenize: Any, start: Sequence[int], lead: Sequence[int] = (), render: Any = None) -> list[list[int]]:
    """Returns the openings of a model without a chat template."""
    return openings(tokenize, start, lead)


# What a decoder writes: its openings, and the part of all texts.
WRITTEN: Mapping[str, tuple[Callable[..., list[list[int]]], float]] = {
    "written": (from_nothing, 1.0),
    "written, openings": (untold, 1.0),
    "written, openings and template": (openings, 1.0),
    "default": (openings, calibration_text.WRITTEN),
}
FLOAT, ROUNDED, CARRIED, RIGHT = "float32", "rounded", "carried", "right text"
ROWS = (FLOAT, ROUNDED, *WRITTEN, CARRIED, RIGHT)


def built(source: str, options: Sequence[str], out: Path) -> Path:
    """Builds an artifact as the command line does, in this process, so that what is patched here counts."""
    from leptonc.cli import main

    with contextlib.redirect_stdout(sys.stderr):  # the table alone is printed
        code = main(["build", source, *options, "--no-check", "--force", "-o", str(out)])
    if code:
        raise SystemExit(code)
    return out


def row(name: str, source: str, options: Sequence[str], right: str | None, out: Path) -> Path:
    """Builds what a row measures."""
    if name in WRITTEN:
        begun, part = WRITTEN[name]
        with mock.patch.multiple(calibration_text, openings=begun, WRITTEN=part):
            return built(source, options, out)
    more = {
        FLOAT: ["--weights", "fp32"],
        ROUNDED: [*options, "--fast"],
        CARRIED: [*options, "--calibration", calibration_text.BUILT_IN],
        RIGHT: [*options, "--calibration", str(right)],
    }
    return built(source, more[name], out)


def perplexity(artifact: Path, text: str, windows: int) -> float:
    """Measures an artifact on a text, in a process of its own."""
    command = [sys.executable, "-m", "leptonc", "eval", artifact, "--text", text, "--max-windows", windows, "--json"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["perplexity"])


def correlation(artifact: Path, sts: str) -> float:
    """Measures an encoder, in a process of its own."""
    command = [sys.executable, str(ROOT / "embeddings.py"), str(artifact), sts]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["spearman"])


def line(name: str, figures: Sequence[float], plain: Sequence[float]) -> str:
    """Returns a row of the table: perplexities, their losses beside float32's, and the mean loss."""
    lost = [math.log(now / before) for now, before in zip(figures, plain, strict=True)]
    cells = [f"{now:.2f} ({100 * math.expm1(part):+.2f} %)" for now, part in zip(figures, lost, strict=True)]
    return f"| {name} | " + " | ".join(cells) + f" | {100 * math.expm1(sum(lost) / len(lost)):+.2f} % |"


def main() -> None:
    own, options = sys.argv[1:], []
    if "--" in own:
        at = own.index("--")
        own, options = own[:at], own[at + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--text", action="append", default=[], help="a text to measure perplexity on; several times")
    parser.add_argument("--sts", help="a file of sentence pairs with scores, for an encoder")
    parser.add_argument("--right", help="a calibration text of the measured kind")
    parser.add_argument("--only", action="append", choices=ROWS, help="a row; several times")
    parser.add_argument("--max-windows", type=int, default=16)
    args = parser.parse_args(own)
    if not args.text and not args.sts:
        parser.error("expected --text FILE or --sts FILE, found neither")
    names = [name for name in args.only or ROWS if name != RIGHT or args.right]
    if args.sts:
        names = [name for name in names if name not in WRITTEN or name == "default"]
    names = [FLOAT, *(name for name in names if name != FLOAT)]
    figures: dict[str, list[float]] = {}
    titles = [Path(text).stem for text in args.text] if args.text else ["spearman"]
    print("| text | " + " | ".join(titles) + (" | mean |" if args.text else " |"))
    print("| --- |" + " --- |" * (len(titles) + bool(args.text)), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            artifact = row(name, args.source, options, args.right, Path(folder) / "m.lepton")
            if args.sts:
                figures[name] = [correlation(artifact, args.sts)]
                print(f"| {name} | {figures[name][0]:.2f} |", flush=True)
                continue
            figures[name] = [perplexity(artifact, text, args.max_windows) for text in args.text]
            print(line(name, figures[name], figures[FLOAT]), flush=True)


if __name__ == "__main__":
    main()
