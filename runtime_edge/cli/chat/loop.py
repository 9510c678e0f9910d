"""Reads messages and answers them until the person leaves."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from runtime_edge.cli import interrupts
from runtime_edge.cli.chat import blocks, commands
from runtime_edge.cli.chat.history import HistoryFile
from runtime_edge.cli.chat.plain import PlainReader
from runtime_edge.cli.chat.screen import Screen
from runtime_edge.cli.chat.session import Session
from runtime_edge.cli.chat.terminal import unechoed
from runtime_edge.errors import LeptonError

if TYPE_CHECKING:
    from runtime_edge.model import Model

_LACKS_EDITOR = "Arrow keys, history and completion need a package: pip install prompt_toolkit"


class Reader(Protocol):
    """Where messages come from."""

    def read(self) -> str:
        """Returns a message (raises EOFError, KeyboardInterrupt)."""


def chat(
    model: Model,
    system: str | None,
    options: dict[str, Any],
    screen: Screen,
    *,
    is_markdown: bool = True,
    has_history: bool = True,
) -> None:
    """Chats until the person leaves.

    Args:
        model: A model with a chat template.
        system: What it is told before the conversation, or None.
        options: Options of `Model.stream`.
        screen: Where it is shown.
        is_markdown: Whether answers are rendered.
        has_history: Whether what is typed is remembered in a file.

    Raises:
        ChatTemplateError: The model has no chat template, or it takes no system message.
    """
    is_markdown = is_markdown and screen.has_unicode
    with unechoed():
        session = Session(model, system, options, screen, is_markdown=is_markdown)
        history = HistoryFile.of_user() if has_history else HistoryFile(None)
        reader = _reader(screen, history)
        screen.note(f"{model.manifest.name}, {session.context:,} tokens of context. /help shows commands and keys.")
    with _noted() as presses:
        _talk(session, reader, history, presses)


def _talk(session: Session, reader: Reader, history: HistoryFile, presses: Presses) -> None:
    is_warned = False
    while not session.is_over:
        try:
            presses.check()
            if history.problem is not None:
                session.screen.note(f"What is typed is not remembered: {history.problem}")
                history.problem = None
            text = _cleaned(reader.read())
        except EOFError:
            session.screen.note("")
            return
        except KeyboardInterrupt:
            interrupts.check()  # another signal than Ctrl-C ends the program
            if is_warned:
                return
            is_warned = True
            session.screen.note("Ctrl-C once more, or Ctrl-D, ends the chat.")
            continue
        is_warned = False
        if text.strip():
            _do(session, text)


def _do(session: Session, text: str) -> None:
    """Runs a command or answers a message; what goes wrong is told, and the chat goes on."""
    try:
        if commands.is_command(text):
            commands.run(session, text)
        else:
            session.ask(_message(text))
    except LeptonError as error:
        session.screen.error(error.message, error.hint)
    except OSError as error:
        session.screen.error(f"{error.filename or 'file'}: {error.strerror or error}")
    except MemoryError:
        session.screen.error("not enough memory", "/clear starts over with less")


def _cleaned(text: str) -> str:
    """A message as text that every tokenizer takes: bytes that were no UTF-8 become U+FFFD."""
    return blocks.content(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _message(text: str) -> str:
    """What is sent of a message: without blanks around it, but with those that indent the first of several lines."""
    text = text.rstrip()
    return text.lstrip("\n") if "\n" in text.strip() else text.strip()


def _reader(screen: Screen, history: HistoryFile) -> Reader:
    if not (sys.stdin.isatty() and screen.is_terminal):
        return PlainReader()
    try:
        from runtime_edge.cli.chat.editor import Editor
    except ImportError:
        screen.note(_LACKS_EDITOR)
        return PlainReader()
    return Editor(history, commands.names(), commands.arguments)


class Presses:
    """Ctrl-C between prompts and answers: it is noted, and counts at the next prompt."""

    def __init__(self) -> None:
        self._is_pressed = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handles the signal."""
        self._is_pressed = True

    def check(self) -> None:
        """Raises KeyboardInterrupt where it was pressed since the last call."""
        signal.signal(signal.SIGINT, self.note)  # an editor may have left another handler
        was_pressed, self._is_pressed = self._is_pressed, False
        if was_pressed:
            raise KeyboardInterrupt


@contextmanager
def _noted() -> Iterator[Presses]:
    """Ctrl-C raises nothing while the context lasts: prompts and answers have ways of their own."""
    presses = Presses()
    before = signal.signal(signal.SIGINT, presses.note)
    try:
        yield presses
    finally:
        signal.signal(signal.SIGINT, before)
