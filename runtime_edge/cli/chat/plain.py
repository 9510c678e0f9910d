"""Reads messages where there is no terminal to edit on, or no prompt_toolkit."""

from __future__ import annotations

import contextlib
import signal
import sys

from runtime_edge.cli.chat import blocks

_PROMPT, _MORE = "> ", "  "


class PlainReader:
    """Reads lines of stdin. On a terminal, `input` edits them with what Python has for it."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        if self._is_terminal:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 (arrow keys, where Python has it)

    def read(self) -> str:
        """Returns a message (raises EOFError where the input ends, KeyboardInterrupt)."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return self._read()
        finally:
            signal.signal(signal.SIGINT, before)

    def _read(self) -> str:
        text = self._line(_PROMPT)
        while text.endswith("\\") or blocks.is_open(text):
            text = text.removesuffix("\\") if not blocks.is_open(text) else text
            text += "\n" + self._line(_MORE)
        return text

    def _line(self, prompt: str) -> str:
        if self._is_terminal:
            try:
                return input(prompt)
            except KeyboardInterrupt:
                print()
                raise
        sys.stderr.write(prompt)  # stdout is for answers
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n")
