"""Messages of several lines: a backslash at a line's end, and blocks between triple quotes."""

from __future__ import annotations

import re

QUOTES = '"""'
_BLOCK = re.compile(rf"(\s*(?:/[a-z]+!?\s+)?){QUOTES}")  # at the start, or as a command's argument


def is_open(text: str) -> bool:
    """Whether `text` begins a block that has not ended, so that further lines belong to it."""
    return _BLOCK.match(text) is not None and text.count(QUOTES) == 1


def content(text: str) -> str:
    """The message without the triple quotes around it; text that is no whole block stays as it is."""
    begins = _BLOCK.match(text)
    ended = text.rstrip()
    if begins is None or text.count(QUOTES) != 2 or not ended.endswith(QUOTES):
        return text
    return begins[1] + ended[begins.end() : -len(QUOTES)].strip("\n")
