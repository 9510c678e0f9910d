"""Whose turn a sequence is: one generation at a time."""

from __future__ import annotations

import threading

from runtime_edge.errors import RequestError
from runtime_edge.request import Event, is_set

_POLL_S = 0.05  # how soon a generation that waits for another sees that it was cancelled


class Turn:
    """A lock that can be given back by any thread, and that refuses the thread which holds it instead of hanging."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    def take(self, cancel: Event | None) -> bool:
        """Waits for the turn; returns False where `cancel` was set first."""
        if self._holder == threading.get_ident():
            raise RequestError(
                "generate: expected no stream of this model open in this thread, found one",
                hint="finish or close() it first, or use a second model.context()",
            )
        while not self._lock.acquire(timeout=_POLL_S if cancel is not None else -1):
            if is_set(cancel):
                return False
        self._holder = threading.get_ident()
        return True

    def give(self) -> None:
        """Gives it to who waits."""
        self._holder = None
        self._lock.release()
