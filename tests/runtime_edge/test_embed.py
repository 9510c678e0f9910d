"""Encoders: the order and the padding of batches, truncation, classification."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime_edge
from runtime_edge.backends import onnxruntime
from runtime_edge.errors import ArtifactError, ClosedError, RequestError
from runtime_edge.tasks import embed
from tests.runtime_edge import tiny

WORDS = {"one": 4, "two": 5, "three": 6, "four": 7, "five": 8, "six": 9}
TEXTS = ["one", "two three four five six", "", "three three", "six five", "one two three", "two"]


def expected(text: str, dim: int) -> np.ndarray:
    ids = [*[1, *(WORDS[word] for word in text.split())][:4], 2]  # cut to 5 with [SEP] kept
    return tiny.encoder_table(dim)[ids].astype(np.float64).mean(0)


@pytest.fixture
def encoder(tmp_path: Path) -> runtime_edge.Model:
    return runtime_edge.load(tiny.write_encoder(tmp_path / "e"), threads=1)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_rows_are_those_of_each_text_alone(encoder: runtime_edge.Model, batch_size: int) -> None:
    found = encoder.encode(TEXTS, batch_size=batch_size)
    assert (found.dtype, found.shape) == (np.float32, (len(TEXTS), 6))
    np.testing.assert_allclose(found, [expected(text, 6) for text in TEXTS], rtol=0, atol=1e-6)


def test_like_lengths_share_a_batch(encoder: runtime_edge.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    session = encoder._encoding("text-embedding")._session
    shapes = []
    run = session.run

    def spy(inputs: dict[str, np.ndarray], *, alone: bool, stop: object) -> np.ndarray:
        assert alone
        shapes.append(inputs["input_ids"].shape)
        return run(inputs, alone=alone, stop=stop)

    monkeypatch.setattr(session, "run", spy)
    encoder.encode(TEXTS, batch_size=3)
    assert shapes == [(3, 3), (3, 5), (1, 5)]


@pytest.mark.parametrize(
    ("lengths", "size", "worth", "want"),
    [
        ([], 4, 32, []),
        ([5, 1, 3], 4, None, [[1, 2, 0]]),
        ([5, 1, 3], 4, 6, [[1, 2, 0]]),  # 4 + 2 tokens of padding
        ([5, 1, 3], 4, 5, [[1, 2], [0]]),
        ([5, 1, 3], 4, 0, [[1], [2], [0]]),
        ([7] * 5, 2, 0, [[0, 1], [2, 3], [4]]),
        ([9, 9, 100], 8, 32, [[0, 1], [2]]),
    ],
)
def test_a_batch_ends_where_padding_costs_more(
    lengths: list[int], size: int, worth: int | None, want: list[list[int]]
) -> None:
    assert embed._batches(lengths, size, worth) == want


@pytest.fixture
def wide(tmp_path: Path) -> runtime_edge.Model:
    return runtime_edge.load(tiny.write_encoder(tmp_path / "wide"), threads=2)


def test_many_batches_run_side_by_side(wide: runtime_edge.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at a time where two threads have at least two batches each; each in a thread of its own."""
    session: Any = wide._encoding("text-embedding")._session
    both, paired, seen = threading.Barrier(2, timeout=30), [True], []
    run = session.run

    def spy(inputs: dict[str, np.ndarray], *, alone: bool, stop: object) -> np.ndarray:
        seen.append((alone, len(inputs["input_ids"])))
        if not alone and paired:
            both.wait()  # neither goes on before the other has begun
        return run(inputs, alone=alone, stop=stop)

    monkeypatch.setattr(session, "run", spy)
    wide.encode(TEXTS[:3], batch_size=1)
    assert [alone for alone, _ in seen] == [True] * 3
    assert session._single is None  # weights are not held twice before they have to be
    found = wide.encode(TEXTS * 8, batch_size=7)
    np.testing.assert_allclose(found, [expected(text, 6) for text in TEXTS * 8], rtol=0, atol=1e-6)
    assert [alone for alone, _ in seen[3:]] == [False] * 8
    monkeypatch.setattr(embed, "SMALL", 7 * 4)  # batches of five tokens a text are too large
    paired.clear()
    seen.clear()
    wide.encode(TEXTS * 8, batch_size=7)
    assert {alone for alone, _ in seen} == {True, False}


def test_large_weights_are_held_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "MOST_TWICE", 100)
    model = runtime_edge.load(tiny.write_encoder(tmp_path / "large"), threads=2)
    session: Any = model._encoding("text-embedding")._session
    assert session.workers == 1
    assert model.encode(TEXTS * 8, batch_size=7).shape == (56, 6)
    assert session._single is None


def test_an_error_of_one_batch_ends_the_others(wide: runtime_edge.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    session: Any = wide._encoding("text-embedding")._session
    calls: list[int] = []

    def fails(inputs: dict[str, np.ndarray], *, alone: bool, stop: object) -> np.ndarray:
        calls.append(1)
        raise ArtifactError("a batch failed")

    monkeypatch.setattr(session, "run", fails)
    with pytest.raises(ArtifactError, match="a batch failed"):
        wide.encode(TEXTS * 100, batch_size=1)
    assert len(calls) <= 4


@pytest.mark.parametrize("change", ["gone", "another"])
def test_a_graph_that_is_no_longer_the_one_that_was_loaded(tmp_path: Path, change: str) -> None:
    """Many texts run as few do: by what was loaded."""
    path = tiny.write_encoder(tmp_path / "e")
    model = runtime_edge.load(path, threads=2)
    graph = next(path.glob("*.onnx"))
    if change == "another":
        (tmp_path / "new").write_bytes(b"not a graph")
        (tmp_path / "new").replace(graph)
    else:
        graph.unlink()
    found = model.encode(TEXTS * 8, batch_size=7)
    np.testing.assert_allclose(found, [expected(text, 6) for text in TEXTS * 8], rtol=0, atol=1e-6)


def test_nothing_gives_no_rows(encoder: runtime_edge.Model) -> None:
    assert encoder.encode([]).shape == (0, 6)
    assert encoder.encode(iter(["one"])).shape == (1, 6)


def test_bad_texts_are_named(encoder: runtime_edge.Model) -> None:
    with pytest.raises(RequestError, match="texts: expected a list of texts, found str"):
        encoder.encode("one")
    with pytest.raises(RequestError, match=r"texts\[1\]: expected text, found int"):
        encoder.encode(["one", 2])  # type: ignore[list-item]
    with pytest.raises(RequestError, match=r"texts\[0\]: .* lone surrogate"):
        encoder.encode(["\udc00"])
    with pytest.raises(RequestError, match="batch_size: expected a whole number >= 1, found 0"):
        encoder.encode(["one"], batch_size=0)


def test_generation_methods_name_the_task(encoder: runtime_edge.Model) -> None:
    for call in (lambda: encoder.generate("a"), lambda: encoder.score([1]), encoder.context):
        with pytest.raises(RequestError, match="expected a model for text-generation, found one for text-embedding"):
            call()
    with pytest.raises(RequestError, match="expected a model for text-classification"):
        encoder.classify(["one"])


def test_use_after_close(encoder: runtime_edge.Model) -> None:
    encoder.close()
    with pytest.raises(ClosedError):
        encoder.encode(["one"])


@pytest.mark.parametrize("multi_label", [False, True])
def test_classify(tmp_path: Path, multi_label: bool) -> None:
    labels = ("good", "bad", "odd")
    model = runtime_edge.load(tiny.write_encoder(tmp_path, labels=labels, multi_label=multi_label), threads=1)
    found = model.classify(TEXTS)
    for text, result in zip(TEXTS, found, strict=True):
        logits = expected(text, 3)
        probabilities = 1 / (1 + np.exp(-logits)) if multi_label else np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(list(result.scores.values()), probabilities, rtol=1e-6)
        assert tuple(result.scores) == labels
        assert (result.label, result.score) == (labels[int(logits.argmax())], max(result.scores.values()))
    assert model.classify([]) == []
    with pytest.raises(RequestError, match="expected a model for text-embedding"):
        model.encode(["one"])
