"""Edits messages on a terminal with prompt_toolkit: arrow keys, history, several lines, pasted text, completion."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style

from runtime_edge.cli.chat import blocks
from runtime_edge.cli.chat.history import HistoryFile

_PROMPT = FormattedText([("class:prompt", "> ")])
_MORE = "  "  # before further lines
_PLACEHOLDER = FormattedText([("class:placeholder", "a message, or /help")])
_STYLE = Style.from_dict({"prompt": "bold", "placeholder": "ansibrightblack"})


class Editor:
    """Reads messages from the terminal.

    Args:
        history: Where what is typed is remembered.
        arguments: What may follow a command: None for a file's name, or words; raises KeyError for what is none.
        commands: Names of commands, with their slash, in their order.
    """

    def __init__(
        self, history: HistoryFile, commands: Sequence[str], arguments: Callable[[str], Sequence[str] | None]
    ) -> None:
        output = create_output()
        if isinstance(output, Vt100_Output):
            output.enable_cpr = False  # a slow terminal says too late where its cursor is, as if it were typed
        self._was_cleared = False
        self._session: PromptSession[str] = PromptSession(
            multiline=True,
            history=_Remembered(history),
            completer=_Commands(commands, arguments),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            key_bindings=self._keys(),
            enable_suspend=True,
            style=_STYLE,
            output=output,
            prompt_continuation=_MORE,
            placeholder=lambda: "" if self._session.app.is_done else _PLACEHOLDER,
        )

    def read(self) -> str:
        """Returns a message, which is empty where Ctrl-C left one unsent.

        Raises EOFError after Ctrl-D, KeyboardInterrupt after Ctrl-C where nothing was typed.
        """
        self._was_cleared = False
        try:
            return self._session.prompt(_PROMPT)
        except KeyboardInterrupt:
            if self._was_cleared:
                return ""
            raise

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        typing = has_focus(DEFAULT_BUFFER)  # and not searching the history

        @keys.add("enter", filter=typing)
        def enter(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            is_open = blocks.is_open(buffer.text)
            if not is_open and buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
                buffer.delete_before_cursor()
                is_open = True
            if is_open:
                buffer.newline(copy_margin=False)
            else:
                buffer.validate_and_handle()

        @keys.add("escape", "enter", filter=typing)
        def new_line(event: KeyPressEvent) -> None:
            event.current_buffer.newline(copy_margin=False)

        @keys.add("c-c", filter=typing)
        def leave(event: KeyPressEvent) -> None:
            self._was_cleared = bool(event.current_buffer.text)
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

        return keys


class _Remembered(History):
    """The history of the editor, kept in a file."""

    def __init__(self, file: HistoryFile) -> None:
        super().__init__()
        self._file = file

    def load_history_strings(self) -> Iterable[str]:
        return reversed(self._file.read())

    def store_string(self, string: str) -> None:
        self._file.add(string)


class _Commands(Completer):
    """Completes names of commands, and what follows them."""

    def __init__(self, commands: Sequence[str], arguments: Callable[[str], Sequence[str] | None]) -> None:
        self._commands, self._arguments = commands, arguments
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        typed = document.text_before_cursor
        if not typed.startswith("/") or "\n" in typed:
            return
        name, space, argument = typed.partition(" ")
        if not space:
            yield from (Completion(each, -len(typed)) for each in self._commands if each.startswith(typed))
            return
        try:
            words = self._arguments(name)
        except KeyError:
            return
        if words is None:
            yield from self._paths.get_completions(Document(argument, len(argument)), complete_event)
        else:
            yield from (Completion(word, -len(argument)) for word in words if word.startswith(argument))
