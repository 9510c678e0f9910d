"""A tokenizer.json that asks for too much, or breaks the library that reads it, is refused as our own error."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers

from runtime_edge.errors import ArtifactError, RequestError
from runtime_edge.tokenizer import BoundedTokenizer
from runtime_edge.tokenizer_bounds import MAX_ADDED, MAX_STAGES, MAX_TEXT, USUAL_GROWTH, bounded
from tests.runtime_edge import tiny

REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
SEQUENCE_A, SEQUENCE_B = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}


def document(**parts: Any) -> dict[str, Any]:
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "[UNK]": 2}, "unk_token": "[UNK]"}
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return {"version": "1.0", "added_tokens": [], "model": model} | empty | parts


def of(**parts: Any) -> bytes:
    return json.dumps(document(**parts)).encode()


def sequence(*stages: Any) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(stages)}


def charsmap(data: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


def template(single: list[Any], ids: int = 1, pair: list[Any] | None = None) -> dict[str, Any]:
    special = {"q": {"id": "q", "ids": [0] * ids, "tokens": ["a"] * ids}}
    pair = [SEQUENCE_A, SEQUENCE_B] if pair is None else pair
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


def added(count: int, **fields: Any) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return [flags | {"id": 3 + index, "content": f"<{index}>"} | fields for index in range(count)]


def model(**fields: Any) -> dict[str, Any]:
    plain = {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    return {"type": "WordPiece", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"} | plain | fields


SPECIAL_Q = {"SpecialToken": {"id": "q", "type_id": 0}}
NESTED: Any = {"type": "Lowercase"}
for _ in range(MAX_STAGES):
    NESTED = sequence(NESTED)

HOSTILE = {
    "no JSON": (b"{", "expected a tokenizer with a `model`"),
    "no model": (b'{"version": "1.0"}', "expected a tokenizer with a `model`"),
    "a model of no kind": (of(model={"type": "Magic", "vocab": {}}), "expected a tokenizer, found"),
    "a table of four zero bytes": (of(normalizer=charsmap(b"\0\0\0")), "expected a trie and texts"),
    "an empty table": (of(normalizer=charsmap(b"")), "expected a trie and texts"),
    "a table that is no base64": (
        of(normalizer={"type": "Precompiled", "precompiled_charsmap": "é"}), "expected base64",
    ),
    "a table that is longer than itself": (of(normalizer=charsmap(b"\xff\xff\xff\x7f" * 4)), "expected a trie"),
    "a table whose texts grow": (
        of(normalizer=charsmap(b"\x04\0\0\0\0\0\0\0" + b"a" * 5000 + b"\0")), "characters that the normalizer makes",
    ),
    "replacements of replacements": (
        of(normalizer=sequence(REPLACE, REPLACE)), "expected at most 1,024 characters that the normalizer makes of one",
    ),
    "replacements without a type": (
        of(normalizer={"normalizers": [{k: v for k, v in REPLACE.items() if k != "type"}] * 2}),
        "characters that the normalizer makes of one",
    ),
    "a replacement of nothing": (
        of(normalizer={"type": "Replace", "pattern": {"String": ""}, "content": "a" * 5000}), "characters that the",
    ),
    "2,000 Prepend": (
        of(normalizer=sequence(*[{"type": "Prepend", "prepend": "a"}] * 2000)),
        "expected at most 64 stages of the normalizer, found 2,001",
    ),
    "sequences of sequences": (of(normalizer=NESTED), "stages of the normalizer"),
    "a decoder that grows": (of(decoder=REPLACE), "expected at most 64 characters that the decoder makes of one"),
    "a field twice": (
        of().replace(b'"normalizer": null', b'"normalizer": {"type": "NFC", "type": "NFD"}'), "once, found one twice",
    ),
    "a template of a hundred thousand tokens": (
        of(post_processor=template([SPECIAL_Q, SEQUENCE_A], ids=100_000)), "ids of one special token of the template",
    ),
    "a template of a million pieces": (
        of(post_processor=template([SPECIAL_Q] * 1_000_000)), "bytes of the post_processor",
    ),
    "a template of a thousand pieces": (
        of(post_processor=template([SPECIAL_Q] * 1000)), "expected at most 256 pieces of the template",
    ),
    "a template that copies the text": (
        of(post_processor=template([SEQUENCE_A] * 200)), "expected at most 4 copies of a text",
    ),
    "a template of tokens of tokens": (
        of(post_processor=template([SPECIAL_Q] * 16 + [SEQUENCE_A], ids=200)), "tokens around a text",
    ),
    "words of any length": (
        of(model=model(max_input_chars_per_word=10**9)), "characters of a word",
    ),
    "a long affix": (of(model=model(continuing_subword_prefix="#" * 1000)), "before or after every token"),
    "dropout": (of(model={"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.1}), "expected no dropout"),
    "a long token": (
        of(model=model(vocab={"[UNK]": 0, '"' + "a" * 10_000 + '"' + "b" * 10_000: 1})), "bytes of a token",
    ),
    "a long added token": (of(added_tokens=added(1, content="a" * 20_000)), "bytes of an added token"),
    "added tokens that grow": (
        of(added_tokens=added(1000, content="a" * 400, normalized=True), normalizer=REPLACE), "after normalization",
    ),
    "many added tokens": (of(added_tokens=added(MAX_ADDED + 1)), "expected at most 200,000 added tokens"),
    "pieces of no length": (of(pre_tokenizer={"type": "FixedLength", "length": 0}), "a length of at least 1"),
    "an expression that backtracks": (
        of(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}),
        "exponential time",
    ),
    "merges that panic": (
        of(model={"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "dropout": None,
                  "continuing_subword_prefix": "##"}),
        "expected a tokenizer, found",
    ),
    "a template without its token": (
        of(post_processor=template([{"SpecialToken": {"id": "z", "type_id": 0}}, SEQUENCE_A])),
        "the template's token 'z'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_asks_for_too_much_is_refused_at_once(name: str) -> None:
    data, message = HOSTILE[name]
    began = time.monotonic()
    with pytest.raises(ArtifactError) as caught:
        BoundedTokenizer(data, "tokenizer.json")
    assert time.monotonic() - began < 5
    assert message in caught.value.message
    assert caught.value.message.startswith("tokenizer.json: ")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("parts", "text", "message"),
    [
        ({"model": model(unk_token="[NONE]")}, "b", "cut into tokens, found: .*\\[UNK\\]"),
        # A table whose trie is one word: looking anything up in it leaves it.
        ({"normalizer": charsmap(b"\x04\0\0\0\xff\xff\xff\x7f" + b"a\0")}, "a text", "cut into tokens, found: "),
    ],
)
def test_a_text_that_the_library_fails_on(parts: dict[str, Any], text: str, message: str) -> None:
    tokenizer = BoundedTokenizer(of(**parts), "tokenizer.json")
    with pytest.raises(RequestError, match=message):
        tokenizer.encode(text)
    with pytest.raises(RequestError, match=message):
        tokenizer.encode_batch_fast([text, text])


def test_a_decoder_that_panics() -> None:
    strip = {"type": "Strip", "content": "a", "start": 2, "stop": 2}
    tokenizer = BoundedTokenizer(of(decoder=strip), "tokenizer.json")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: expected a decoder that makes text of tokens, found"):
        tokenizer.decode([0])


def test_a_text_is_bounded_by_what_the_normalizer_makes_of_it() -> None:
    tokenizer = BoundedTokenizer(of(normalizer=REPLACE), "tokenizer.json")
    assert tokenizer.max_chars == MAX_TEXT // USUAL_GROWTH // 1000
    tokenizer.encode("b" * tokenizer.max_chars)
    with pytest.raises(RequestError, match="expected at most 167 characters, found 168"):
        tokenizer.encode("b" * (tokenizer.max_chars + 1))
    with pytest.raises(RequestError, match="expected at most 167 characters"):
        tokenizer.encode_batch_fast([("a", "b" * (tokenizer.max_chars + 1))])


def test_more_tokens_around_a_text_than_it_may_have() -> None:
    tokenizer = BoundedTokenizer(of(post_processor=template([SPECIAL_Q, SEQUENCE_A], ids=10)), "tokenizer.json")
    tokenizer.enable_truncation(11)
    with pytest.raises(ArtifactError, match="expected at most 9 tokens around a text, found 10"):
        tokenizer.enable_truncation(9)


def test_the_library_reads_the_fields_that_were_checked() -> None:
    twice = of(normalizer=REPLACE).replace(b'"decoder": null', b'"decoder": null, "normalizer": {"type": "Lowercase"}')
    assert json.loads(bounded(twice).data)["normalizer"] == {"type": "Lowercase"}
    assert BoundedTokenizer(twice, "t").encode("a").ids == [0]


def test_limits_of_training_are_left_out() -> None:
    tokenizer = tiny.word_tokenizer()  # cut at 3 tokens, padded to 64
    ids = BoundedTokenizer(tokenizer.to_str().encode(), "t").encode("the the the the the the").ids
    assert 6 <= len(ids) < 10


def test_what_a_real_tokenizer_has_passes() -> None:
    stages = [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace("``", '"'), normalizers.Prepend("▁")]
    tokenizer = Tokenizer(models.WordLevel({"▁a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence(stages)
    found = BoundedTokenizer(tokenizer.to_str().encode(), "t")
    assert found.encode("A").ids == [0]
    assert found.max_chars > 10**6


def test_an_artifact_with_a_hostile_tokenizer(artifact: Path) -> None:
    import runtime_edge
    from tests.runtime_edge.test_load import relist

    (artifact / "tokenizer.json").write_bytes(HOSTILE["a table of four zero bytes"][0])
    relist(artifact, "tokenizer.json")
    with pytest.raises(ArtifactError, match="precompiled_charsmap"):
        runtime_edge.load(artifact)


def test_a_token_that_the_tokenizer_has_and_the_model_has_not(tmp_path: Path) -> None:
    import runtime_edge
    from runtime_edge.manifest import MANIFEST_NAME

    path = tiny.write_encoder(tmp_path / "e")
    manifest = json.loads((path / MANIFEST_NAME).read_text())
    manifest["tokenizer"]["vocab_size"] = 9  # "six" is 9
    (path / MANIFEST_NAME).write_text(json.dumps(manifest))
    model = runtime_edge.load(path)
    model.encode(["five"])
    with pytest.raises(RequestError, match=r"texts\[1\]: expected tokens that the model has, found 'six': its id is 9"):
        model.encode(["five", "six"])
