"""What a tokenizer.json may ask for: bounds that are checked before the `tokenizers` library reads the file.

The library does what a file says, and a file of a few lines can say to make a thousand characters of each, twice. The
bounds are figures in this module; every tokenizer of transformers' converters passes them with room to spare. The
model's vocabulary is not parsed here: on a device that would take as long again as loading it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from runtime_edge.tokenizer_regex import ExpressionError, shortest_match

MAX_BYTES = 256 * 2**20  # of the file; the largest known have 35 MB
MAX_PART_BYTES = 2 * 2**20  # of the normalizer and the like; SentencePiece's table takes 0.3 MB
MAX_STAGES = 64  # of normalizers, of pre-tokenizers, of decoders, of post-processors; known ones have up to 8
MAX_GROWTH = 1024  # characters that the normalizers make of one; SentencePiece's table alone makes up to 18
USUAL_GROWTH = 400  # texts that grow more may be that many times shorter again: no real tokenizer makes so much of one
MAX_DECODER_GROWTH = 64  # characters that the decoders make of one of a token
MAX_TEMPLATE = 256  # pieces of a template, and tokens that it puts around a text; known ones have up to 4
MAX_SEQUENCES = 4  # copies of a text in its template
MAX_ADDED = 200_000  # added tokens; known models have up to 70,000
MAX_ADDED_CHARS = 2**26  # of all added tokens after normalization
MAX_TOKEN_BYTES = 16_384  # of one token as it is written in the file
MAX_AFFIX = 64  # characters that the model puts before or after every token
MAX_WORD_CHARS = 1024  # of a word that WordPiece cuts, in time that grows with the cube; 100 is usual
MAX_TEXT = 2**26  # characters of one text after normalization, at the most

# Characters that a Unicode form makes of one, at the most (NFKC of U+FDFA is 18 characters).
_FORMS = {
    "NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 3, "BertNormalizer": 12, "ByteLevel": 4,
}  # fmt: skip
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


class BoundError(ValueError):
    """A tokenizer.json that is refused; the text says what was expected and what was found."""


class _Model(msgspec.Struct):
    """Of the model what bounds are checked on."""

    vocab: msgspec.Raw = msgspec.Raw(b"null")
    merges: msgspec.Raw = msgspec.Raw(b"null")
    dropout: float | None = None
    max_input_chars_per_word: int | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None


class _Added(msgspec.Struct):
    content: str


class _File(msgspec.Struct):
    model: msgspec.Raw
    added_tokens: msgspec.Raw = msgspec.Raw(b"[]")
    normalizer: msgspec.Raw = msgspec.Raw(b"null")
    pre_tokenizer: msgspec.Raw = msgspec.Raw(b"null")
    post_processor: msgspec.Raw = msgspec.Raw(b"null")
    decoder: msgspec.Raw = msgspec.Raw(b"null")


@dataclass(frozen=True)
class Bounded:
    """A tokenizer.json within the bounds.

    Attributes:
        data: The file without truncation and padding, of each field the value that was checked.
        max_chars: Characters that a text may have.
    """

    data: bytes
    max_chars: int


def bounded(data: bytes) -> Bounded:
    """Returns a tokenizer.json as it may be given to the library.

    Raises:
        BoundError: It is no tokenizer, or asks for more than the bounds allow.
    """
    _at_most("bytes", len(data), MAX_BYTES)
    try:
        file = msgspec.json.decode(data, type=_File)
        added = msgspec.json.decode(file.added_tokens, type=list[_Added] | None) or []
        model = msgspec.json.decode(file.model, type=_Model)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BoundError(f"expected a tokenizer with a `model`, found an error: {error}") from error
    parts = {name: _parsed(name, getattr(file, name)) for name in _PARTS}
    for name, part in parts.items():
        _check_stages(name, part)
    growth = _growth("normalizer", parts["normalizer"], MAX_GROWTH)
    _growth("decoder", parts["decoder"], MAX_DECODER_GROWTH)
    _growth("pre_tokenizer", parts["pre_tokenizer"], MAX_GROWTH)
    _check_templates(parts["post_processor"])
    _check_model(model)
    _at_most("added tokens", len(added), MAX_ADDED)
    _at_most(
        "characters of added tokens after normalization", sum(len(token.content) for token in added) * growth,
        MAX_ADDED_CHARS,
    )  # fmt: skip
    _at_most("bytes of an added token", _longest_string(bytes(file.added_tokens)), MAX_TOKEN_BYTES)
    # The library reads the fields that were checked, whatever a file has twice.
    fields = [b'"version":"1.0","truncation":null,"padding":null', b'"added_tokens":' + bytes(file.added_tokens)]
    fields += [f'"{name}":'.encode() + bytes(getattr(file, name)) for name in (*_PARTS, "model")]
    room = MAX_TEXT if growth <= USUAL_GROWTH else MAX_TEXT // USUAL_GROWTH
    return Bounded(b"{" + b",".join(fields) + b"}", max(room // growth, 1))


def _at_most(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise BoundError(f"expected at most {limit:,} {what}, found {count:,}")


def _parsed(name: str, raw: msgspec.Raw) -> Any:
    _at_most(f"bytes of the {name}", len(bytes(raw)), MAX_PART_BYTES)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise BoundError(f"expected every field of the {name} once, found one twice")
        return fields

    try:
        return json.loads(bytes(raw), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        if isinstance(error, BoundError):
            raise
        raise BoundError(f"expected JSON in the {name}, found an error: {error}") from error


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yields every stage of a part: whatever has a type, or the form of one (older files leave the type away)."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting += [
                value[name] for name in ("normalizers", "pretokenizers", "processors", "decoders") if name in value
            ]
        elif isinstance(value, list):
            waiting += value


def _check_stages(name: str, part: Any) -> None:
    stages = list(_objects(part))
    _at_most(f"stages of the {name}", len(stages), MAX_STAGES)
    for stage in stages:
        if stage.get("type") == "FixedLength" and not (isinstance(size := stage.get("length", 5), int) and size > 0):
            raise BoundError(f"expected a length of at least 1 of the {name}, found {str(size)[:40]}")


def _growth(name: str, part: Any, limit: int) -> int:
    """Characters that a part makes of one, at the most; its expressions are checked on the way."""
    growth, form = 1, 1
    for stage in _objects(part):
        form = max(form, _FORMS.get(str(stage.get("type")), 1))
        if isinstance(added := stage.get("prepend"), str):
            growth *= 1 + len(added)
        if isinstance(charsmap := stage.get("precompiled_charsmap"), str):
            growth *= _charsmap_growth(name, charsmap)
        if "pattern" in stage:
            growth *= _replacement_growth(name, stage)
        if isinstance(prefix := stage.get("prefix"), str):
            _at_most(f"characters of the {name}'s prefix", len(prefix), MAX_AFFIX)
        # Each stage is looked at before the next one is, so that no product becomes long.
        _at_most(f"characters that the {name} makes of one", growth * form, limit)
    return growth * form


def _replacement_growth(name: str, stage: dict[str, Any]) -> int:
    pattern, content = stage["pattern"], stage.get("content", "")
    content = content if isinstance(content, str) else ""
    width = 0
    if isinstance(pattern, str):
        width = len(pattern)
    elif isinstance(pattern, dict) and isinstance(text := pattern.get("String"), str):
        width = len(text)
    elif isinstance(pattern, dict) and isinstance(expression := pattern.get("Regex"), str):
        try:
            width = shortest_match(expression)
        except ExpressionError as error:
            raise BoundError(f"the {name}'s expression {expression[:60]!r} is refused: {error}") from error
    if width == 0:
        return 1 + len(content)
    return max(1, -(-len(content) // width))


def _charsmap_growth(name: str, charsmap: str) -> int:
    """The longest replacement of a table of SentencePiece: a size, a trie of that size, and texts that end in zero."""
    try:
        table = base64.b64decode(charsmap, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BoundError(f"expected base64 in the {name}'s precompiled_charsmap, found another text") from error
    size = int.from_bytes(table[:4], "little")
    if len(table) < 8 or size % 4 or not 0 < size <= len(table) - 4:
        raise BoundError(f"expected a trie and texts in the {name}'s precompiled_charsmap, found {len(table)} bytes")
    texts = table[4 + size :]
    try:
        texts.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BoundError(f"expected texts in UTF-8 in the {name}'s precompiled_charsmap, found other bytes") from error
    return max(1, max((len(text.decode("utf-8")) for text in texts.split(b"\0")), default=1))


def _check_templates(part: Any) -> None:
    for stage in _objects(part):
        special = stage.get("special_tokens")
        sizes: dict[str, int] = {}
        if isinstance(special, dict):
            _at_most("special tokens of the template", len(special), MAX_TEMPLATE)
            for name, token in special.items():
                ids = token.get("ids") if isinstance(token, dict) else None
                sizes[name] = len(ids) if isinstance(ids, list) else 1
                _at_most("ids of one special token of the template", sizes[name], MAX_TEMPLATE)
        for name in ("single", "pair"):
            pieces = stage.get(name)
            if not isinstance(pieces, list):
                continue
            _at_most("pieces of the template", len(pieces), MAX_TEMPLATE)
            tokens = copies = 0
            for piece in pieces:
                inner = piece.get("SpecialToken") if isinstance(piece, dict) else None
                copies += inner is None
                if isinstance(inner, dict):
                    token = str(inner.get("id"))
                    if token not in sizes:
                        raise BoundError(f"expected the ids of the template's token {token[:40]!r}, found none")
                    tokens += sizes[token]
            _at_most("tokens around a text", tokens, MAX_TEMPLATE)
            _at_most("copies of a text in the template", copies, MAX_SEQUENCES)


def _check_model(model: _Model) -> None:
    if model.dropout:
        raise BoundError(f"expected no dropout, which makes a text other tokens every time, found {model.dropout}")
    _at_most("characters of a word (max_input_chars_per_word)", model.max_input_chars_per_word or 0, MAX_WORD_CHARS)
    for affix in (model.continuing_subword_prefix, model.end_of_word_suffix):
        _at_most("characters before or after every token", len(affix or ""), MAX_AFFIX)
    for raw in (model.vocab, model.merges):
        _at_most("bytes of a token", _longest_string(bytes(raw)), MAX_TOKEN_BYTES)


def _longest_string(data: bytes) -> int:
    """At least the bytes between the quotes of the longest string of a JSON text."""
    # Without the quotes that are escaped, what lies between two others holds a string whole.
    plain = data.replace(b'\\"', b"") if b'\\"' in data else data
    quotes = np.flatnonzero(np.frombuffer(plain, np.uint8) == ord('"'))
    return int(np.diff(quotes).max()) - 1 if len(quotes) > 1 else 0
