"""A model, a conversation with it, and what a chat does with both."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from runtime_edge.cli.chat import files
from runtime_edge.cli.chat.conversation import Conversation, Message
from runtime_edge.cli.chat.screen import Screen
from runtime_edge.errors import PromptTooLongError, RequestError

if TYPE_CHECKING:
    from runtime_edge.model import Model
    from runtime_edge.tasks.results import Stats

_TEMPLATE_OPTIONS = ("tools", "chat_template", "chat_template_kwargs")
_MOST_CHARACTERS = 64  # of a token, on average: a text that is longer than such tokens is not even tokenized
_ENDED = {"cancelled": "stopped", "timeout": "the time was up (--timeout)"}


class Session:
    """A chat with a model.

    Args:
        model: It generates text, and has a chat template.
        system: What the model is told before the conversation, or None.
        options: Options of `Model.stream`.
        screen: Where answers go.

    Attributes:
        conversation: What was said.
        files: Names and texts of files that go into the next message.
        is_markdown: Whether answers are rendered.
        is_over: Whether the chat ends.
        stats: What the last answer took, or None.

    Raises:
        ChatTemplateError: The model has no chat template, or it takes no system message.
    """

    def __init__(
        self, model: Model, system: str | None, options: dict[str, Any], screen: Screen, *, is_markdown: bool
    ) -> None:
        decoder = model.manifest.decoder
        assert decoder is not None  # a model that generates text has one
        self.model, self.screen = model, screen
        self.context = decoder.max_seq_len
        self.conversation = Conversation()
        self.files: dict[str, str] = {}
        self.is_markdown = is_markdown
        self.is_over = False
        self.stats: Stats | None = None
        self._options = options
        self._template = {name: options[name] for name in _TEMPLATE_OPTIONS if name in options}
        self.instruct(system)

    def instruct(self, text: str | None) -> None:
        """Sets the system message, or takes it away (raises `ChatTemplateError`, `PromptTooLongError`)."""
        conversation = self.conversation.instructed(text)
        self._check_length(text or "")
        alone = Conversation(conversation.instructions).asked("Hello")
        alone.fitted(self.count, self.context, 1)
        self.conversation = conversation

    def count(self, messages: list[Message], *, answer: bool = True) -> int:
        """Tokens of messages, with what begins an answer unless `answer` is False."""
        if not messages:
            return 0
        return len(self.model.tokenize(messages, **self._template, add_generation_prompt=answer))

    def attach(self, name: str, text: str) -> int:
        """Puts a file's text into the next message; returns its tokens (raises `PromptTooLongError`)."""
        self._check_length(text)
        tokens = len(self.model.tokenize(text, add_special_tokens=False))
        if tokens > self.context:
            raise PromptTooLongError(f"{name} has {tokens:,} tokens, and the model takes {self.context:,}")
        self.files[name] = text
        return tokens

    def checked(self, messages: list[Message]) -> Conversation:
        """Returns messages as a conversation that the model takes (raises `RequestError`)."""
        if not any(message["role"] == "user" for message in messages):
            raise RequestError("expected a conversation, found no message of the user")
        for message in messages:
            content = message.get("content")
            self._check_length(content if isinstance(content, str) else "")
        self.count(messages)  # the template may refuse them
        return Conversation.of(messages)

    def go_on(self, conversation: Conversation) -> None:
        """Goes on from another conversation; where its last message is the user's, it is answered."""
        if conversation.is_asked:
            self._answer(conversation)
        else:
            self.conversation = conversation

    def ask(self, text: str) -> None:
        """Answers a message, and remembers both (raises `RequestError`; the conversation is then as it was)."""
        parts = [files.quoted(name, content) for name, content in self.files.items()]
        text = "\n\n".join([*parts, text])
        self._check_length(text)
        self._answer(self.conversation.asked(text))
        self.files.clear()

    def _answer(self, asked: Conversation) -> None:
        with _cancelled_by_interrupt() as cancel:
            fitted = asked.fitted(self.count, self.context, self._options.get("max_new_tokens"))
            if dropped := fitted.dropped - asked.dropped:
                turns = "the oldest turn is" if dropped == 1 else f"the {dropped} oldest turns are"
                self.screen.note(f"The context is full: {turns} left out from here on.")
            chunks = self.model.stream(fitted.messages, cancel=cancel, **self._options)
            pieces: list[str] = []
            with closing(chunks), self.screen.answer(is_markdown=self.is_markdown) as shown:
                for chunk in chunks:
                    text = chunk.text.rstrip("\ufffd") if chunk.finish_reason in _ENDED else chunk.text
                    pieces.append(text)  # an answer that is stopped may end within a character
                    shown.write(text)
        answer, stats, reason = "".join(pieces), chunk.stats, chunk.finish_reason or ""
        if reason in _ENDED and not answer.strip():
            self.screen.note(f"[{_ENDED[reason]} before the answer began: the message is not kept]")
            return
        self.conversation, self.stats = fitted.answered(answer), stats
        told = _ENDED.get(reason) or ("the model ended without a word" if not answer.strip() else None)
        if reason == "length" and stats is not None:
            is_full = stats.prompt_tokens + stats.new_tokens > self.context
            told = "cut: the context is full" if is_full else f"cut at {stats.new_tokens} tokens (--max-new-tokens)"
        if told:
            self.screen.note(f"[{told}]")
        self.screen.gap()

    def _check_length(self, text: str) -> None:
        if len(text) > _MOST_CHARACTERS * self.context:
            raise PromptTooLongError(
                f"this is too long and was not sent: {len(text):,} characters, and the model takes {self.context:,} "
                f"tokens"
            )


@contextmanager
def _cancelled_by_interrupt() -> Iterator[threading.Event]:
    """Yields an event that Ctrl-C sets, however often it is pressed."""
    cancel = threading.Event()

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        cancel.set()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, before)
