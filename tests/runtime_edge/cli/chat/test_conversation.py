"""Which turns a model is sent, and that answers after dropped turns are those of a fresh conversation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import runtime_edge
from runtime_edge.cli.chat.conversation import Conversation, Message
from runtime_edge.cli.chat.screen import Screen
from runtime_edge.cli.chat.session import Session
from runtime_edge.errors import PromptTooLongError
from tests.runtime_edge import tiny


def count(messages: list[Message]) -> int:
    return sum(len(message["content"]) for message in messages)


def of_sizes(system: int, *turns: int) -> Conversation:
    messages = [{"role": "system", "content": "s" * system}] if system else []
    for size in turns:
        messages += [{"role": "user", "content": "u" * size}, {"role": "assistant", "content": ""}]
    return Conversation.of(messages)


@pytest.mark.parametrize(
    ("sizes", "context", "answer", "dropped"),
    [
        ((10, 20, 20, 20), 80, 10, 0),
        ((10, 10, 10, 20, 21), 80, 10, 2),  # one would do: the second goes until three quarters are left
        ((10, 5, 5, 5, 5, 55), 100, 25, 3),  # the turn before the last one stays where it fits
        ((10, 30, 5, 70), 100, 25, 2),  # what is asked leaves less room for an answer than wanted
        ((0, 20, 20, 20, 20, 20), 100, None, 3),  # no limit of an answer: a quarter of the context
    ],
)
def test_the_oldest_turns_are_dropped(sizes: tuple[int, ...], context: int, answer: int | None, dropped: int) -> None:
    conversation = of_sizes(*sizes)
    fitted = conversation.fitted(count, context, answer)
    assert fitted.dropped == dropped
    assert fitted.messages == [*conversation.instructions, *conversation.messages[bool(sizes[0]) + 2 * dropped :]]
    assert fitted.all_messages == conversation.all_messages


def test_what_is_too_long_alone_is_refused() -> None:
    with pytest.raises(PromptTooLongError, match="111 tokens, and the model takes 110"):
        of_sizes(11, 1, 1, 100).fitted(count, 110, 1)


def test_a_turn_begins_where_the_user_speaks() -> None:
    roles = ["system", "developer", "assistant", "user", "tool", "assistant", "user"]
    conversation = Conversation.of([{"role": role, "content": ""} for role in roles])
    assert [message["role"] for message in conversation.instructions] == roles[:2]
    assert [[message["role"] for message in turn] for turn in conversation.turns] == [
        ["assistant"],
        ["user", "tool", "assistant"],
        ["user"],
    ]
    assert conversation.is_asked


class _Silent(Screen):
    """Keeps what is told and shows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)

    @contextmanager
    def answer(self, *, is_markdown: bool) -> Iterator[Any]:
        yield self

    def write(self, text: str) -> None:
        pass


def test_answers_are_those_of_fresh_conversations_and_the_cache_is_used(tmp_path: Path) -> None:
    root = tiny.write_decoder(tmp_path / "tiny.lepton", max_seq_len=400)
    options = {"max_new_tokens": 20}
    cached = []
    with runtime_edge.load(root, threads=1) as model, runtime_edge.load(root, threads=1, conversations=1) as fresh:
        screen = _Silent()
        session = Session(model, "Be brief.", options, screen, is_markdown=False)
        for number in range(14):
            before = session.conversation
            session.ask(f"This is what is asked in round {number}.")
            sent = session.conversation.messages[:-1]
            made = fresh.context().generate(sent, **options)
            assert session.conversation.messages[-1] == {"role": "assistant", "content": made.text}
            assert session.stats is not None
            assert session.stats.prompt_tokens + 20 <= 400
            cached.append(session.stats.cached_tokens)
            if session.conversation.dropped == before.dropped and before.turns:
                asked = session.count(before.messages[:-1])
                assert session.stats.cached_tokens >= asked  # all that was read before, if not all that was answered
        assert session.conversation.dropped > 4
        assert session.conversation.messages[0]["content"] == "Be brief."
        assert len(session.conversation.all_messages) == 1 + 2 * 14
    drops = [text for text in screen.told if "context is full" in text]
    assert drops[0] == "The context is full: the 2 oldest turns are left out from here on."
    assert 1 < len(drops) < 7  # each leaves room for several rounds
