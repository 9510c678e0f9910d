"""A lock between processes that the system lets go of when its holder ends, however it ends."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_SECONDS = 0.2


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds a lock while the context lasts; the file stays, for removing it would let two holders in.

    Args:
        path: The lock's file, made where it is missing.
        waiting: Called once where another process holds the lock.
    """
    flags = os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    handle = os.open(path, flags, 0o600)
    try:
        if not _acquire(handle, wait=False):
            if waiting is not None:
                waiting()
            _acquire(handle, wait=True)
        yield
    finally:
        os.close(handle)  # the lock goes with it


if sys.platform == "win32":
    import msvcrt

    def _acquire(handle: int, *, wait: bool) -> bool:
        while True:
            try:
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
                return True
            except OSError:
                if not wait:
                    return False
            time.sleep(_POLL_SECONDS)

else:
    import fcntl

    def _acquire(handle: int, *, wait: bool) -> bool:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if not wait:
                    return False
            time.sleep(_POLL_SECONDS)  # rather than a blocking call, so that Ctrl-C is heard on every system
