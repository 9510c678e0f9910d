"""What a chat shows: answers on stdout, everything else on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from runtime_edge.cli.chat import markdown
from runtime_edge.cli.chat.terminal import printable, unechoed, with_any_letter

_REFRESHES = 12  # a second, at most
_SPARE = 2  # lines of the screen that an open block leaves free
_KEPT = 3  # lines of an open block of code that is higher than the screen


class Writes(Protocol):
    """Takes an answer piece by piece."""

    def write(self, text: str) -> None:
        """Shows a piece."""

    def end(self) -> None:
        """Shows what is left, and ends the line."""


class Screen:
    """Notes, errors, tables and answers.

    Attributes:
        is_terminal: Whether answers go to a terminal that can do more than write lines.
    """

    def __init__(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with_any_letter(stream)  # a terminal may have fewer letters than a model
        self._out = Console(theme=markdown.THEME, highlight=False, markup=False, emoji=False)
        self._err = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self.is_terminal = self._out.is_terminal and not self._out.is_dumb_terminal
        self.has_unicode = self._out.encoding.lower().replace("-", "").startswith("utf")

    def note(self, text: str) -> None:
        """Tells something in a line."""
        self._tell(Text(printable(text), style="dim"))

    def error(self, message: str, hint: str | None = None) -> None:
        """Tells what went wrong in a line."""
        told = message if hint is None else f"{message} ({hint})"
        self._tell(Text.assemble(("error: ", "bold red"), printable(told)))

    def _tell(self, text: Text) -> None:
        self._err.print(text, soft_wrap=not self._err.is_terminal)

    def gap(self) -> None:
        """A blank line on a terminal."""
        if self.is_terminal:
            self._out.print()

    def pairs(self, rows: Iterable[tuple[str, str]]) -> None:
        """Shows names and values in two columns."""
        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(printable(name), printable(value), style="dim")
        self._err.print(table)

    def waiting(self, text: str) -> AbstractContextManager[object]:
        """A spinner with a text and the time, while the context lasts; nothing where there is no terminal."""
        if not (self._err.is_terminal and not self._err.is_dumb_terminal):
            return nullcontext()
        progress = Progress(
            SpinnerColumn("dots" if self.has_unicode else "line"), TextColumn("{task.description}"),
            TimeElapsedColumn(), console=self._err, transient=True,
        )  # fmt: skip
        progress.add_task(text, total=None)
        return progress

    @contextmanager
    def loading(self) -> Iterator[None]:
        """A spinner while the model is loaded; what is typed meanwhile does not appear before the prompt does."""
        with unechoed(), self.waiting("loading"):
            yield

    @contextmanager
    def answer(self, *, is_markdown: bool) -> Iterator[Writes]:
        """Shows an answer as it comes: a spinner first, where there is a terminal. Keys do not appear meanwhile."""
        writer: Writes = _Markdown(self._out) if is_markdown and self.is_terminal else _Plain(self.is_terminal)
        first = _AfterSpinner(self.waiting("reading"), writer)
        with unechoed():
            try:
                yield first
            finally:
                first.end()


class _AfterSpinner:
    """Ends the spinner where the answer begins."""

    def __init__(self, spinner: AbstractContextManager[object], writer: Writes) -> None:
        self._spinner: AbstractContextManager[object] | None = spinner
        self._writer = writer
        spinner.__enter__()

    def write(self, text: str) -> None:
        if text:
            self._stop()
            self._writer.write(text)

    def end(self) -> None:
        self._stop()
        self._writer.end()

    def _stop(self) -> None:
        spinner, self._spinner = self._spinner, None
        if spinner is not None:
            spinner.__exit__(None, None, None)


class _Plain:
    """The answer as it is."""

    def __init__(self, is_terminal: bool) -> None:
        self._is_terminal = is_terminal
        self._is_begun = self._ends_line = False

    def write(self, text: str) -> None:
        shown = printable(text) if self._is_terminal else text
        sys.stdout.write(shown)
        sys.stdout.flush()
        self._is_begun, self._ends_line = True, shown.endswith("\n")

    def end(self) -> None:
        if self._is_begun and not self._ends_line:
            sys.stdout.write("\n")
        sys.stdout.flush()


class _Markdown:
    """The answer rendered: finished blocks are printed for good, the open one is drawn anew below them.

    What is drawn anew is never higher than the screen, so that nothing of it is left when it is erased.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._unfinished = markdown.Unfinished()
        self._live: Live | None = None
        self._drawn = 0.0

    def write(self, text: str) -> None:
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop")
            self._live.start()
        self._unfinished.text += printable(text)
        now = time.monotonic()
        if now - self._drawn < 1 / _REFRESHES:
            return
        self._drawn = now
        for taken in self._unfinished.take():
            self._print(taken)
        shown = self._lines(self._unfinished.gap + self._unfinished.text)
        height = max(1, self._console.size.height - _SPARE)
        if len(shown) > height and (code := self._unfinished.take_code(_KEPT)):
            self._print(code)
            shown = self._lines(self._unfinished.text)
        self._live.update(_Lines(shown[-height:]), refresh=True)

    def end(self) -> None:
        if self._live is None:
            return
        rest = self._unfinished.take_all()
        self._live.update(_Lines([]), refresh=True)
        self._live.stop()
        for taken in rest:
            self._print(taken)

    def _print(self, text: str) -> None:
        self._console.print(_Lines(self._lines(text)), end="")

    def _lines(self, text: str) -> list[list[Segment]]:
        # A terminal whose last column is full does not agree with others on where the cursor is.
        return markdown.lines(self._console, text, max(1, self._console.size.width - 1))


class _Lines:
    """Lines that are rendered already."""

    def __init__(self, rendered: list[list[Segment]]) -> None:
        self._rendered = rendered

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self._rendered:
            yield from line
            yield Segment.line()
