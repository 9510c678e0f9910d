"""tokenizer.json files: those of the tiny models, changed, and with parts that other tokenizers have."""

from __future__ import annotations

import functools
import json
import random
from typing import Any

from benchmarks.fuzzing import mutate

TEXTS = (
    "",
    "Hello, world! don't",
    "é e\u0301 日本語 🦙 \0\ufeff\u202e",
    "a" * 3000,
    "<bos> <eos> [CLS] <|turn|>",
    " \n\t  x",
)


def _sequence(kind: str, parts: list[Any]) -> dict[str, Any]:
    names = {
        "normalizer": "normalizers",
        "pre_tokenizer": "pretokenizers",
        "decoder": "decoders",
        "post_processor": "processors",
    }
    return {"type": "Sequence", names[kind]: parts}


def _part(rng: random.Random, kind: str) -> dict[str, Any]:
    """Returns a component of that kind, of those that models have, with values that some have not."""
    small = rng.choice(("", "a", " ", "\u2581", "aa", "x" * 1000, "é"))
    pattern = rng.choice(
        ({"String": small}, {"Regex": rng.choice(("a", "(a*)*b", "[", "", "(?<=a)b", "\\s+|\\S+", "(a|aa)+$", "."))})
    )
    behavior = rng.choice(("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous", "Nothing"))
    parts: dict[str, list[dict[str, Any]]] = {
        "normalizer": [
            {"type": "NFC"}, {"type": "NFKD"}, {"type": "Lowercase"}, {"type": "StripAccents"}, {"type": "Nmt"},
            {"type": "ByteLevel"},
            {"type": "Replace", "pattern": pattern, "content": rng.choice(("", "b", "aa", "a" * 1000))},
            {"type": "Prepend", "prepend": rng.choice(("\u2581", "a" * 1000))},
            {"type": "Strip", "strip_left": True, "strip_right": False},
            {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
            "lowercase": True},
            {"type": "Precompiled", "precompiled_charsmap": rng.choice(("AAAA", "", "ALQCAACEAAAA", "A" * 4000, "!"))},
        ],
        "pre_tokenizer": [
            {"type": "Whitespace"}, {"type": "WhitespaceSplit"}, {"type": "BertPreTokenizer"}, {"type": "Punctuation",
            "behavior": behavior},
            {"type": "Digits", "individual_digits": True}, {"type": "UnicodeScripts"},
            {"type": "ByteLevel", "add_prefix_space": rng.random() < 0.5, "trim_offsets": True,
            "use_regex": rng.random() < 0.5},
            {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": rng.choice(("always", "never", "first",
            "x")), "split": True},
            {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": rng.random() < 0.5},
            {"type": "CharDelimiterSplit", "delimiter": small[:1]}, {"type": "FixedLength", "length": rng.choice((0,
            1, 5, 2**40))},
        ],
        "decoder": [
            {"type": "ByteLevel"}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "WordPiece", "prefix": "##",
            "cleanup": True},
            {"type": "Strip", "content": " ", "start": rng.choice((0, 1, 2**40)), "stop": rng.choice((0, 1, 2**40))},
            {"type": "Replace", "pattern": pattern, "content": rng.choice(("", " ", "a" * 1000))},
            {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
            {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True},
            {"type": "BPEDecoder", "suffix": small},
        ],
        "post_processor": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            {"type": "BertProcessing", "sep": ["[SEP]", rng.choice((2, 2**31, 10**6))], "cls": ["[CLS]", 1]},
            {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True,
            "add_prefix_space": True},
            {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}] * rng.choice((0, 1, 2, 5000))
                + [{"Sequence": {"id": "A", "type_id": rng.choice((0, 1, 2**31))}}] * rng.choice((0, 1, 2)),
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<bos>": {"id": "<bos>", "ids": [256] * rng.choice((0, 1, 1000)),
                "tokens": ["<bos>"]}},
            },
        ],
    }  # fmt: skip
    return rng.choice(parts[kind])


def numbered(*words: str) -> dict[str, int]:
    """Returns a vocabulary."""
    return {word: index for index, word in enumerate(words)}


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """Returns tokenizers of all models that the library knows."""
    from tests.runtime_edge import tiny

    unigram = {
        "type": "Unigram", "unk_id": 0, "byte_fallback": False,
        "vocab": [["<unk>", 0.0], ["\u2581", -1.0], ["a", -2.0], ["\u2581a", -2.5], ["Hello", -9.0], ["b", -3.5]],
    }  # fmt: skip
    pieces = {
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": numbered("[UNK]", "[CLS]", "[SEP]", "a", "##a", "hello", "##lo", ","),
    }  # fmt: skip
    merged = {
        "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
        "vocab": numbered("<unk>", *(f"<0x{n:02X}>" for n in range(256)), "a", "b", "ab", "aa"),
        "merges": [["a", "b"], ["a", "a"]],
    }  # fmt: skip
    absent = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    bare = {"version": "1.0", **dict.fromkeys(absent)}
    token = {
        "id": 1,
        "content": "\u2581",
        "single_word": False,
        "lstrip": True,
        "rstrip": False,
        "normalized": True,
        "special": False,
    }
    made = [json.dumps({**bare, "model": model, "added_tokens": [token]}) for model in (unigram, pieces, merged)]
    return tuple(t.encode() for t in (tiny.byte_tokenizer().to_str(), tiny.word_tokenizer().to_str(), *made))


def document(rng: random.Random) -> bytes:
    """Returns a tokenizer.json."""
    value = json.loads(rng.choice(seeds()))
    for _ in range(rng.choice((0, 1, 1, 2))):
        kind = rng.choice(("normalizer", "pre_tokenizer", "decoder", "post_processor"))
        value[kind] = _part(rng, kind)
        if rng.random() < 0.3:
            count = rng.choice((0, 1, 2, 5, 5, 2000))
            parts = (
                mutate.times(value[kind], count) if rng.random() < 0.5 else [_part(rng, kind) for _ in range(count % 9)]
            )
            value[kind] = json.loads(json.dumps(_sequence(kind, parts)))
    for _ in range(rng.choice((0, 1, 1, 2))):
        value = mutate.change(rng, value)
    return mutate.json_bytes(rng, value)
