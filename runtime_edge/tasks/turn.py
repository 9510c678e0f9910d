"""Whose turn a sequence is: one generation at a time."""

from __future__ import annotations

import threading

from runtime_edge.ending import Ending
from runtime_edge.errors import RequestError

_POLL_S = 0.05  # how soon a generation that waits for another sees that it is to end


class Turn:
    """A lock that can be given back by any thread, and that refuses the thread which holds it instead of hanging."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    def take(self, ending: Ending) -> str | None:
        """Waits for the turn; returns None once it is taken, or the reason where it was time to end first."""
        if self._holder == threading.get_ident():
            raise RequestError(
                "generate: expected no stream of this model open in this thread, found one",
                hint="finish or close() it first, or use a second model.context()",
            )
        while not self._lock.acquire(timeout=_POLL_S if ending.is_possible else -1):
            reason = ending.reason()
            if reason is not None:
                return reason
        self._holder = threading.get_ident()
        return None

    def give(self) -> None:
        """Gives it to who waits."""
        self._holder = None
        self._lock.release()
