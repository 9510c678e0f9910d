"""Stop strings: found in the tokens of an answer, special ones among them, before their text is given out.

The rule is that of `transformers`' `StopStringCriteria`: an answer ends with the token that completes a stop string in
the text of all tokens, which is compared as bytes, so that a token that ends within a character counts; a string may
begin in the prompt, and special tokens count with their text, which decoding leaves out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from runtime_edge.detokenize import Detokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from runtime_edge.tokenizer import BoundedTokenizer

_BEFORE = "abcdef"  # the text in front of a token whose own text is wanted: at a text's start decoders leave out spaces
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Pieces:
    """What each token adds to a text, as bytes; special tokens add theirs too.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer | BoundedTokenizer) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[int, bytes] = {}
        self._before: list[int] = tokenizer.encode(_BEFORE, add_special_tokens=False).ids
        decoder = b"" if tokenizer.decoder is None else tokenizer.decoder.__getstate__()
        self._bytes_of: Callable[[str], bytes | None] = lambda token: None
        if b'"type":"ByteFallback"' in decoder:
            self._bytes_of = _fallback_bytes
        elif b'"type":"ByteLevel"' in decoder:
            self._bytes_of = _level_bytes

    def __call__(self, token_id: int) -> bytes:
        """Returns the bytes; of an id without a token none."""
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self._piece(token_id)
        return piece

    def _piece(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        piece = self._bytes_of(token)
        if piece is not None:
            return piece
        before = self._decode(self._before)
        text = self._decode([*self._before, token_id])
        return (text[len(before) :] if text.startswith(before) else self._decode([token_id])).encode()

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)


def _level_bytes(token: str) -> bytes | None:
    """The bytes of a byte-level token; None where it is one that was added with other characters."""
    try:
        return bytes([_LEVEL[character] for character in token])
    except KeyError:
        return None


def _fallback_bytes(token: str) -> bytes | None:
    """The byte of a token such as `<0x0A>`; None of another."""
    match = _BYTE.fullmatch(token)
    return None if match is None else bytes([int(match[1], 16)])


def _level_alphabet() -> dict[str, int]:
    """The byte of each character of GPT-2's alphabet: printable ones are themselves, the others come after 255."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


_LEVEL = _level_alphabet()


class StopStrings:
    """Finds the stop string that a token completes, and holds tokens back that may be part of one.

    Args:
        stops: Strings, none of them empty.
        pieces: The bytes of each token.
        prompt: Tokens before the new ones: a stop string may begin among them.

    Attributes:
        is_complete: Whether the newest token completed one.
        cut: Bytes at the end of the last token released that belong to it.
    """

    def __init__(self, stops: Sequence[str], pieces: Callable[[int], bytes], prompt: Sequence[int] = ()) -> None:
        self._stops = tuple(stop.encode() for stop in stops)
        self._longest = max(map(len, self._stops), default=0)
        self._pieces = pieces
        self._text = b"".join(map(pieces, prompt[-self._longest :])) if stops else b""
        self._held: list[tuple[int, int, int]] = []  # tokens, and where each begins and ends in `_text`
        self._release(len(self._text) - self._possible_start())
        self.is_complete = False
        self.cut = 0

    def push(self, token_id: int) -> list[int]:
        """Adds a token; returns the text's next tokens. No stop string begins in them, but in the last one at `cut`."""
        begin = len(self._text)
        self._text += self._pieces(token_id)
        self._held.append((token_id, begin, len(self._text)))
        starts = [start for start in map(self._text.find, self._stops) if start >= 0]
        if not starts:
            return self._release(len(self._text) - self._possible_start())
        self.is_complete = True
        start = min(starts)
        before = [(token, end) for token, begin, end in self._held if end <= start or begin < start]
        self._held = []
        self.cut = max(0, before[-1][1] - start) if before else 0
        return [token for token, _ in before]

    def ending(self, token_id: int) -> str:
        """The text of the last `cut` bytes of a token; those that are no character are U+FFFD."""
        piece = self._pieces(token_id)
        return piece[len(piece) - self.cut :].decode("utf-8", "replace")

    def flush(self) -> list[int]:
        """Returns the tokens that are held back: nothing more comes."""
        return self._release(len(self._text))

    def _release(self, start: int) -> list[int]:
        """Gives out the tokens that end at `start` or before, and forgets their text."""
        count = next((index for index, (_, _, end) in enumerate(self._held) if end > start), len(self._held))
        released = [token for token, _, _ in self._held[:count]]
        self._held = self._held[count:]
        begin = min(start, self._held[0][1]) if self._held else start
        self._text = self._text[begin:]
        self._held = [(token, first - begin, end - begin) for token, first, end in self._held]
        return released

    def _possible_start(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        for length in range(min(self._longest - 1, len(self._text)), 0, -1):
            tail = self._text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0


class Answer:
    """The text of an answer while its tokens come, up to a stop string.

    Args:
        detokenizer: Begun with the prompt.
        stops: Stop strings, begun with the prompt too; None where there are none.

    Attributes:
        is_stopped: Whether a stop string is complete.
    """

    def __init__(self, detokenizer: Detokenizer, stops: StopStrings | None) -> None:
        self._detokenizer = detokenizer
        self._stops = stops
        self.is_stopped = False

    def push(self, token_id: int) -> str:
        """Adds a token; returns the text that is certain with it."""
        if self._stops is None:
            return self._detokenizer.push(token_id)
        tokens = self._stops.push(token_id)
        return self._before_stop(tokens) if self._stops.is_complete else self._text(tokens)

    def end(self, token_id: int | None = None) -> str:
        """Returns the text that is held back: nothing more comes.

        `token_id` is the token that ended the answer, where one did: it has no text, and may complete a stop string.
        """
        tokens: list[int] = []
        if self._stops is not None and token_id is None:
            tokens = self._stops.flush()
        elif self._stops is not None and token_id is not None:
            tokens = self._stops.push(token_id)
            if self._stops.is_complete:
                return self._before_stop(tokens)
            tokens = [*tokens, *self._stops.flush()][:-1]
        return self._text(tokens) + self._detokenizer.flush()

    def _before_stop(self, tokens: list[int]) -> str:
        """The text of tokens; of the last one what is before the stop string."""
        assert self._stops is not None
        self.is_stopped = True
        if not self._stops.cut:
            return self._text(tokens) + self._detokenizer.flush()
        *others, last = tokens
        before = self._text(others)
        end = self._detokenizer.push(last) + self._detokenizer.flush()
        if self._detokenizer.has_text(last):
            end = end[: max(0, len(end) - len(self._stops.ending(last)))]
        return before + end

    def _text(self, tokens: Sequence[int]) -> str:
        return "".join(map(self._detokenizer.push, tokens))
