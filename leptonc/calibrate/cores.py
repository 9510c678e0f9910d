"""Shares the processor's cores among what runs side by side, because small products share cores badly.

A product of two threads ends when its slower thread does, and on a busy machine the other waits at full speed for it.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from runtime_edge.probe import usable_cores

SIDE_BY_SIDE = 2  # that run at a time
T = TypeVar("T")
R = TypeVar("R")


def lanes() -> int:
    """Returns how many may run side by side here."""
    return min(SIDE_BY_SIDE, usable_cores())


def part_of_cores() -> int:
    """Returns the threads of one of those that run side by side."""
    return max(1, usable_cores() // SIDE_BY_SIDE)


def side_by_side(function: Callable[[T], R], items: Iterable[T], runs: int | None = None) -> Iterator[R]:
    """Yields what a function returns for each item, in their order. Some run at a time; few are ahead of the reader.

    Args:
        function: May run in several threads.
        items: Read in the caller's thread.
        runs: How many run at a time. Default: `lanes()`.
    """
    runs = lanes() if runs is None else runs
    if runs < 2:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(runs) as pool:
        running: deque[Future[R]] = deque()
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) > runs:  # results that nobody has asked for would fill the memory
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


@contextmanager
def sharing_cores() -> Iterator[None]:
    """Inside, a product of numpy or torch has its part of the cores, so that what runs side by side has the others."""
    import torch

    threads, library = torch.get_num_threads(), _openblas()
    before = library[0]() if library is not None else 0
    part = part_of_cores()
    torch.set_num_threads(min(threads, part))
    if library is not None:
        library[1](min(before, part))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if library is not None:
            library[1](before)


@cache
def _openblas() -> tuple[Callable[[], int], Callable[[int], Any]] | None:
    """Returns what tells and what sets the threads of numpy's OpenBLAS; None where numpy has another library."""
    place = Path(np.__file__).parents[1]
    for path in (*place.glob("numpy.libs/*openblas*"), *place.glob("numpy/.dylibs/*openblas*")):
        try:
            library = ctypes.CDLL(str(path))
            return library.scipy_openblas_get_num_threads64_, library.scipy_openblas_set_num_threads64_
        except (OSError, AttributeError):
            continue
    return None
