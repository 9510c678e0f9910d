"""How far work has come whose stages and their seconds are foreseen, and how long it will take from here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

TRUST = 0.1  # part of the whole forecast that the stages so far weigh against when they correct it
NAMED = 0.04  # part of the whole that a stage takes at least which is announced by name
ALMOST = 0.97  # how far a stage can be before it ends


@dataclass
class _Foreseen:
    name: str
    seconds: float
    is_over: bool = False


@dataclass
class _Running:
    name: str
    foreseen: _Foreseen | None
    total: int | None
    started: float
    steps: int = 0
    inside: float = 0.0  # seconds of stages inside it


class Forecast:
    """The state of a forecast. Stages may lie inside others; those that are not foreseen change nothing.

    Args:
        stages: Names of stages in the order that they end in, about, and seconds of each without those inside it.
        clock: Returns seconds. Default: the system's clock.
    """

    def __init__(self, stages: Sequence[tuple[str, float]], clock: Callable[[], float] = time.perf_counter) -> None:
        self._stages = [_Foreseen(name, max(0.0, seconds)) for name, seconds in stages]
        self._clock = clock
        self._running: list[_Running] = []
        self._expected = self._taken = 0.0  # seconds of foreseen stages that are over: as foreseen, and as they were

    @property
    def total(self) -> float:
        """Seconds of all that is foreseen."""
        return sum(stage.seconds for stage in self._stages)

    @property
    def stage(self) -> str:
        """The name of what runs; empty between stages."""
        return self._running[-1].name if self._running else ""

    def begin(self, name: str, total: int | None) -> None:
        """A stage of `total` steps begins (None: unknown); a variant's name before its own is no part of it."""
        short = name.rpartition(": ")[2]
        taken = {id(running.foreseen) for running in self._running}
        waiting = (one for one in self._stages if one.name == short and not one.is_over and id(one) not in taken)
        self._running.append(_Running(name, next(waiting, None), total, self._clock()))

    def advance(self, count: int) -> None:
        """The stage that runs has done so many steps more."""
        self._running[-1].steps += count

    def end(self) -> None:
        """The stage that runs is over. Foreseen stages before it that did not come will not come any more."""
        done = self._running.pop()
        taken = self._clock() - done.started
        if self._running:
            self._running[-1].inside += taken
        if done.foreseen is None:
            return
        done.foreseen.is_over = True
        self._expected += done.foreseen.seconds
        self._taken += taken - done.inside
        if not self._running:
            for stage in self._stages[: self._stages.index(done.foreseen)]:
                stage.is_over = True

    @property
    def done(self) -> float:
        """How much of `total` is done."""
        over = sum(stage.seconds for stage in self._stages if stage.is_over)
        return over + sum(self._part(one) * one.foreseen.seconds for one in self._running if one.foreseen)

    @property
    def left(self) -> float:
        """Seconds that are left, corrected by how the stages so far compare with what was foreseen."""
        return max(0.0, self.total - self.done) * self._pace

    @property
    def _pace(self) -> float:
        """How many times as long as foreseen stages take."""
        expected, taken, weight = self._expected, self._taken, TRUST * self.total
        for one in self._running:
            if one.foreseen and one.total and one.steps:
                expected += min(1.0, one.steps / one.total) * one.foreseen.seconds
                taken += self._own(one)
        return (taken + weight) / (expected + weight) if expected + weight > 0 else 1.0

    def _own(self, one: _Running) -> float:
        later = self._running[self._running.index(one) + 1 :]
        inside = self._clock() - later[0].started if later else 0.0
        return self._clock() - one.started - one.inside - inside

    def _part(self, one: _Running) -> float:
        """Returns how much of a foreseen stage is done: by its steps, and between two steps by the time."""
        assert one.foreseen is not None
        by_time = self._own(one) / one.foreseen.seconds if one.foreseen.seconds else 1.0
        if not one.total:
            return min(by_time, ALMOST)
        steps = min(one.steps, one.total)
        return max(0.0, min(ALMOST, max(steps / one.total, min(by_time, (steps + 1) / one.total))))


def duration(seconds: float) -> str:
    """Returns a time as people say it: 8 s, 2 min 10 s, 1 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        minutes, rest = divmod(5 * round(whole / 5), 60)
        return f"{minutes} min" + (f" {rest} s" if rest and minutes < 10 else "")
    hours, minutes = divmod(round(whole / 60), 60)
    return f"{hours} h" + (f" {minutes} min" if minutes else "")


def announcement(stages: Sequence[tuple[str, float]]) -> str:
    """Returns what is said before work begins: how long it will take, and which stages take most of that."""
    total = sum(seconds for _, seconds in stages)
    named: dict[str, float] = {}
    for name, seconds in stages:
        named[name] = named.get(name, 0.0) + seconds
    long = [f"{name} {duration(seconds)}" for name, seconds in named.items() if seconds >= max(1.0, NAMED * total)]
    return f"about {duration(total)}" + (f": {', '.join(long)}" if long else "")
