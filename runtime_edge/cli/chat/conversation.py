"""The messages of a chat, and which of them fit into the model's context."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from runtime_edge.errors import PromptTooLongError

Message = dict[str, Any]
Count = Callable[[list[Message]], int]

_INSTRUCTIONS = ("system", "developer")  # roles of messages that are never dropped
_ANSWER_SHARE = 4  # an answer is promised at most this part of the context
_REFILL = 0.75  # of the context: after turns were dropped, the next ones go on in the cache for a while


@dataclass(frozen=True)
class Conversation:
    """Instructions, then turns: each is what the user said and what followed.

    Attributes:
        instructions: System messages at the start.
        turns: All turns, the oldest first.
        dropped: How many of them, from the oldest on, are not sent to the model.
    """

    instructions: tuple[Message, ...] = ()
    turns: tuple[tuple[Message, ...], ...] = ()
    dropped: int = 0

    @classmethod
    def of(cls, messages: Iterable[Message]) -> Conversation:
        """Divides messages into instructions and turns; a turn begins where the user speaks."""
        instructions: list[Message] = []
        turns: list[list[Message]] = []
        for message in messages:
            if not turns and message["role"] in _INSTRUCTIONS:
                instructions.append(message)
            elif not turns or message["role"] == "user":
                turns.append([message])
            else:
                turns[-1].append(message)
        return cls(tuple(instructions), tuple(tuple(turn) for turn in turns))

    @property
    def messages(self) -> list[Message]:
        """What the model is sent: instructions, and the turns that were not dropped."""
        return [*self.instructions, *(message for turn in self.turns[self.dropped :] for message in turn)]

    @property
    def all_messages(self) -> list[Message]:
        """Instructions and all turns."""
        return replace(self, dropped=0).messages

    @property
    def is_asked(self) -> bool:
        """Whether the last message is the user's, with no answer yet."""
        return bool(self.turns) and self.turns[-1][-1]["role"] == "user"

    def asked(self, text: str) -> Conversation:
        """Returns the conversation with a further message of the user."""
        return replace(self, turns=(*self.turns, ({"role": "user", "content": text},)))

    def answered(self, text: str) -> Conversation:
        """Returns the conversation with an answer to the last message."""
        *turns, last = self.turns
        return replace(self, turns=(*turns, (*last, {"role": "assistant", "content": text})))

    def instructed(self, text: str | None) -> Conversation:
        """Returns the conversation with another system message, or with none."""
        return replace(self, instructions=() if text is None else ({"role": "system", "content": text},))

    def fitted(self, count: Count, context: int, answer: int | None) -> Conversation:
        """Drops the oldest turns until the rest leaves room for an answer; the last turn stays.

        Where some must go, a few more do: until the rest and the answer take three quarters of the context. Else every
        further message would drop one, and the model would read everything anew each time. The turn before the last
        one goes only where it must.

        Args:
            count: Tokens of messages, with what begins an answer.
            context: Tokens that the model takes.
            answer: Tokens that an answer may have; None sets no limit.

        Raises:
            PromptTooLongError: The instructions and the last turn alone are more than the context.
        """
        room = min(context // _ANSWER_SHARE, context if answer is None else answer)
        last = len(self.turns) - 1
        sizes: dict[int, int] = {}

        def fits(dropped: int, most: float) -> bool:
            if dropped not in sizes:
                sizes[dropped] = count(replace(self, dropped=dropped).messages)
            return sizes[dropped] <= most

        if fits(self.dropped, context - room):
            return self
        if not fits(last, context):
            raise PromptTooLongError(
                f"this is too long and was not sent: with the system message and the template it has {sizes[last]:,} "
                f"tokens, and the model takes {context:,}"
            )
        needed = _first(lambda dropped: fits(dropped, context - room), self.dropped, last)
        enough = _first(lambda dropped: fits(dropped, _REFILL * context - room), needed, last)
        return replace(self, dropped=max(needed, min(enough, last - 1)))


def _first(is_true: Callable[[int], bool], low: int, high: int) -> int:
    """The first number from `low` on for which `is_true`, which stays true from there on; at most `high`."""
    while low < high:
        middle = (low + high) // 2
        if is_true(middle):
            high = middle
        else:
            low = middle + 1
    return low
