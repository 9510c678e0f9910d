"""What a terminal may be sent, and what it does while an answer comes."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import TextIO

# Characters that move the cursor or begin a sequence of commands; a line feed and a tabulator are text.
_SHOWN = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n\r"},
    ord("\r"): None,
    0x7F: "\u2421",
    **dict.fromkeys(range(0x80, 0xA0), "\ufffd"),
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}


def printable(text: str) -> str:
    """Text that a terminal shows and does not obey: control characters become visible."""
    return text.translate(_SHOWN)


def with_any_letter(stream: TextIO) -> None:
    """Has a stream write a question mark for letters that its encoding lacks, where it would fail."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


@contextlib.contextmanager
def unechoed() -> Iterator[None]:
    """Keys do not appear while the context lasts: what is typed is there for the next prompt."""
    try:
        import termios
    except ImportError:  # not on Windows
        yield
        return
    try:
        handle = sys.stdin.fileno()
        before = termios.tcgetattr(handle)
    except (OSError, ValueError, termios.error):  # no terminal
        yield
        return
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(handle, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)
