"""The tokenizer as an artifact holds it."""

from __future__ import annotations

import json

from tokenizers import Tokenizer


def stored(tokenizer_json: bytes) -> bytes:
    """Returns a tokenizer.json that reads as the same tokenizer, in less time where that can be had.

    `tokenizers` takes the merges of a byte-pair encoding as pairs or, as older files have them, as texts with a space
    between. The texts are smaller, and a device reads them in little more than half the time.
    """
    data = json.loads(tokenizer_json)
    model = data.get("model") or {}
    merges = model.get("merges") or []
    pairs = [merge for merge in merges if isinstance(merge, list)]
    if not pairs or len(pairs) != len(merges) or any(" " in part for pair in pairs for part in pair):
        return tokenizer_json
    model["merges"] = [" ".join(pair) for pair in pairs]
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    same = Tokenizer.from_str(text).to_str() == Tokenizer.from_str(tokenizer_json.decode()).to_str()
    return text.encode() if same else tokenizer_json
