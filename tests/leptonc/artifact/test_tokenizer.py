"""The stored tokenizer is the source's, in a form that is read faster."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, models

from leptonc.artifact.tokenizer import stored

PAIRS = [["a", "b"], ["ab", "c"]]


def bpe(vocab: list[str], merges: list[list[str]]) -> bytes:
    model = models.BPE(vocab={text: at for at, text in enumerate(vocab)}, merges=[(a, b) for a, b in merges])
    return str(Tokenizer(model).to_str()).encode()


def test_pairs_become_texts_and_the_tokenizer_stays_what_it_was() -> None:
    source = bpe(["a", "b", "c", "ab", "abc"], PAIRS)
    assert json.loads(source)["model"]["merges"] == PAIRS
    found = stored(source)
    assert json.loads(found)["model"]["merges"] == ["a b", "ab c"]
    assert len(found) < len(source)
    assert Tokenizer.from_buffer(found).to_str() == Tokenizer.from_buffer(source).to_str()
    assert Tokenizer.from_buffer(found).encode("abcab").tokens == ["abc", "ab"]
    assert stored(found) == found


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(bpe(["a", " ", "a "], [["a", " "]]), id="a part with a space"),
        pytest.param(bpe(["#version", "b", "#versionb"], [["#version", "b"]]), id="what reads as a comment"),
        pytest.param(Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1})).to_str().encode(), id="no merges"),
    ],
)
def test_what_texts_could_not_say_is_left_as_it_is(source: bytes) -> None:
    assert stored(source) == source
