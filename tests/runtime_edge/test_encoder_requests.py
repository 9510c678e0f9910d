"""Encoders' requests: prompts, dimensions, pairs, scores; and what a manifest may say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

import runtime_edge
from runtime_edge.errors import ArtifactError, RequestError
from tests.runtime_edge import tiny

PROMPTS = {"prompts": {"query": "one one", "passage": "two "}, "default_prompt": "passage"}
TEXTS = ["three", "four five", ""]


def opened(root: Path, **fields: Any) -> runtime_edge.Model:
    return runtime_edge.load(tiny.write_encoder(root / "e", **fields), threads=1)


def mean(ids: list[int], dim: int = 6) -> np.ndarray:
    return tiny.encoder_table(dim)[ids].astype(np.float64).mean(0)


@pytest.mark.parametrize(
    ("options", "before"),
    [
        ({}, "two "),
        ({"prompt_name": "query"}, "one one"),
        ({"prompt_name": "document"}, ""),
        ({"prompt": ""}, ""),
        ({"prompt": "six "}, "six "),
    ],
)
def test_prompts(options: dict[str, str], before: str, tmp_path: Path) -> None:
    model, plain = opened(tmp_path / "a", **PROMPTS), opened(tmp_path / "b")
    np.testing.assert_array_equal(model.encode(TEXTS, **options), plain.encode([before + text for text in TEXTS]))


def test_queries_and_documents(tmp_path: Path) -> None:
    model = opened(tmp_path, **PROMPTS)
    np.testing.assert_array_equal(model.encode_query(TEXTS), model.encode(TEXTS, prompt_name="query"))
    # The model names no prompt for documents, and `passage` is not one for them: the default does not apply.
    np.testing.assert_array_equal(model.encode_document(TEXTS), model.encode(TEXTS, prompt=""))
    np.testing.assert_array_equal(model.encode_query(TEXTS, prompt_name="passage"), model.encode(TEXTS))
    np.testing.assert_array_equal(model.encode_document(TEXTS, prompt="six "), model.encode(TEXTS, prompt="six "))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"prompt_name": "other"},
            r"prompt_name: expected one of this model's prompts \('document', 'passage', 'query'",
        ),
        ({"prompt_name": 3}, "prompt_name: expected text, found int"),
        ({"prompt": 3}, "prompt: expected text, found int"),
        ({"prompt": "a", "prompt_name": "query"}, "expected a prompt or a prompt_name, found both"),
        ({"truncate_dim": 0}, "truncate_dim: expected a whole number from 1 to 6, found 0"),
        ({"truncate_dim": 7}, "truncate_dim: expected a whole number from 1 to 6, found 7"),
        ({"normalize_embeddings": 1}, "normalize_embeddings: expected True or False, found int"),
        ({"batch_size": 0}, "batch_size: expected a whole number >= 1"),
    ],
)
def test_requests_that_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        opened(tmp_path, **PROMPTS).encode(TEXTS, **options)


def test_fewer_dimensions(tmp_path: Path) -> None:
    model = opened(tmp_path, truncate_dim=4)
    whole = model.encode(TEXTS, truncate_dim=6)
    np.testing.assert_allclose(whole[0], mean([1, 6, 2]), atol=1e-6)
    np.testing.assert_array_equal(model.encode(TEXTS), whole[:, :4])
    np.testing.assert_array_equal(model.encode(TEXTS, truncate_dim=2), whole[:, :2])
    unit = model.encode(TEXTS, truncate_dim=2, normalize_embeddings=True)
    np.testing.assert_allclose(unit, whole[:, :2] / np.linalg.norm(whole[:, :2], axis=1, keepdims=True), rtol=1e-6)
    assert model.encode([]).shape == (0, 4)


def test_a_prompt_that_is_left_out_of_the_pooling(tmp_path: Path) -> None:
    inputs = ("input_ids", "attention_mask", "pooling_mask")
    model = opened(tmp_path, mask="pooling_mask", inputs=inputs)
    # Without the prompt's tokens and the [CLS] before them; five tokens with [SEP] are read.
    np.testing.assert_allclose(model.encode(["three"], prompt="one ")[0], mean([6, 2]), atol=1e-6)
    np.testing.assert_allclose(model.encode(["three"])[0], mean([1, 6, 2]), atol=1e-6)
    np.testing.assert_allclose(model.encode([""], prompt="one two ")[0], mean([2]), atol=1e-6)
    both = model.encode(["three", "three four"], prompt="one ")
    np.testing.assert_allclose(both, [mean([6, 2]), mean([6, 7, 2])], atol=1e-6)


@pytest.mark.parametrize(("side", "ids"), [("right", [1, 4, 5, 6, 2]), ("left", [1, 7, 8, 9, 2])])
def test_the_side_that_texts_are_cut_at(side: str, ids: list[int], tmp_path: Path) -> None:
    found = opened(tmp_path, truncation_side=side).encode(["one two three four five six"])
    np.testing.assert_allclose(found[0], mean(ids), atol=1e-6)


@pytest.mark.parametrize("segments", [True, False])
def test_pairs(segments: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    model = opened(tmp_path, labels=("a", "b"), inputs=inputs, max_seq_len=6, segments=segments)
    session, seen = model._encoding("text-classification")._session, []
    run = session.run
    monkeypatch.setattr(session, "run", lambda given, **rest: (seen.append(given), run(given, **rest))[1])
    tuples = model.classify([("one two three four", "five six")])
    np.testing.assert_array_equal(seen[0]["input_ids"], [[1, 4, 5, 2, 8, 2]])  # the longest first
    np.testing.assert_array_equal(seen[0]["token_type_ids"], [[0, 0, 0, 0, 1, 1]] if segments else [[0] * 6])
    assert model.classify([{"text": "one two three four", "text_pair": "five six"}]) == tuples
    assert model.classify([["one two three four", "five six"]]) == tuples  # type: ignore[list-item]
    # An empty second text is none in transformers' pipeline, and a text in a pair.
    assert model.classify([{"text": "one", "text_pair": ""}, {"text": "one"}]) == model.classify(["one", "one"])
    assert model.classify([("one", "")]) != model.classify(["one"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"texts\[0\]: expected text, found NoneType"),
        (("one",), r"texts\[0\]: expected a text or a pair of texts, found 1 values"),
        (("one", None), r"texts\[0\]\[1\]: expected text, found NoneType"),
        ({"text_pair": "one"}, r"texts\[0\]: expected the keys text and text_pair, found \['text_pair'\]"),
        ({"text": "one", "other": ""}, r"texts\[0\]: expected the keys text and text_pair"),
    ],
)
def test_what_is_no_text(text: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        opened(tmp_path, labels=("a", "b")).classify([text])


def test_a_pair_that_has_no_room(tmp_path: Path) -> None:
    model = opened(tmp_path, labels=("a",), max_seq_len=2)
    assert len(model.classify(["one"])) == 1
    with pytest.raises(RequestError, match="the 3 special tokens of a pair are more than the 2 that the model reads"):
        model.rerank("one", ["two"])


SCORES = {
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "none": lambda x: x,
}


@pytest.mark.parametrize("function", list(SCORES))
@pytest.mark.parametrize("labels", [("one",), ("good", "bad", "good")])
def test_scores(function: str, labels: tuple[str, ...], tmp_path: Path) -> None:
    (found,) = opened(tmp_path, labels=labels, function=function).classify(["three"])
    wanted = SCORES[function](mean([1, 6, 2], len(labels)))
    np.testing.assert_allclose(found.probabilities, wanted, rtol=1e-5)
    assert (found.labels, found.label, found.score) == (labels, labels[int(wanted.argmax())], max(found.probabilities))
    names = ("one",) if len(labels) == 1 else ("LABEL_0", "LABEL_1", "LABEL_2")  # two labels are alike
    assert found.scores == dict(zip(names, found.probabilities, strict=True))


@pytest.mark.parametrize("function", ["", "sigmoid", "none"])
def test_rerank(function: str, tmp_path: Path) -> None:
    fields = {"prompts": {"ask": "six "}, "default_prompt": "ask", "max_seq_len": 9, "rerank_max_seq_len": 6}
    model = opened(tmp_path, labels=("score",), rerank_function=function, **fields)
    found = model.rerank("one", ["two", "three four"])
    logits = np.array([mean([1, 9, 4, 2, 5, 2], 1)[0], mean([1, 9, 2, 6, 7, 2], 1)[0]])  # cut to 6 tokens
    np.testing.assert_allclose(found, SCORES[function or "sigmoid"](logits), rtol=1e-5)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(model.rerank("one", ["two"], prompt_name="ask"), found[:1])
    assert not np.array_equal(model.rerank("one", ["two"], prompt=""), found[:1])
    (whole,) = model.classify([("six one", "three four")])  # which is cut at 9
    np.testing.assert_allclose(whole.probabilities, SCORES["softmax"](np.zeros(1)))
    assert model.rerank("one", []).shape == (0,)


def test_rerank_is_for_one_score(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="expected a model with one score a pair, found one with 2 labels"):
        opened(tmp_path / "two", labels=("a", "b")).rerank("one", ["two"])
    with pytest.raises(RequestError, match="expected a model for text-classification"):
        opened(tmp_path / "none").rerank("one", ["two"])
    with pytest.raises(RequestError, match="texts: expected a list of texts, found str"):
        opened(tmp_path / "one", labels=("a",)).rerank("one", "two")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompts": {"a": "b"}, "default_prompt": "c"}, "default_prompt: expected one of prompts, found 'c'"),
        ({"prompts": {str(i): "" for i in range(1025)}}, "Expected `object` of length <= 1024"),
        ({"prompts": {"a": "b" * (2**16 + 1)}}, "Expected `str` of length <= 65536"),
        ({"truncate_dim": 7}, r"truncate_dim: expected at most 6 \(dim\), found 7"),
        ({"truncate_dim": 0}, "Expected `int` >= 1"),
        ({"rerank_max_seq_len": 6}, r"rerank_max_seq_len: expected at most 5 \(max_seq_len\), found 6"),
        ({"function": "tanh"}, "function: expected one of softmax, sigmoid, none, found 'tanh'"),
        ({"truncation_side": "both"}, "truncation_side: expected one of right, left, found 'both'"),
        ({"similarity": "any"}, "similarity: expected one of cosine, dot, euclidean, manhattan, found 'any'"),
        ({"max_seq_len": 1}, "expected at most 1 tokens around a text, found 2"),
    ],
)
def test_manifests_that_are_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=message):
        opened(tmp_path, **fields)


def test_a_text_without_tokens_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is put around a text, transformers fails on an empty one, and no vector is right for it."""
    plain = tiny.word_tokenizer()
    plain.post_processor = TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    monkeypatch.setattr(tiny, "word_tokenizer", lambda: plain)
    model = opened(tmp_path)
    np.testing.assert_allclose(model.encode(["three"]), mean([6])[None], rtol=1e-6)
    for text in ("", "  "):
        with pytest.raises(RequestError, match=r"texts\[1\]: expected a text with tokens, found one with") as caught:
            model.encode(["three", text])
        assert caught.value.hint
