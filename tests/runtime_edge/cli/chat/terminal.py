"""A program in a pseudo-terminal, and the screen that a person would see."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyte

CTRL_C, CTRL_D = "\x03", "\x04"
UP, LEFT, ALT_ENTER, TAB = "\x1b[A", "\x1b[D", "\x1b\r", "\t"


class Terminal:
    """Runs a program on a screen of its own.

    Args:
        command: The program and its arguments.
        variables: Environment variables, beside those of this process; None takes one away.
        columns: Of the screen.
        rows: Of the screen.
        folder: Where it runs.

    Attributes:
        output: Everything that was written, with its control sequences.
    """

    def __init__(
        self,
        command: Sequence[object],
        *,
        variables: Mapping[str, str | None] | None = None,
        columns: int = 80,
        rows: int = 24,
        folder: Path | None = None,
    ) -> None:
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.01)
        self._stream = pyte.ByteStream(self._screen)
        self.output = b""
        environment = {**os.environ, "TERM": "xterm-256color", **(variables or {})}
        for name in ("NO_COLOR", "COLUMNS", "LINES"):
            if name not in (variables or {}):
                environment.pop(name, None)
        self._keyboard, terminal = pty.openpty()
        self._set_size(columns, rows)

        def lead() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            list(map(str, command)), stdin=terminal, stdout=terminal, stderr=terminal, cwd=folder, preexec_fn=lead,
            env={name: value for name, value in environment.items() if value is not None},
        )  # fmt: skip
        os.close(terminal)

    @classmethod
    def chat(cls, artifact: Path, *options: object, **more: object) -> Terminal:
        """Starts `run` without a prompt."""
        return cls([sys.executable, "-m", "runtime_edge", "run", artifact, *options], **more)  # type: ignore[arg-type]

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._keyboard)

    def type(self, keys: str | bytes) -> None:
        """Types keys."""
        os.write(self._keyboard, keys if isinstance(keys, bytes) else keys.encode())

    def paste(self, text: str) -> None:
        """Pastes text, as a terminal with bracketed paste does."""
        self.type("\x1b[200~" + text.replace("\n", "\r") + "\x1b[201~")

    def resize(self, columns: int, rows: int) -> None:
        """Changes the size of the screen."""
        self._screen.resize(rows, columns)
        self._set_size(columns, rows)

    def interrupt(self) -> None:
        """Sends SIGINT."""
        self.process.send_signal(signal.SIGINT)

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, seconds: float = 0.05) -> bool:
        """Reads what the program writes for so long; returns whether it wrote anything."""
        if not select.select([self._keyboard], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._keyboard, 65_536)
        except OSError:  # the program has ended
            return False
        self.output += data
        self._stream.feed(data)
        return bool(data)

    def lines(self) -> list[str]:
        """What stands on the screen and above it, without what is empty at the end."""
        above = [self._text(row) for row in self._screen.history.top]
        lines = above + [line.rstrip() for line in self._screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def _text(self, row: Mapping[int, pyte.screens.Char]) -> str:
        return "".join(row[column].data for column in range(self._screen.columns)).rstrip()

    @property
    def shown(self) -> str:
        """All lines as one text."""
        return "\n".join(self.lines())

    def wait(self, wanted: str | Callable[[str], bool], seconds: float = 30.0) -> str:
        """Waits until a text is shown, or a test of all that is shown holds; returns what is shown."""
        until = time.monotonic() + seconds
        holds = wanted if callable(wanted) else lambda shown: wanted in shown
        while not holds(shown := self.shown):
            if time.monotonic() > until:
                raise AssertionError(f"expected {wanted!r}, shown:\n{shown}")
            if not self.read() and self.process.poll() is not None and not self.read(0.2) and not holds(self.shown):
                raise AssertionError(f"the program ended with {self.process.returncode} before {wanted!r}:\n{shown}")
        return shown

    def settle(self, seconds: float = 0.3) -> str:
        """Waits until nothing was written for so long; returns what is shown."""
        while self.read(seconds):
            pass
        return self.shown

    def end(self, seconds: float = 30.0) -> int:
        """Waits for the program's end; returns its exit code."""
        until = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < until:
            self.read()
        while self.read(0.1):
            pass
        return self.process.wait(timeout=1)

    def is_cooked(self) -> bool:
        """Whether the terminal echoes keys and edits lines, as it did at first."""
        flags = termios.tcgetattr(self._keyboard)[3]
        return bool(flags & termios.ECHO and flags & termios.ICANON)
