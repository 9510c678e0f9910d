"""What ends a call before it is done: an event that another thread sets, or a number of seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from runtime_edge.errors import RunEndedError

CANCELLED, TIMEOUT = "cancelled", "timeout"
_POLL_S = 0.02  # how soon a run sees that it is to end


class Event(Protocol):
    """What `cancel` takes: a `threading.Event`, or anything with its `is_set`."""

    def is_set(self) -> bool:
        """Returns whether to stop."""


class Stop(Protocol):
    """Ends the runs that are given it, from any thread, once `terminate` is True."""

    terminate: bool


class Terminated(Exception):
    """A run was ended by its `Stop`."""


class Ending:
    """The event and the deadline of one call. A call without either costs nothing.

    With one, a thread looks fifty times a second, and ONNX Runtime takes some 0.1 ms longer for each run that can be
    ended.

    Args:
        cancel: The event, or None.
        timeout: Seconds from `begin`, or None.
    """

    def __init__(self, cancel: Event | None = None, timeout: float | None = None) -> None:
        self._cancel = cancel
        self._timeout = timeout
        self._deadline: float | None = None
        self._reason: str | None = None
        self.is_possible = cancel is not None or timeout is not None

    def begin(self) -> None:
        """Starts the clock; later calls change nothing."""
        if self._timeout is not None and self._deadline is None:
            self._deadline = time.monotonic() + self._timeout

    def reason(self) -> str | None:
        """Returns `cancelled` or `timeout` where it is time to end, else None. What was told once stays."""
        if self._reason is None and self.is_possible:
            if self._cancel is not None and self._cancel.is_set():
                self._reason = CANCELLED
            elif self._deadline is not None and time.monotonic() >= self._deadline:
                self._reason = TIMEOUT
        return self._reason

    def check(self, what: str) -> None:
        """Raises `RunEndedError` where it is time to end."""
        reason = self.reason()
        if reason == CANCELLED:
            raise RunEndedError(f"{what}: expected to end by itself, found that `cancel` was set")
        if reason == TIMEOUT:
            raise RunEndedError(
                f"{what}: expected to end within {self._timeout:g} seconds (timeout), found it at work",
                hint="give it more time, or less to do",
            )

    @contextmanager
    def watching(self, stop: Stop | None) -> Iterator[None]:
        """Sets `stop` as soon as it is time to end; a thread looks while the context lasts."""
        if stop is None or not self.is_possible:
            yield
            return
        left = threading.Event()

        def watch() -> None:
            while not left.wait(_POLL_S):
                if self.reason() is not None:
                    stop.terminate = True
                    return

        thread = threading.Thread(target=watch, name="lepton-ending", daemon=True)
        thread.start()
        try:
            yield
        finally:
            left.set()


NEVER = Ending()  # of a call that ends by itself
