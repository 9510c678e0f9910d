"""The sequences that a model keeps for several conversations: a request goes on in the one that has most of it."""

from __future__ import annotations

from collections.abc import Sequence

from runtime_edge.backends import DecoderSession, DecoderState
from runtime_edge.cache import common_prefix


class Conversations:
    """A few states of one session, used by one thread at a time.

    A request takes the state that shares the longest start with its prompt. Where that would lose more than half of
    what the state holds, it is another conversation, unless the state holds the whole prompt, whose answer is made
    again: it goes on in another state, with a copy of what they share. That one is empty, or new, or the least recently
    used.

    Args:
        session: What makes states.
        most: States at most. A backend whose caches are not in the host's memory has one.
        most_bytes: Bytes of all caches together, above which the least recently used are dropped and none is added.
    """

    def __init__(self, session: DecoderSession, most: int, most_bytes: int) -> None:
        self._session = session
        self._states = [session.new_state()]  # the most recently used is the last
        self._most = most if self._states[0].cache.is_copyable else 1
        self._most_bytes = most_bytes

    @property
    def latest(self) -> DecoderState:
        """The state used last."""
        return self._states[-1]

    def take(self, token_ids: Sequence[int], length: int) -> tuple[DecoderState, int]:
        """Returns a state for a prompt with room for `length` tokens, cut to what it shares with the prompt.

        Returns:
            The state and how many tokens of the prompt it holds, at most all but the last: its logits are wanted.
        """
        wanted = token_ids[:-1]
        shared, best = 0, self.latest
        for state in reversed(self._states):
            count = common_prefix(state.cache.token_ids, wanted)
            if count > shared:
                shared, best = count, state
        goes_on = 2 * shared >= len(best.cache.token_ids) or (shared and shared == len(wanted))
        state = best if goes_on else self._other(length)
        self._use(state)
        if state is not best:
            state.cache.keep(0)
        state.cache.keep(shared)
        state.reserve(length)
        if state is not best and shared:
            state.cache.copy(best.cache, shared)
        self._drop()
        return state, shared

    def scratch(self, length: int) -> DecoderState:
        """Returns an empty state with room for `length` tokens, for a text that no conversation goes on from."""
        state = self._other(length)
        self._use(state)
        state.cache.keep(0)
        state.reserve(length)
        self._drop()
        return state

    def _other(self, length: int) -> DecoderState:
        empty = next((state for state in self._states if not state.cache.token_ids), None)
        if empty is not None:
            return empty
        if len(self._states) < self._most and self._bytes + self.latest.cache.bytes_of(length) <= self._most_bytes:
            self._states.append(self._session.new_state())
            return self._states[-1]
        return self._states[0]

    def _use(self, state: DecoderState) -> None:
        self._states.remove(state)
        self._states.append(state)

    def _drop(self) -> None:
        """Lets states go that were not used for the longest time, while there are too many bytes."""
        while len(self._states) > 1 and self._bytes > self._most_bytes:
            del self._states[0]

    @property
    def _bytes(self) -> int:
        return sum(state.cache.nbytes for state in self._states)
