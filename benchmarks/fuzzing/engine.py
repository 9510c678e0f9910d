"""Runs made-up inputs in processes of their own, and says which of them end otherwise than by an answer or a refusal.

A worker notes in shared memory which input it is at, and since when. So an input that ends its process, takes more time
or more memory than it may, is known, is written to a file, and the others go on behind it. An input is a function of
seed, kind and number alone: every run of a seed has the same ones, whatever the workers do.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any, Protocol

from runtime_edge.errors import LeptonError
from targets import TargetError

REFUSALS = (LeptonError, TargetError)
ACCEPTED = "accepted"
SECONDS, MEGABYTES = 10.0, 2048  # one input's, at the most
_WAITS = 6  # times as long as it may compute, an input may take by the clock: a process may wait for the processor
_PIECE = 0.5  # seconds between reports of a worker
_KEPT = 5  # inputs that are kept of findings that look the same
_HERE = struct.Struct("<qdd")  # number of the input in work or -1, seconds of the process's clock, and of the wall's


class Kind(Protocol):
    """A kind of input. It is made once in each worker, with a directory of its own."""

    def __init__(self, scratch: Path) -> None: ...

    def make(self, rng: random.Random) -> bytes:
        """Returns an input."""

    def run(self, data: bytes) -> None:
        """Gives it to what is tested; a refusal is one of `REFUSALS`."""


@dataclass(frozen=True)
class Finding:
    """What went wrong with one input: `how` is an exception, a signal, `hang` or `memory`; `where` tells alike ones."""

    kind: str
    number: int
    how: str
    where: str
    trace: str


@dataclass
class Tally:
    """What became of a kind's inputs."""

    inputs: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)


def input_of(kind: Kind, name: str, seed: int, number: int) -> bytes:
    """Returns an input by its number."""
    return kind.make(random.Random(f"{seed} {name} {number}"))


def outcome_of(kind: Kind, data: bytes) -> str | BaseException:
    """Returns the class of the refusal, "accepted", or what was raised instead."""
    try:
        kind.run(data)
    except REFUSALS as error:
        if not (isinstance(error.message, str) and error.message.strip()):
            return ValueError(f"{type(error).__name__} without a message")
        return type(error).__name__
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # panics of Rust libraries are no `Exception`
        return error
    return ACCEPTED


def place_of(error: BaseException) -> tuple[str, str]:
    """Returns the innermost place of ours that an exception passed, and the trace."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "fuzzing" not in f.filename and "site-packages" not in f.filename] or frames
    last = ours[-1] if ours else None
    where = f"{Path(last.filename).name}:{last.lineno}" if last else "?"
    return where, "".join(traceback.format_exception(error))[-4000:]


class _Worker:
    """A process that runs batches of inputs; `busy` is the batch that it was given."""

    def __init__(self, kinds: Mapping[str, type[Kind]], seed: int, megabytes: int) -> None:
        self.shared = mmap.mmap(-1, mmap.PAGESIZE)
        self.scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self.traces = self.scratch / "traces"
        self.note(-1)
        self.pipe, theirs = get_context("fork").Pipe()
        self.process = get_context("fork").Process(target=self._work, args=(theirs, kinds, seed, megabytes))
        with warnings.catch_warnings():  # of forking beside threads, which wait for work here
            warnings.simplefilter("ignore")
            self.process.start()
        theirs.close()
        self.busy: tuple[str, list[int]] | None = None
        self.since = time.monotonic()

    def note(self, number: int) -> None:
        self.shared[: _HERE.size] = _HERE.pack(number, time.process_time(), time.monotonic())

    def noted(self) -> tuple[int, float, float]:
        """Returns what the worker noted last."""
        number, cpu, wall = _HERE.unpack(self.shared[: _HERE.size])
        return int(number), cpu, wall

    def taken(self) -> tuple[float, int]:
        """Returns the seconds that the process has computed, and the bytes that it has in memory."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0, 0
        ticks = int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK"), int(fields[21]) * mmap.PAGESIZE

    def close(self, kill: bool = False) -> None:
        if kill:
            self.process.kill()
        self.pipe.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _work(self, pipe: Any, kinds: Mapping[str, type[Kind]], seed: int, megabytes: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        full = confine(megabytes)
        with self.traces.open("w") as file:
            faulthandler.enable(file)
            faulthandler.register(signal.SIGUSR1, file, chain=False)
            quiet()
            made: dict[str, Kind] = {}
            while True:
                try:
                    name, numbers = pipe.recv()
                except EOFError:
                    return
                if name not in made:
                    (folder := self.scratch / name).mkdir()
                    made[name] = kinds[name](folder)
                try:
                    for report in self._batch(made[name], name, seed, numbers):
                        pipe.send((*report, address_space() > full))
                except BaseException:  # of this program, not of what it tests
                    traceback.print_exc(file=file)
                    file.flush()
                    raise

    def _batch(self, kind: Kind, name: str, seed: int, numbers: list[int]) -> Iterator[Any]:
        """Yields (numbers that are done, outcomes, findings, whether that was all)."""
        done: list[int] = []
        outcomes: Counter[str] = Counter()
        findings: list[Finding] = []
        began = time.monotonic()
        for number in numbers:
            data = input_of(kind, name, seed, number)
            self.note(number)
            outcome = outcome_of(kind, data)
            self.note(-1)
            done.append(number)
            if isinstance(outcome, str):
                outcomes[outcome] += 1
            else:
                where, trace = place_of(outcome)
                findings.append(Finding(name, number, type(outcome).__name__, where, trace))
            if time.monotonic() - began > _PIECE:
                yield done, outcomes, findings, False
                done, outcomes, findings, began = [], Counter(), [], time.monotonic()
        yield done, outcomes, findings, True


def address_space() -> int:
    """Returns the bytes of memory that this process has asked for."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


def confine(megabytes: int) -> int:
    """Bounds what this process may take of memory beyond what it has now; returns at what it should make way."""
    now = address_space()
    limit = now + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return now + megabytes * 2**19


def quiet() -> None:
    """Drops what libraries print."""
    warnings.simplefilter("ignore")
    sys.stdout.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)


class Run:
    """A run over several kinds.

    Args:
        kinds: Classes by name.
        seed: Of all inputs.
        folder: Where inputs with findings are written, a file each; made when there is one.
        workers: Processes.
        seconds: Processor seconds that an input may take.
        megabytes: Memory that a worker may take beyond what it began with.
        told: Is called with each finding that looks like no earlier one, and with the file of its input.
    """

    def __init__(
        self, kinds: Mapping[str, type[Kind]], seed: int, folder: Path, workers: int = 2, seconds: float = SECONDS,
        megabytes: int = MEGABYTES, told: Callable[[Finding, Path], None] = lambda finding, path: None,
    ) -> None:  # fmt: skip
        self.kinds, self.seed, self.folder, self.count = kinds, seed, folder, workers
        self.seconds, self.megabytes, self.told = seconds, megabytes, told
        self.tallies = {name: Tally() for name in kinds}
        self._next = dict.fromkeys(kinds, 0)
        self._again: list[tuple[str, list[int]]] = []
        self._alike: Counter[tuple[str, str, str]] = Counter()

    def go(self, *, minutes: float | None = None, inputs: Mapping[str, int] | None = None) -> dict[str, Tally]:
        """Runs for that long, each kind as long as the others; or so many inputs of each kind."""
        for kind in self.kinds.values():  # what it imports and keeps is there then, before workers fork
            with tempfile.TemporaryDirectory() as scratch:
                kind(Path(scratch))
        deadline = None if minutes is None else time.monotonic() + 60 * minutes
        workers = [_Worker(self.kinds, self.seed, self.megabytes) for _ in range(self.count)]
        try:
            while True:
                for worker in workers:
                    if worker.busy is None and (batch := self._batch(deadline, inputs or {}, workers)) is not None:
                        worker.busy, worker.since = batch, time.monotonic()
                        worker.pipe.send(batch)
                if all(worker.busy is None for worker in workers):
                    return self.tallies
                connection.wait([worker.pipe for worker in workers if worker.busy is not None], timeout=0.1)
                workers = [self._look(worker) for worker in workers]
        finally:
            for worker in workers:
                worker.close(kill=True)

    def _batch(
        self, deadline: float | None, inputs: Mapping[str, int], workers: list[_Worker]
    ) -> tuple[str, list[int]] | None:
        """Returns the next batch, of about a second: of what has had the least time, or has inputs left."""
        if self._again:
            return self._again.pop()
        if deadline is not None:
            if time.monotonic() >= deadline:
                return None
            running = Counter(worker.busy[0] for worker in workers if worker.busy is not None)
            name = min(self.kinds, key=lambda name: self.tallies[name].seconds + running[name])
            most = sys.maxsize
        else:
            name = next((name for name in self.kinds if self._next[name] < inputs.get(name, 0)), "")
            if not name:
                return None
            most = inputs[name] - self._next[name]
        tally = self.tallies[name]
        rate = tally.inputs / tally.seconds if tally.seconds > 0 else 1
        size = max(1, min(most, int(rate), 2 * tally.inputs, 5000))
        first = self._next[name]
        self._next[name] += size
        return name, list(range(first, first + size))

    def _look(self, worker: _Worker) -> _Worker:
        """Takes a worker's reports; returns it, or another one where it ended or had to be ended."""
        if worker.busy is None:
            return worker
        name, numbers = worker.busy
        try:
            while worker.pipe.poll():
                done, outcomes, findings, whole, is_full = worker.pipe.recv()
                self._count(worker, done, outcomes, findings)
                gone = set(done)
                numbers = [number for number in numbers if number not in gone]
                worker.busy = None if whole else (name, numbers)
                if whole and is_full:
                    worker.close(kill=True)
                    return _Worker(self.kinds, self.seed, self.megabytes)
            if worker.busy is None:
                return worker
        except (EOFError, ConnectionResetError):
            worker.process.join()
            code = worker.process.exitcode or 0
            return self._replace(worker, signal.Signals(-code).name if code < 0 else f"exit {code}")
        number, cpu, wall = worker.noted()
        taken, resident = worker.taken()
        if number >= 0 and (taken - cpu > self.seconds or time.monotonic() - wall > _WAITS * self.seconds):
            os.kill(worker.process.pid or 0, signal.SIGUSR1)  # it writes down where it is
            time.sleep(0.2)
            return self._replace(worker, "hang")
        if resident > (self.megabytes + 1024) * 2**20:
            return self._replace(worker, "memory")
        return worker

    def _replace(self, worker: _Worker, how: str) -> _Worker:
        number, _, _ = worker.noted()
        name, numbers = worker.busy or ("", [])
        trace = worker.traces.read_text(errors="replace") if worker.traces.is_file() else ""
        if number < 0:
            raise RuntimeError(f"{name}: the worker ended between two inputs: {how}\n{trace}")
        trace = trace[max(0, trace.rfind("Current thread")) :][:4000]  # innermost first
        places = [line.strip() for line in trace.splitlines() if "File " in line and "site-packages" not in line]
        inner = next((line for line in places if "fuzzing" not in line), "")
        where = inner.replace('"', "").rpartition("/")[2] or "?"
        self._count(worker, [number], Counter(), [Finding(name, number, how, where, trace)])
        rest = [each for each in numbers if each != number]
        if rest:
            self._again.append((name, rest))
        worker.close(kill=True)
        return _Worker(self.kinds, self.seed, self.megabytes)

    def _count(self, worker: _Worker, done: list[int], outcomes: Counter[str], findings: list[Finding]) -> None:
        assert worker.busy is not None
        tally = self.tallies[worker.busy[0]]
        now = time.monotonic()
        tally.inputs += len(done)
        tally.seconds += now - worker.since
        worker.since = now
        tally.outcomes.update(outcomes)
        for finding in findings:
            tally.findings.append(finding)
            alike = (finding.kind, finding.how, finding.where)
            self._alike[alike] += 1
            if self._alike[alike] <= _KEPT:
                path = self._write(finding)
                if self._alike[alike] == 1:
                    self.told(finding, path)

    def _write(self, finding: Finding) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{finding.kind}-{self.seed}-{finding.number}.input"
        with tempfile.TemporaryDirectory() as scratch:
            data = input_of(self.kinds[finding.kind](Path(scratch)), finding.kind, self.seed, finding.number)
        header = {"kind": finding.kind, "seed": self.seed, "number": finding.number, "found": finding.how}
        path.write_bytes(json.dumps({**header, "where": finding.where}).encode() + b"\n" + data)
        path.with_suffix(".txt").write_text(finding.trace)
        return path


def read_input(path: Path) -> tuple[str, bytes]:
    """Returns kind and data of a file that a run wrote."""
    header, _, data = path.read_bytes().partition(b"\n")
    return str(json.loads(header)["kind"]), data
