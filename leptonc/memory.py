"""Keeps the compiler's memory close to what it uses."""

from __future__ import annotations

import atexit
import ctypes
import gc
import mmap
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h
_LARGEST_THRESHOLD = 2**25  # glibc takes no larger one
_TRIM_BYTES, _KEPT_BYTES = 2**26, 2**30  # free at the end of the heap; the first is glibc's own choice
_THRESHOLD_BYTES = 2**23


def keep_freed_memory() -> None:
    """Makes glibc keep freed arrays of up to 32 MB, as far as it will; `return_freed_memory` ends it.

    What learns frees and asks for the same sizes all the time, and memory that is new has to be cleared each time.
    """
    _set(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
    _set(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def return_freed_memory() -> None:
    """Makes glibc give freed arrays of 8 MB and more back to the system at once; elsewhere does nothing.

    By default the limit grows to 32 MB with what a program frees, and a build that reads one weight after the other
    keeps hundreds of megabytes of holes. With a smaller one, clearing the pages of each new array takes more time
    than filling it does. And threads that come after share one heap: of its own, each would have holes of its own.
    """
    _set(_M_ARENA_MAX, 1)
    _set(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES)
    _set(_M_TRIM_THRESHOLD, _TRIM_BYTES)


def collect_seldom() -> None:
    """For a process that builds: Python looks for unused cycles less often, and not at all when it ends.

    A build makes millions of objects that stay, modules and traces; looking at them again and again takes a tenth of
    its time, and a second more at exit.
    """
    gc.set_threshold(100_000, 50, 50)
    atexit.register(gc.freeze)


@contextmanager
def dropping_cycles() -> Iterator[Callable[[], object]]:
    """Gives what frees what has become unreachable inside: graphs that were run and their weights refer to each other.

    With `collect_seldom` those of a walk over all layers would wait until they take gigabytes. What is there before is
    not looked at inside: torch's and transformers' own objects alone take a third of a second each time. Where that was
    set aside before, it stays set aside afterwards.
    """
    is_outermost = gc.get_freeze_count() == 0
    if is_outermost:
        gc.collect()
        gc.freeze()
    try:
        yield gc.collect
    finally:
        if is_outermost:
            gc.unfreeze()


def give_back() -> None:
    """Gives what is free in the heap back to the system now, holes between arrays too."""
    _call("malloc_trim", 0)


def drop_pages(mapped: mmap.mmap, first: int = 0, last: int | None = None) -> None:
    """Lets the bytes from `first` to `last` of a mapped file leave the memory; they come back as they are read."""
    first, last = first - first % mmap.PAGESIZE, len(mapped) if last is None else last
    if first < last and hasattr(mmap, "MADV_DONTNEED"):  # not on every system
        mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def _set(option: int, value: int) -> None:
    _call("mallopt", option, value)


def _call(name: str, *arguments: int) -> None:
    """Calls a function of glibc's, where there is one."""
    if sys.platform != "linux":
        return
    try:
        function = getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):  # another C library
        return
    function(*arguments)
