"""Showing how far a build is, and timing it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

# What the user is shown of each stage. Stages have short names of their own, which rates and figures in JSON go by.
TITLES = {
    "open": "opening the model", "capture": "tracing the model", "capture check": "check of the tracing",
    "calibration text": "calibration text",
    "cache ranges": "ranges of the cache", "activations": "ranges of activations",
    "sensitivity": "layer sensitivities", "scaling": "scales of channels", "pass calibrate": "quantizing weights",
    "passes": "preparing the graph", "weights": "writing weights", "check": "quality check",
    "examples": "example answers", "heal": "healing", "heal fit": "fitting before healing",
    "prefill passes": "prompts' graph", "prefill weights": "prompts' weights",
    "prefill check": "prompts' quality check",
    "prune": "pruning", "prune latency": "timing for pruning", "prune moments": "statistics for pruning",
    "prune choose": "choosing what to prune", "prune sensitivity": "sensitivities to pruning",
    "prune gradients": "gradients for pruning", "prune calibrate": "calibrating pruning",
    "prune compensate": "compensating pruning", "prune check": "pruned quality check",
    "prune speed": "speed after pruning", "engine": "building the engine", "rehearsal": "trial of the engine",
}  # fmt: skip


class Progress(Protocol):
    """What shows how far a build is."""

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Callable[[int], None]]:
        """Opens a stage of `total` steps (None: unknown); what it yields is called with steps done."""
        ...

    def note(self, text: str) -> None:
        """Shows a line on how a stage goes."""
        ...

    def forecast(self, stages: Sequence[tuple[str, float]]) -> AbstractContextManager[None]:
        """Says how long what is done in the context will take: names of stages, in order, and seconds of each."""
        ...


class Silent:
    """Shows nothing."""

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        yield lambda _: None

    def note(self, text: str) -> None:
        """Says nothing."""

    @contextmanager
    def forecast(self, stages: Sequence[tuple[str, float]]) -> Iterator[None]:
        yield


def plain(stage: str) -> str:
    """Returns a stage's name without the variant and the part that stand before it."""
    return stage.rpartition(": ")[2]


def shown(stage: str) -> str:
    """Returns what the user is shown of a stage: its title, behind the variant and the part that it is of."""
    name = plain(stage)
    return stage[: len(stage) - len(name)] + TITLES.get(name, name)


@dataclass
class Timed:
    """Times stages while the user sees them by their titles; those of one name together.

    Attributes:
        progress: What shows them.
        seconds: Of each stage, those inside it included.
        own: Of each stage without those inside it, by its plain name: those of all variants together.
    """

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    own: dict[str, float] = field(default_factory=dict)
    _inside: list[float] = field(default_factory=list)  # seconds of the stages inside each open one

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        started = time.perf_counter()
        self._inside.append(0.0)
        try:
            with self.progress.stage(shown(name), total) as advance:
                yield advance
        finally:
            taken, inside = time.perf_counter() - started, self._inside.pop()
        if self._inside:
            self._inside[-1] += taken
        self.seconds[name] = self.seconds.get(name, 0.0) + taken
        self.own[plain(name)] = self.own.get(plain(name), 0.0) + taken - inside

    @property
    def total(self) -> float:
        """Seconds of all stages, those inside others counted once."""
        return sum(self.own.values())

    def note(self, text: str) -> None:
        self.progress.note(text)

    def forecast(self, stages: Sequence[tuple[str, float]]) -> AbstractContextManager[None]:
        return self.progress.forecast([(shown(name), seconds) for name, seconds in stages])
