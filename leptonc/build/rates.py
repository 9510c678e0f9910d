"""How fast this machine does each kind of work: as earlier builds measured it, or as a short measurement tells.

A small file in the user's cache folder has the rates, by machine: a folder that is copied to another one misleads
nobody. It may be deleted at any time.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping, Sequence

import msgspec

from leptonc.build.work import CORES, KINDS, Work
from runtime_edge.probe import cpu_field, usable_cores
from runtime_edge.tensorrt.cache import cache_root
from runtime_edge.writing import write_whole

FILE, VERSION = "rates.json", 1
SHORTEST = 0.2  # seconds, foreseen and taken, of a stage that is long enough to tell a rate
NEWEST = 0.5  # part of the newest build in the mean of all
PRODUCT = 5.5e10  # multiply-adds of float32 a second on a core of the machine that `KINDS` were measured on
SPREAD = 0.8  # so many times as many cores, to this power, are as many times as fast
# Of the matrices that are multiplied, and seconds of it: one of many short products is undisturbed anywhere.
SIDE, MEASURING = 256, 0.1
THREADS_VARIABLE = "OMP_NUM_THREADS"


class Rate(msgspec.Struct, frozen=True):
    """A rate as it is kept.

    Attributes:
        rate: Amount of a kind of work a second.
        builds: Builds that it was measured in.
    """

    rate: float
    builds: int = 1


class RateFile(msgspec.Struct):
    """The file.

    Attributes:
        version: Of its form, and of what amounts count.
        machines: Rates by kind of work, by machine.
    """

    version: int = VERSION
    machines: dict[str, dict[str, Rate]] = msgspec.field(default_factory=dict)


def machine() -> str:
    """Returns what tells this machine from another that is faster or slower: its processor, and cores in use."""
    import platform

    name = cpu_field("model name") or platform.processor() or platform.machine()
    threads = os.environ.get(THREADS_VARIABLE, "")
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
        known: Those that earlier builds measured here. Others are the table's, scaled by a measurement.
    """

    def __init__(self, known: Mapping[str, Rate]) -> None:
        self.known = dict(known)

    @classmethod
    def here(cls) -> Rates:
        """Returns this machine's rates; a file that cannot be read counts as none."""
        return cls(_read().machines.get(machine(), {}))

    def rate(self, kind: str) -> float:
        """Returns how much of a kind of work is done in a second."""
        if kind in self.known:
            return self.known[kind].rate
        return KINDS[kind].rate * faster(KINDS[kind].faster)

    def seconds(self, work: Work) -> float:
        """Returns how long a stage will take."""
        return sum(amount / self.rate(kind) for kind, amount in work.amounts.items() if amount)

    def learn(self, works: Sequence[Work], seconds: Mapping[str, float]) -> None:
        """Learns from a build that is done, and keeps it for later ones where that is possible.

        Where a stage does work of several kinds, all of them were as much faster or slower than foreseen as the stage.

        Args:
            works: What was foreseen.
            seconds: How long each stage took, without those inside it, by its plain name.
        """
        measured = measured_rates(self, works, seconds)
        if not measured:
            return
        for kind, rate in measured.items():
            before = self.known.get(kind)
            if before is None:
                self.known[kind] = Rate(rate)
            else:
                mean = before.rate ** (1 - NEWEST) * rate**NEWEST
                self.known[kind] = Rate(mean, before.builds + 1)
        _keep(self.known)


def measured_rates(rates: Rates, works: Sequence[Work], seconds: Mapping[str, float]) -> dict[str, float]:
    """Returns the rate of each kind of work that a build did long enough, arguments as of `Rates.learn`."""
    foreseen: dict[str, float] = {}
    for work in works:
        foreseen[work.stage] = foreseen.get(work.stage, 0.0) + rates.seconds(work)
    amounts: dict[str, float] = {}
    expected_of: dict[str, float] = {}
    taken: dict[str, float] = {}
    for work in works:
        actual, expected = seconds.get(work.stage, 0.0), foreseen[work.stage]
        if min(actual, expected) < SHORTEST:
            continue
        for kind, amount in work.amounts.items():
            if amount and kind != "seconds":
                here = amount / rates.rate(kind)
                amounts[kind] = amounts.get(kind, 0.0) + amount
                expected_of[kind] = expected_of.get(kind, 0.0) + here
                taken[kind] = taken.get(kind, 0.0) + here * actual / expected
    return {kind: amount / taken[kind] for kind, amount in amounts.items() if expected_of[kind] >= SHORTEST}


def _read() -> RateFile:
    try:
        file = msgspec.json.decode((cache_root() / FILE).read_bytes(), type=RateFile)
    except (OSError, ValueError, RuntimeError):  # msgspec's errors are ValueErrors; a user without a home: RuntimeError
        return RateFile()
    all_rates = [item for rates in file.machines.values() for item in rates.items()]
    good = all(kind in KINDS and 0 < rate.rate < float("inf") for kind, rate in all_rates)
    return file if good and file.version == VERSION else RateFile()


def _keep(known: Mapping[str, Rate]) -> None:
    try:
        folder = cache_root()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = _read()
        file.machines[machine()] = dict(known)
        write_whole(folder / FILE, msgspec.json.format(msgspec.json.encode(file, order="sorted"), indent=2) + b"\n")
    except (OSError, ValueError, RuntimeError):
        return  # nothing is lost but what a later build will measure again
