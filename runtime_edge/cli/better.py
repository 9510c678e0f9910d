"""What would be better on this machine: rules, and the facts that they look at."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from runtime_edge import kernels
from runtime_edge.errors import RequestError
from runtime_edge.probe import OPENMP_VARIABLE, THREADS_VARIABLE, default_threads, usable_cores, usable_memory

LITTLE_MEMORY = 2 * 10**9  # bytes: a build of a small model takes one and more
F = TypeVar("F")


@dataclass(frozen=True)
class Machine:
    """Facts of this machine and of how it is used.

    Attributes:
        cores: Cores that the process may use.
        threads: Threads that models run on where a call names none.
        building: Threads that a build computes with.
        memory: Bytes of memory that the process may use.
        may_compile: Why it lacks kernels that its CPU could run, and how it gets them. Default: it lacks none.
    """

    cores: int
    threads: int
    building: int
    memory: int
    may_compile: str | None = None

    @classmethod
    def here(cls) -> Machine:
        """Returns the facts of this machine; a variable whose value is none counts as not set."""
        cores, openmp = usable_cores(), os.environ.get(OPENMP_VARIABLE, "")
        threads = cores
        with contextlib.suppress(RequestError):
            threads = default_threads()
        building = int(openmp) if openmp.isascii() and openmp.isdigit() else cores
        return cls(cores, threads, building, usable_memory(), kernels.may_compile())


@dataclass(frozen=True)
class Rule(Generic[F]):
    """One thing that would be better.

    Attributes:
        holds: Whether it is so by the facts, a dataclass.
        text: What to do, with fields of the facts in braces.
    """

    holds: Callable[[F], bool]
    text: str


def told(rules: Iterable[Rule[F]], facts: F) -> list[str]:
    """Returns what the rules that hold say, a line each."""
    return [rule.text.format(**vars(facts)) for rule in rules if rule.holds(facts)]


RULES: tuple[Rule[Machine], ...] = (
    Rule(
        lambda machine: machine.may_compile is not None,
        "Lepton's own kernels are faster, and not there: {may_compile}",
    ),
    Rule(
        lambda machine: machine.threads < machine.cores,
        f"models run on {{threads}} of {{cores}} cores: leave {THREADS_VARIABLE} unset",
    ),
    Rule(
        lambda machine: 0 < machine.building < machine.cores,
        f"builds compute on {{building}} of {{cores}} cores: leave {OPENMP_VARIABLE} unset",
    ),
    Rule(
        lambda machine: machine.memory < LITTLE_MEMORY,
        "there is little memory: `leptonc build --memory-gb GB` stays within a bound, or build on another machine",
    ),
)


def better(machine: Machine) -> list[str]:
    """Returns what would be better, a line each; nothing where all is well."""
    return told(RULES, machine)
