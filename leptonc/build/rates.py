"""How fast this machine does each kind of work: as earlier builds measured it, or as a short measurement tells.

A small file in the user's cache folder has the rates, by machine: a folder that is copied to another one misleads
nobody. It may be deleted at any time.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Mapping, Sequence

import msgspec

from leptonc.build.work import CORES, KINDS, Work
from runtime_edge.probe import OPENMP_VARIABLE, cpu_field, usable_cores
from runtime_edge.tensorrt.cache import cache_root
from runtime_edge.writing import write_whole

FILE, VERSION = "rates.json", 1
SHORTEST = 0.2  # seconds, foreseen and taken, of a stage that is long enough to tell a rate
NEWEST = 0.5  # part of the newest build in the mean of all
MOST = 30.0  # times as slow, or as fast, as a stage can be: more is a machine that was suspended
ASKED = ("", "seconds")  # kinds of work whose time the user sets
PRODUCT = 5.5e10  # multiply-adds of float32 a second on a core of the machine that `KINDS` were measured on
SPREAD = 0.8  # so many times as many cores, to this power, are as many times as fast
# Of the matrices that are multiplied, and seconds of it: one of many short products is undisturbed anywhere.
SIDE, MEASURING = 256, 0.1


class Pace(msgspec.Struct, frozen=True):
    """How a stage compares with the shipped rates here.

    Attributes:
        times: How many times as long it took.
        kind: The kind of work that most of its time goes into.
        builds: Builds that it was measured in.
    """

    times: float
    kind: str
    builds: int = 1


class PaceFile(msgspec.Struct):
    """The file.

    Attributes:
        version: Of its form, and of what amounts count.
        machines: Paces by stage and kind of work, by machine.
    """

    version: int = VERSION
    machines: dict[str, dict[str, Pace]] = msgspec.field(default_factory=dict)


def machine() -> str:
    """Returns what tells this machine from another that is faster or slower: its processor, and cores in use."""
    import platform

    name = cpu_field("model name") or platform.processor() or platform.machine()
    threads = os.environ.get(OPENMP_VARIABLE, "")
    return f"{name}, {usable_cores()} cores" + (f", {threads} threads" if threads else "")


@functools.cache
def products_a_second() -> float:
    """Multiplies matrices for a moment on one core; returns the most multiply-adds of float32 a second."""
    import torch

    threads, best = torch.get_num_threads(), float("inf")
    matrix = torch.full((SIDE, SIDE), 0.5)
    product = torch.empty_like(matrix)
    torch.set_num_threads(1)  # several would wait for each other where other programs run beside
    try:
        end = time.perf_counter() + MEASURING
        while True:
            started = time.perf_counter()
            torch.mm(matrix, matrix, out=product)
            now = time.perf_counter()
            best = min(best, now - started)
            if now >= end:
                return SIDE**3 / max(best, 1e-9)
    finally:
        torch.set_num_threads(threads)


def faster(what: str) -> float:
    """Returns how many times as fast this machine does work as the shipped rates say, by what makes it faster."""
    if not what:
        return 1.0
    core = products_a_second() / PRODUCT
    return core * _threads() ** SPREAD if what == CORES else core


def _threads() -> int:
    import torch

    return min(torch.get_num_threads(), usable_cores())


class Rates:
    """Rates of this machine.

    Args:
        known: Paces of stages that earlier builds had here. Default: none, and the shipped rates are scaled by a
            measurement alone.
    """

    def __init__(self, known: Mapping[str, Pace] | None = None) -> None:
        self.known = dict(known or {})

    @classmethod
    def here(cls) -> Rates:
        """Returns this machine's rates; a file that cannot be read counts as none."""
        return cls(_read().machines.get(machine()))

    def seconds(self, work: Work) -> float:
        """Returns how long a stage will take.

        A stage that was never measured is as much slower or faster than the shipped rates as those that were, and that
        do the same kind of work.
        """
        base, kind = _base(work)
        return base * self._pace(work.stage, kind)

    def learn(self, works: Sequence[Work], seconds: Mapping[str, float]) -> None:
        """Learns from a build that is done, and keeps it for later ones where that is possible.

        Args:
            works: What was foreseen.
            seconds: How long each stage took, without those inside it, by its plain name.
        """
        expected: dict[str, float] = {}
        for work in works:
            expected[work.stage] = expected.get(work.stage, 0.0) + self.seconds(work)
        measured: dict[str, Pace] = {}
        for work in works:
            (_, kind), taken = _base(work), seconds.get(work.stage, 0.0)
            if kind in ASKED or min(taken, expected[work.stage]) < SHORTEST:
                continue
            key, before = _key(work.stage, kind), self._pace(work.stage, kind)
            times = min(MOST, max(1 / MOST, before * taken / expected[work.stage]))
            old = self.known.get(key)
            if old is None:
                measured[key] = Pace(times, kind)
            else:
                measured[key] = Pace(old.times ** (1 - NEWEST) * times**NEWEST, kind, old.builds + 1)
        if measured:
            self.known |= measured
            _keep(self.known)

    def _pace(self, stage: str, kind: str) -> float:
        own = self.known.get(_key(stage, kind))
        if own is not None:
            return own.times
        alike = [math.log(pace.times) for pace in self.known.values() if pace.kind == kind]
        return math.exp(sum(alike) / len(alike)) if alike else 1.0


def _key(stage: str, kind: str) -> str:
    return f"{stage}, {kind}"


def _base(work: Work) -> tuple[float, str]:
    """Returns the seconds of a stage by the shipped rates, and the kind of work that most of them go into."""
    amounts = {kind: amount for kind, amount in work.amounts.items() if amount}
    by_kind = {kind: amount / (KINDS[kind].rate * faster(KINDS[kind].faster)) for kind, amount in amounts.items()}
    return sum(by_kind.values()), max(by_kind, key=lambda kind: by_kind[kind], default="")


def _read() -> PaceFile:
    try:
        file = msgspec.json.decode((cache_root() / FILE).read_bytes(), type=PaceFile)
    except (OSError, ValueError, RuntimeError):  # msgspec's errors are ValueErrors; a user without a home: RuntimeError
        return PaceFile()
    paces = [pace for known in file.machines.values() for pace in known.values()]
    good = all(1 / MOST <= pace.times <= MOST and pace.builds > 0 for pace in paces)
    return file if good and file.version == VERSION else PaceFile()


def _keep(known: Mapping[str, Pace]) -> None:
    try:
        folder = cache_root()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = _read()
        file.machines[machine()] = dict(known)
        write_whole(folder / FILE, msgspec.json.format(msgspec.json.encode(file, order="sorted"), indent=2) + b"\n")
    except (OSError, ValueError, RuntimeError):
        return  # nothing is lost but what a later build will measure again
