"""The tokenizer of the made-up models: byte-level BPE with 512 tokens, as `tokenizer.json`.

Eight special tokens, the 256 bytes, and merges learned from `tiny/corpus.txt` by the textbook algorithm
(Sennrich et al. 2016, https://arxiv.org/abs/1508.07909), ties broken by spelling: the bytes never differ.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from itertools import pairwise
from typing import Any

VOCAB_SIZE = 512
SPECIAL = ("<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|cls|>", "<|sep|>", "<|mask|>", "<|unk|>")
_WORD = re.compile(r" ?[^\W\d_]+| ?\d+| ?[^\s\w]+|\s+")


def tokenizer_json(begin: Sequence[str] = (), end: Sequence[str] = ()) -> bytes:
    """Returns the tokenizer, which puts the special tokens `begin` and `end` around a text."""
    vocab, merges = _train()
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index, token in enumerate(SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": _byte_level(add_prefix_space=False),
        "post_processor": _template(begin, end) if begin or end else None,
        "decoder": _byte_level(add_prefix_space=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def _byte_level(*, add_prefix_space: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": True}


def _template(begin: Sequence[str], end: Sequence[str]) -> dict[str, Any]:
    def pieces(tokens: Sequence[str], type_id: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": token, "type_id": type_id}} for token in tokens]

    def sequence(name: str, type_id: int) -> list[dict[str, Any]]:
        return [{"Sequence": {"id": name, "type_id": type_id}}]

    single = pieces(begin, 0) + sequence("A", 0) + pieces(end, 0)
    used = sorted({*begin, *end})
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single + sequence("B", 1) + pieces(end, 1),
        "special_tokens": {t: {"id": t, "ids": [SPECIAL.index(t)], "tokens": [t]} for t in used},
    }


def _alphabet() -> dict[int, str]:
    """GPT-2's spelling of bytes: visible Latin-1 characters stand for themselves, the rest are moved above 255."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + index) for index, byte in enumerate(hidden)}


@lru_cache(maxsize=1)
def _train() -> tuple[dict[str, int], list[tuple[str, str]]]:
    spelling = _alphabet()
    text = (files(__package__) / "tiny" / "corpus.txt").read_text(encoding="utf-8")
    words = Counter(tuple(spelling[byte] for byte in word.encode("utf-8")) for word in _WORD.findall(text))
    tokens = [*SPECIAL, *(spelling[byte] for byte in range(256))]
    merges: list[tuple[str, str]] = []
    while len(tokens) < VOCAB_SIZE:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merged = "".join(best)
        words = Counter({_merge(word, best, merged): count for word, count in words.items()})
        merges.append(best)
        if merged not in tokens:
            tokens.append(merged)
    return {token: index for index, token in enumerate(tokens)}, merges


def _merge(word: tuple[str, ...], pair: tuple[str, str], merged: str) -> tuple[str, ...]:
    result: list[str] = []
    index = 0
    while index < len(word):
        if word[index : index + 2] == pair:
            result.append(merged)
            index += 2
        else:
            result.append(word[index])
            index += 1
    return tuple(result)


def chat_template() -> str:
    """Returns the chat template of the made-up decoders (ChatML)."""
    return (files(__package__) / "tiny" / "chatml.jinja").read_text(encoding="utf-8")
