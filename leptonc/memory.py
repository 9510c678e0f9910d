"""Keeps the compiler's memory close to what it uses."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST_THRESHOLD = 2**25  # glibc takes no larger one
_TRIM_BYTES, _KEPT_BYTES = 2**17, 2**30  # free at the end of the heap; the first is glibc's own choice
_THRESHOLD_BYTES = 2**20


def keep_freed_memory() -> None:
    """Makes glibc keep freed arrays of up to 32 MB, as far as it will; `return_freed_memory` ends it.

    What learns frees and asks for the same sizes all the time, and memory that is new has to be cleared each time.
    """
    _set(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
    _set(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def return_freed_memory() -> None:
    """Makes glibc give freed arrays of a megabyte and more back to the system at once; elsewhere does nothing.

    By default the limit grows to 32 MB with what a program frees, and a build that reads one weight after the other
    keeps hundreds of megabytes of holes: measuring SmolLM2's reference peaked at 994 MB instead of 537.
    """
    _set(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES)
    _set(_M_TRIM_THRESHOLD, _TRIM_BYTES)


def _set(option: int, value: int) -> None:
    """Calls glibc's mallopt, where there is one."""
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(option, value)
