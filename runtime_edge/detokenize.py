"""Turns tokens into text while they come: whole characters only, in linear time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class _Decodes(Protocol):
    def decode(self, token_ids: Any, *, skip_special_tokens: bool = True) -> str: ...


_BROKEN = "\ufffd"  # what a decoder gives for bytes that are not (yet) a character
_MAX_HELD = 8  # tokens; a character has at most 4 bytes, so text that is broken for longer stays broken
_MAX_BYTES = 4  # of a character in UTF-8
_CONTEXT = 8  # tokens of the prompt before the first new one, which tell a word's start from its middle


class Detokenizer:
    """Text of new tokens, as decoding prompt and new tokens together would give it.

    A window of tokens is decoded with and without the newest; the difference is their text. The window begins where
    text was last given out, so each token is decoded a bounded number of times. Special tokens have no text.

    Bytes that are no UTF-8 give U+FFFD. A decoder with byte fallback marks every byte of a run of byte tokens so when
    one of them is bad; here a character that was whole has been given out before, and stays.

    Args:
        tokenizer: The tokenizer.
        special_ids: Ids that have no text.
        prompt: Tokens that precede the new ones.
        replacements: What is replaced in the text once tokens are joined (" ." by "."), one pair after the other:
            what may begin one is held back.
    """

    def __init__(
        self,
        tokenizer: _Decodes,
        special_ids: frozenset[int],
        prompt: Sequence[int] = (),
        *,
        replacements: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._stages = [_Replacement(pattern, content) for pattern, content in replacements]
        self._special_ids = special_ids
        before = _last_visible(prompt, special_ids, _CONTEXT + _MAX_BYTES - 1)
        for start in range(max(0, len(before) - _CONTEXT), -1, -1):
            self._window = before[start:]
            self._given = self._decode(self._window)
            if not self._given.startswith(_BROKEN):  # else the window cuts a character: begin earlier
                break
        self._read = len(self._window)  # window[:read] has been given out, as text `_given`

    def has_text(self, token_id: int) -> bool:
        """Returns whether a token is one that decoding gives out."""
        return token_id not in self._special_ids

    def push(self, token_id: int) -> str:
        """Adds a token; returns the text that is complete with it, often that of one token, or none."""
        text = self._push(token_id)
        for stage in self._stages:
            text = stage.push(text)
        return text

    def _push(self, token_id: int) -> str:
        if token_id in self._special_ids:
            return ""
        self._window.append(token_id)
        text = self._decode(self._window)
        held = len(self._window) - self._read
        if text.endswith(_BROKEN) and held < _MAX_HELD:
            return ""
        if len(text) == len(self._given) and held < _MAX_HELD:
            return ""
        return self._give(text)

    def flush(self) -> str:
        """Returns the text still held, an incomplete character as U+FFFD."""
        text = "" if len(self._window) == self._read else self._give(self._decode(self._window))
        for stage in self._stages:
            text = stage.push(text) + stage.flush()
        return text

    def _give(self, text: str) -> str:
        new = self._difference(text)
        del self._window[: self._read]
        self._read = len(self._window)
        self._given = self._decode(self._window)
        return new

    def _difference(self, text: str) -> str:
        if text.startswith(self._given):
            return text[len(self._given) :]
        whole = self._given.rstrip(_BROKEN)
        if whole != self._given and text.startswith(whole):
            return text[len(whole) :]  # the new tokens completed a character that the prompt began
        # The decoder took back text that was given out (a bad byte in a run of byte tokens): decode the rest alone.
        return self._decode(self._window[self._read :])

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True) if token_ids else ""


def _last_visible(token_ids: Sequence[int], special_ids: frozenset[int], count: int) -> list[int]:
    visible: list[int] = []
    for token_id in reversed(token_ids):
        if len(visible) == count:
            break
        if token_id not in special_ids:
            visible.append(token_id)
    return visible[::-1]


class _Replacement:
    """`str.replace` on text that comes in pieces: what may begin the pattern is held back."""

    def __init__(self, pattern: str, content: str) -> None:
        self._pattern, self._content = pattern, content
        self._held = ""

    def push(self, text: str) -> str:
        *whole, rest = (self._held + text).split(self._pattern)
        lengths = range(min(len(self._pattern) - 1, len(rest)), 0, -1)
        keep = next((length for length in lengths if rest.endswith(self._pattern[:length])), 0)
        self._held = rest[len(rest) - keep :]
        return self._content.join([*whole, rest[: len(rest) - keep]])

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held
