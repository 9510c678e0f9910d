"""benchmarks/fuzz.py: faults that are planted are found, each with its input; inputs are taken and refused."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import fuzz
from benchmarks.fuzzing import engine
from benchmarks.fuzzing.engine import ACCEPTED, Run, input_of, outcome_of, read_input
from runtime_edge.errors import ArtifactError
from tests.runtime_edge import tiny

ROOT = Path(__file__).parents[2]
QUICK = ("manifest", "graph", "derived", "tokenizer", "template", "request")


class Planted:
    """Refuses most numbers, and does something else at a few."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch

    def make(self, rng: random.Random) -> bytes:
        return b"%d" % rng.randrange(12)

    def run(self, data: bytes) -> None:
        number = int(data)
        if number == 0:
            raise KeyError("foreign")
        if number == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 2:
            while True:
                pass
        if number == 3:
            bytearray(2**40)
        if number == 4:
            raise ArtifactError(" ")
        if number == 5:
            raise SystemExit(3)
        if number > 7:
            raise ArtifactError("expected something else")


def test_what_is_planted_is_found(tmp_path: Path) -> None:
    told: list[tuple[str, bytes]] = []
    run = Run(
        {"planted": Planted}, 7, tmp_path / "findings", seconds=0.3, megabytes=512,
        told=lambda finding, path: told.append((finding.how, read_input(path)[1])),
    )  # fmt: skip
    tally = run.go(inputs={"planted": 40})["planted"]
    inputs = [int(input_of(Planted(tmp_path), "planted", 7, number)) for number in range(40)]
    assert set(range(12)) <= set(inputs)
    names = {0: "KeyError", 1: "SIGSEGV", 2: "hang", 3: "MemoryError", 4: "ValueError", 5: "SystemExit"}
    assert sorted((f.number, f.how) for f in tally.findings) == [
        (i, names[n]) for i, n in enumerate(inputs) if n in names
    ]
    assert {how: int(data) for how, data in told} == {how: number for number, how in names.items()}
    assert tally.inputs == 40
    assert tally.outcomes == {ACCEPTED: inputs.count(6) + inputs.count(7), "ArtifactError": sum(n > 7 for n in inputs)}
    hang = next(finding for finding in tally.findings if finding.how == "hang")
    assert hang.where.startswith("test_fuzz.py, line ")
    assert "in run" in hang.trace


def test_minutes_end_a_run(tmp_path: Path) -> None:
    class Fine(Planted):
        def run(self, data: bytes) -> None:
            time.sleep(0.001)

    began = time.monotonic()
    tallies = Run({"a": Fine, "b": Fine}, 0, tmp_path, workers=1).go(minutes=0.02)
    assert 1 < time.monotonic() - began < 20
    assert min(tally.inputs for tally in tallies.values()) > 0
    assert not any(tally.findings for tally in tallies.values())


@pytest.mark.parametrize("name", QUICK)
def test_kinds_of_the_runtime(name: str, tmp_path: Path) -> None:
    """Inputs are the same each time, some are taken and some refused; what is found the command tells, not this."""
    (tmp_path / "a").mkdir()
    kind = fuzz.kind_of(name)(tmp_path / "a")
    inputs = [input_of(kind, name, 3, number) for number in range(40)]
    assert inputs == [input_of(kind, name, 3, number) for number in range(40)]
    assert len(set(inputs)) > 30
    if name != "template":  # those that take long are for the workers, which end them
        outcomes = {str(outcome_of(kind, data)) for data in inputs}
        assert ACCEPTED in outcomes
        assert any(outcome.endswith("Error") for outcome in outcomes)


def test_unchanged_artifacts_are_accepted(tmp_path: Path) -> None:
    from benchmarks.fuzzing.runtime import Graphs, Manifests, Tokenizers

    for number, kind in enumerate((Graphs, Manifests, Tokenizers)):
        (folder := tmp_path / str(number)).mkdir()
        made = kind(folder)
        seeds = {Graphs: getattr(made, "seeds", {}), Manifests: made.manifests}.get(kind, {})
        for name, data in seeds.items():
            assert outcome_of(made, name.encode() + b"\n" + data) == ACCEPTED
    assert outcome_of(made, tiny.byte_tokenizer().to_str().encode()) == ACCEPTED


def test_the_command(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "fuzz.py"]
    options = ("--kinds", "manifest", "--inputs", "300", "--seed", "5", "--findings", tmp_path / "findings")
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("manifest"))
    assert line.split()[1] == "300"
    assert "ArtifactError" in line
    path = tmp_path / "one.input"
    path.write_bytes(b'{"kind": "manifest"}\nencoder\n{}')
    done = subprocess.run([*command, "--replay", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split(",")[0]) == (0, "manifest: ArtifactError")
    done = subprocess.run([*command, "--minutes", "1", "--kinds", "none"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "expected kinds among manifest, " in done.stderr


def test_quotas() -> None:
    assert sum(fuzz.quotas(list(fuzz.KINDS), 200_000).values()) == pytest.approx(200_000, abs=len(fuzz.KINDS))
    assert engine.SECONDS == 10
