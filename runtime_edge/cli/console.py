"""Writing for people: tables and JSON on stdout, progress on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from runtime_edge.cli import interrupts
from runtime_edge.cli.forecast import Forecast, announcement, duration

_MB = 10**6
_ANNOUNCED = 5.0  # seconds: nobody has to be told of less
_NAME_WIDTH = 24  # characters


def print_json(value: Any) -> None:
    """Prints a value as indented JSON on stdout."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def print_pairs(rows: Iterable[tuple[str, str]]) -> None:
    """Prints names and values in two columns on stdout; long values are wrapped in theirs."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    _print(table)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int = 1) -> None:
    """Prints a table on stdout; columns from `numbers_from` on are aligned to the right."""
    table = Table(box=None, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index >= numbers_from else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    _print(table)


def _print(table: Table) -> None:
    # A pipe has no width: never break what a program or a diff will read.
    width = None if sys.stdout.isatty() else 10_000
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def megabytes(size: int) -> str:
    """A size in bytes as text in MB (10^6 bytes)."""
    return f"{size / _MB:,.1f} MB"


class StageProgress:
    """Progress on stderr, a line a stage: a bar that moves on a terminal, its time when done elsewhere.

    Where it is foreseen how long all stages take, that is said first, and on a terminal they share one bar.

    Args:
        animate: Whether a bar may move; where speed is measured, that would take time from what is measured.
    """

    def __init__(self, *, animate: bool = True) -> None:
        self._animate = animate and sys.stderr.isatty()
        self._bars: Progress | None = None
        self._forecast: Forecast | None = None
        self._inside: list[float] = []  # seconds of the stages inside each open one: a line has a stage's own

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Shows a stage while the context lasts; yields a function that advances it by n of `total`.

        All of it raise KeyboardInterrupt where Ctrl-C came and was swallowed.
        """
        interrupts.check()
        show = self._line if not self._animate else self._part if self._forecast is not None else self._bar
        start = time.perf_counter()
        self._inside.append(0.0)
        try:
            with show(name, total) as advance:

                def checked(count: int) -> None:
                    interrupts.check()
                    advance(count)

                yield checked
                interrupts.check()
        finally:
            self._inside.pop()
            if self._inside:
                self._inside[-1] += time.perf_counter() - start

    def note(self, text: str) -> None:
        """Shows a line on how the stage goes."""
        if self._bars is not None:
            self._bars.console.print(text, highlight=False, markup=False)
        else:
            click.echo(text, err=True)

    @contextmanager
    def forecast(self, stages: Sequence[tuple[str, float]]) -> Iterator[None]:
        """Says how long all stages that are opened in the context will take together, and shows how much is left.

        Args:
            stages: Their names, in the order that they end in, and seconds. Others may come, and some may not.
        """
        foreseen = Forecast(stages)
        if foreseen.total >= _ANNOUNCED:
            self.note(announcement(stages))
        if not self._animate:
            yield
            return
        columns = (_Name(foreseen), _Done(foreseen), _Left(foreseen), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), refresh_per_second=5, transient=True) as progress:
            progress.add_task("", total=None)
            self._bars, self._forecast = progress, foreseen
            try:
                yield
            finally:
                self._bars = self._forecast = None

    @contextmanager
    def _part(self, name: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Shows a stage in the bar of all."""
        forecast, start = self._forecast, time.perf_counter()
        assert forecast is not None
        forecast.begin(name, total)
        try:
            yield forecast.advance
        finally:
            forecast.end()
        self.note(f"{name}: {time.perf_counter() - start - self._inside[-1]:.2f} s")

    @contextmanager
    def _bar(self, name: str, total: int | None) -> Iterator[Callable[[int], None]]:
        name_column = TextColumn("{task.description:<24}")
        columns = (name_column, BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), refresh_per_second=5) as progress:
            task = progress.add_task(name, total=total)
            self._bars = progress
            try:
                yield lambda count: progress.advance(task, count)
            finally:
                self._bars = None
            progress.update(task, total=total or 1, completed=total or 1)

    @contextmanager
    def _line(self, name: str, total: int | None) -> Iterator[Callable[[int], None]]:
        start = time.perf_counter()
        yield lambda count: None
        click.echo(f"{name}: {time.perf_counter() - start - self._inside[-1]:.2f} s", err=True)


class _Foreseen(ProgressColumn):
    """A column that shows a forecast, which moves with the time too."""

    def __init__(self, forecast: Forecast) -> None:
        super().__init__()
        self._forecast = forecast


class _Name(_Foreseen):
    def render(self, task: Task) -> Text:
        return Text(f"{self._forecast.stage or 'working':<{_NAME_WIDTH}}")


class _Done(_Foreseen):
    def render(self, task: Task) -> ProgressBar:
        return ProgressBar(total=self._forecast.total or 1, completed=self._forecast.done, width=40)


class _Left(_Foreseen):
    def render(self, task: Task) -> Text:
        return Text(f"{duration(self._forecast.left)} left")
