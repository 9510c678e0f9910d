"""GGUF vocabularies to `tokenizer.json` (the `tokenizers` library's format), written directly as JSON.

Two kinds: byte-level BPE (`tokenizer.ggml.model` "gpt2"), whose pre-tokenizer `tokenizer.ggml.pre` names, and
SentencePiece's BPE ("llama"), which has byte fallback, and scores where `tokenizers` wants merges.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from leptonc.errors import InputError
from leptonc.sources.gguf_file import GgufFile
from leptonc.sources.gguf_pretokenizers import (
    ALWAYS_CONTROL,
    ALWAYS_SHOWN,
    BOS_BY_DEFAULT,
    PRE_TOKENIZERS,
    PreTokenizer,
)

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5
_FILLER = re.compile(r"\[PAD\d+\]")  # rows that only round the embedding up; no text ever maps to them
_MAX_TOKEN_CHARS = 1024
_SPACE = "\u2581"  # SentencePiece's visible space
# Phi-3's control tokens swallow the white space after them, but for these (llama.cpp says the same).
_PHI3_PLAIN = ("<unk>", "<s>", "<|endoftext|>")
# The ids of a file that does not name them, by its tokenizer (src/llama-vocab.cpp).
_DEFAULT_IDS = {"llama": {"bos": 1, "eos": 2, "unknown": 0}, "gpt2": {"bos": 11, "eos": 11}}
_NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}

Json = dict[str, Any]


def build_tokenizer(file: GgufFile, architecture: str) -> tuple[bytes, Json]:
    """Returns `tokenizer.json` and the texts of special tokens (`bos_token`, `eos_token`, ...).

    Equal files give equal bytes.

    Raises:
        InputError: there is no vocabulary, or it is of a kind that is not supported, or it contradicts itself.
    """
    vocabulary = _Vocabulary(file)
    if vocabulary.model == "gpt2":
        document = _byte_level(vocabulary)
    elif vocabulary.model == "llama":
        document = _sentencepiece(vocabulary, strip_right=architecture == "phi3")
    else:
        raise InputError(
            f"{file.label}: the tokenizer {vocabulary.model!r} is not supported, expected 'gpt2' or 'llama'",
            hint="give the original Hugging Face model instead",
        )
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8"), vocabulary.special


class _Vocabulary:
    """The tokenizer's metadata, checked."""

    def __init__(self, file: GgufFile) -> None:
        self.label = file.label
        self._metadata = file.metadata
        self.model = str(self._get("model", "none"))
        # llama.cpp's name for a token without text, of which a file may have several.
        self.tokens: list[str] = [token or f"[EMPTY_{at}]" for at, token in enumerate(self._strings("tokens"))]
        if not self.tokens or len(set(self.tokens)) != len(self.tokens):
            raise InputError(f"{self.label}: expected a vocabulary of distinct tokens, found repeated ones or none")
        if max(map(len, self.tokens)) > _MAX_TOKEN_CHARS:
            raise InputError(f"{self.label}: expected tokens of at most {_MAX_TOKEN_CHARS} characters, found longer")
        ids = {name: self._id(key) for key, name in _NAMES.items()}
        self.special = {name: self.tokens[index] for name, index in ids.items() if index is not None}
        self.kinds = self._kinds()

    def _get(self, key: str, default: Any = None) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{key}", default)

    def _strings(self, key: str) -> list[str]:
        strings = self._get(key, [])
        if not isinstance(strings, list):
            raise InputError(f"{self.label}: expected tokenizer.ggml.{key} to be an array of strings")
        return strings

    def numbers(self, key: str) -> list[Any] | None:
        """An array with a number for every token, or None."""
        numbers = self._get(key)
        if numbers is None:
            return None
        if not hasattr(numbers, "tolist") or len(numbers) != len(self.tokens):
            raise InputError(f"{self.label}: expected tokenizer.ggml.{key} to have one number a token")
        values: list[Any] = numbers.tolist()
        return values

    def _id(self, name: str) -> int | None:
        token = self._get(f"{name}_token_id")
        if token is None:
            default = _DEFAULT_IDS.get(self.model, {}).get(name)
            return default if default is not None and default < len(self.tokens) else None
        if type(token) is not int or not 0 <= token < len(self.tokens):
            raise InputError(
                f"{self.label}: expected {name}_token_id below {len(self.tokens)} tokens, found {str(token)[:40]}"
            )
        return token

    def _kinds(self) -> list[int]:
        kinds = self.numbers("token_type")
        if kinds is None:
            kinds = [_NORMAL] * len(self.tokens)
            for key in ("bos", "eos", "padding"):
                if self._get(f"{key}_token_id") is not None and (index := self._id(key)) is not None:
                    kinds[index] = _CONTROL
        for index, token in enumerate(self.tokens):
            if token in ALWAYS_CONTROL and kinds[index] not in (_CONTROL, _USER_DEFINED):
                kinds[index] = _CONTROL
            elif token in ALWAYS_SHOWN:
                kinds[index] = _USER_DEFINED
        return kinds

    def flag(self, key: str, default: bool) -> bool:
        """A boolean of the tokenizer."""
        return bool(self._get(key, default))

    def merges(self, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
        """The merges that the file lists, best first."""
        pairs = []
        for merge in self._strings("merges"):
            space = merge.find(" ", 1)
            left, right = merge[:space], merge[space + 1 :]
            if space < 0 or left not in vocab or right not in vocab or left + right not in vocab:
                raise InputError(f"{self.label}: expected merges of tokens in the vocabulary, found {merge[:80]!r}")
            pairs.append((left, right))
        return pairs

    @property
    def has_merges(self) -> bool:
        """Whether the file lists merges."""
        return self._get("merges") is not None

    @property
    def pre(self) -> tuple[str, PreTokenizer]:
        """The pre-tokenizer that the file names."""
        name = str(self._get("pre", "default"))
        if name not in PRE_TOKENIZERS:
            raise InputError(
                f"{self.label}: the pre-tokenizer {name!r} is not supported, expected one of "
                f"{', '.join(sorted(PRE_TOKENIZERS))}",
                hint="give the original Hugging Face model instead",
            )
        return name, PRE_TOKENIZERS[name]


def _byte_level(vocabulary: _Vocabulary) -> Json:
    name, pre = vocabulary.pre
    vocab = {
        token: index
        for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if not (kind == _UNUSED and _FILLER.fullmatch(token))
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": pre.gpt2}
    return _document(
        added=_added_tokens(vocabulary),
        normalizer={"type": pre.normalizer} if pre.normalizer else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*pre.steps, byte_level]},
        post_processor=_template(vocabulary, bos=name in BOS_BY_DEFAULT),
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        model=_bpe(vocab, vocabulary.merges(vocab), ignore_merges=pre.whole_words),
    )


def _sentencepiece(vocabulary: _Vocabulary, *, strip_right: bool) -> Json:
    # llama.cpp's converter wrote runs of spaces as such; the model's normalizer makes every space visible.
    blank = [_is_blank(token, kind) for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)]
    tokens = [
        token.replace(" ", _SPACE) if is_blank else token
        for token, is_blank in zip(vocabulary.tokens, blank, strict=True)
    ]
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise InputError(f"{vocabulary.label}: expected a vocabulary of distinct tokens, found repeated runs of spaces")
    merges = vocabulary.merges(vocab) if vocabulary.has_merges else _merges_from_scores(vocabulary, tokens)
    prefix = vocabulary.flag("add_space_prefix", True)
    visible = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    steps: list[Json] = [{"type": "Prepend", "prepend": _SPACE}, visible]
    decoders: list[Json] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return _document(
        added=_added_tokens(vocabulary, skip=blank, strip_right=strip_right),
        normalizer={"type": "Sequence", "normalizers": steps} if prefix else visible,
        pre_tokenizer=None,
        post_processor=_template(vocabulary, bos=True),
        decoder={"type": "Sequence", "decoders": decoders},
        model=_bpe(vocab, merges, unknown=vocabulary.special.get("unk_token"), byte_fallback=True),
    )


def _is_blank(token: str, kind: int) -> bool:
    return kind == _USER_DEFINED and not token.strip(" ")


def _merges_from_scores(vocabulary: _Vocabulary, tokens: Sequence[str]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, the best token first.

    SentencePiece joins the two neighbours whose union scores best. Tokens that the model's author defined are matched
    before anything else, so they come first. https://github.com/google/sentencepiece/blob/master/src/bpe_model.cc
    """
    scores = vocabulary.numbers("scores")
    if scores is None:
        raise InputError(f"{vocabulary.label}: expected tokenizer.ggml.merges or tokenizer.ggml.scores, found neither")
    kinds = vocabulary.kinds
    pieces = {token for token, kind in zip(tokens, kinds, strict=True) if kind in (_NORMAL, _USER_DEFINED)}
    order = [index for index, kind in enumerate(kinds) if kind in (_NORMAL, _USER_DEFINED) and len(tokens[index]) > 1]
    order.sort(key=lambda index: -math.inf if kinds[index] == _USER_DEFINED else -scores[index])
    merges = []
    for index in order:
        token = tokens[index]
        for cut in range(len(token) - 1, 0, -1):
            left = token[:cut]
            if left in pieces:
                right = token[cut:]
                if right in pieces:
                    merges.append((left, right))
    return merges


def _added_tokens(
    vocabulary: _Vocabulary, *, skip: Sequence[bool] | None = None, strip_right: bool = False
) -> list[Json]:
    """Control tokens (special) and the author's own (not special); both are found whole in any text."""
    return [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": strip_right and token not in _PHI3_PLAIN,
            "normalized": False,
            "special": kind != _USER_DEFINED,
        }
        for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind in (_CONTROL, _USER_DEFINED, _UNKNOWN) and not (skip is not None and skip[index])
    ]


def _template(vocabulary: _Vocabulary, *, bos: bool) -> Json | None:
    """The post-processor that puts the tokens of begin and end around a text; None where there are none to put."""
    special = vocabulary.special
    first = special.get("bos_token") if vocabulary.flag("add_bos_token", bos) else None
    last = special.get("eos_token") if vocabulary.flag("add_eos_token", False) else None
    if first is None and last is None:
        return None

    def around(sequence: str, type_id: int) -> list[Json]:
        pieces: list[Json] = [{"Sequence": {"id": sequence, "type_id": type_id}}]
        if first is not None:
            pieces.insert(0, {"SpecialToken": {"id": first, "type_id": type_id}})
        if last is not None:
            pieces.append({"SpecialToken": {"id": last, "type_id": type_id}})
        return pieces

    ids = {token: vocabulary.tokens.index(token) for token in (first, last) if token is not None}
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]} for token, index in ids.items()},
    }


def _bpe(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    unknown: str | None = None,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": vocab,
        "merges": merges,
    }


def _document(*, added: list[Json], **parts: Json | None) -> Json:
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **parts}
