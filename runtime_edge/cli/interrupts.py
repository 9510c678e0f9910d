"""Ctrl-C, made certain: Python raises KeyboardInterrupt once, and a library may swallow it.

It is lost where it is raised inside a destructor, or in code that catches everything. So the signal is remembered, and
raised again where a verb's next stage begins, ends or advances. A second signal ends the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_received = 0


@contextmanager
def remembered() -> Iterator[None]:
    """Has SIGINT and SIGTERM raise KeyboardInterrupt and be remembered, while the context lasts.

    SIGINT that is ignored, as in a shell's background jobs, stays so. Only the main thread may set handlers: in another
    one nothing changes.
    """
    global _received
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)
    _received = 0
    before = {number: signal.signal(number, _interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received = 0


def check() -> None:
    """Raises KeyboardInterrupt if a signal came, whoever caught what it raised."""
    if _received:
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _received
    _received += 1
    if _received > 1:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    raise KeyboardInterrupt
