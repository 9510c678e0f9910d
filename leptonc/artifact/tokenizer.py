"""Writes a tokenizer in the form that is read fastest."""

from __future__ import annotations

import msgspec
from tokenizers import Tokenizer

from leptonc.sources.tokenizer_parts import joined, split, text_of


def stored(tokenizer_json: bytes) -> bytes:
    """Returns a tokenizer.json of the same tokenizer that takes less time to read, where there is one.

    `tokenizers` takes the merges of a byte-pair encoding as pairs or, as older files have them, as texts with a space
    between. The texts are smaller, and a device reads them in little more than half the time.
    """
    parts = split(tokenizer_json)
    model = split(parts["model"])
    try:
        merges = msgspec.json.decode(model.get("merges", b"[]"), type=list[tuple[str, str]])
    except msgspec.ValidationError:  # the merges are texts already
        return tokenizer_json
    if not merges or any(" " in part for pair in merges for part in pair):
        return tokenizer_json
    model["merges"] = text_of([" ".join(pair) for pair in merges])
    text = joined(parts | {"model": joined(model)})
    same = Tokenizer.from_buffer(text).to_str() == Tokenizer.from_buffer(tokenizer_json).to_str()
    return text if same else tokenizer_json
