#!/usr/bin/env python3
"""Gives what Lepton reads made-up inputs of many kinds, and tells which of them it does not answer or refuse.

    python benchmarks/fuzz.py --minutes 5 --seed 1              all kinds, each as long as the others
    python benchmarks/fuzz.py --kinds gguf,template --inputs 20000
    python benchmarks/fuzz.py --replay findings/gguf-1-17.input

A refusal is a `LeptonError` or a `TargetError` with a message. Everything else is a finding: another exception, a
signal, more than SECONDS of computing (a hang), more memory than MEGABYTES. The inputs of findings are written to a
folder, and so is where each was. One number of one kind and seed is always the same input. Ends with 1 where there are
findings.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fuzzing import engine
from benchmarks.fuzzing.engine import Finding, Kind, Run, Tally

# Where each kind is, and its share of a number of inputs: what is slow has fewer.
KINDS = {
    "manifest": ("runtime:Manifests", 50), "graph": ("runtime:Graphs", 6), "derived": ("runtime:Derived", 10),
    "tokenizer": ("runtime:Tokenizers", 3), "template": ("runtime:Templates", 4), "request": ("runtime:Requests", 40),
    "gguf": ("sources:Ggufs", 30), "safetensors": ("sources:Safetensors", 15), "config": ("sources:Directories", 2),
    "recipe": ("sources:Recipes", 40),
}  # fmt: skip


def kind_of(name: str) -> type[Kind]:
    """Imports a kind."""
    module, _, attribute = KINDS[name][0].partition(":")
    found: type[Kind] = getattr(importlib.import_module(f"benchmarks.fuzzing.{module}"), attribute)
    return found


def quotas(names: list[str], inputs: int) -> dict[str, int]:
    """Returns how many of so many inputs each kind has."""
    whole = sum(KINDS[name][1] for name in names)
    return {name: max(1, round(inputs * KINDS[name][1] / whole)) for name in names}


def table(tallies: dict[str, Tally]) -> str:
    """Returns what became of all inputs, a line a kind."""
    lines = [f"{'kind':12} {'inputs':>8} {'seconds':>8} {'accepted':>8} {'findings':>8}  refused"]
    total = Tally()
    for name, tally in tallies.items():
        refused = Counter({key: count for key, count in tally.outcomes.items() if key != engine.ACCEPTED})
        lines.append(
            f"{name:12} {tally.inputs:8} {tally.seconds:8.1f} {tally.outcomes[engine.ACCEPTED]:8} "
            f"{len(tally.findings):8}  {', '.join(f'{count} {key}' for key, count in refused.most_common())}"
        )
        total.inputs += tally.inputs
        total.seconds += tally.seconds
        total.findings += tally.findings
    return "\n".join([*lines, f"{'all':12} {total.inputs:8} {total.seconds:8.1f} {'':8} {len(total.findings):8}"])


def replay(path: Path, seconds: float, megabytes: int) -> int:
    """Runs one input again, here; a signal or a hang is this process's own."""
    import faulthandler

    name, data = engine.read_input(path)
    faulthandler.enable()
    faulthandler.dump_traceback_later(6 * seconds, exit=True)
    with tempfile.TemporaryDirectory() as scratch:
        kind = kind_of(name)(Path(scratch))
        engine.confine(megabytes)
        began = time.process_time()
        outcome = engine.outcome_of(kind, data)
        took = time.process_time() - began
        if isinstance(outcome, BaseException):
            print(engine.place_of(outcome)[1])
            return 1
        print(f"{name}: {outcome}, {took:.2f} s")
    return int(took > seconds)


def main() -> int:
    """Does what the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    much = parser.add_mutually_exclusive_group(required=True)
    much.add_argument("--minutes", type=float, help="how long")
    much.add_argument("--inputs", type=int, help="how many, of all kinds together")
    much.add_argument("--replay", type=Path, metavar="FILE", help="one input of an earlier run")
    parser.add_argument("--kinds", default=",".join(KINDS), help="separated by commas; all of them by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--seconds", type=float, default=engine.SECONDS, help="of computing, for one input")
    parser.add_argument("--megabytes", type=int, default=engine.MEGABYTES, help="of memory, for a worker")
    parser.add_argument("--findings", type=Path, default=Path("findings"), help="folder for inputs of findings")
    given = parser.parse_args()
    if given.replay is not None:
        return replay(given.replay, given.seconds, given.megabytes)
    names = given.kinds.split(",")
    if unknown := [name for name in names if name not in KINDS]:
        parser.error(f"expected kinds among {', '.join(KINDS)}, found {unknown[0]}")

    def told(finding: Finding, path: Path) -> None:
        print(f"{finding.kind} {finding.number}: {finding.how} at {finding.where}", file=sys.stderr)
        print(f"    python benchmarks/fuzz.py --replay {path}", file=sys.stderr)
        print(f"    {engine.read_input(path)[1][:300]!r}", file=sys.stderr, flush=True)

    kinds = {name: kind_of(name) for name in names}
    run = Run(kinds, given.seed, given.findings, given.workers, given.seconds, given.megabytes, told)
    inputs = None if given.inputs is None else quotas(names, given.inputs)
    tallies = run.go(minutes=given.minutes, inputs=inputs)
    print(table(tallies))
    return int(any(tally.findings for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
