"""Fidelity figures against float64 in numpy, and the text that they are measured on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from leptonc.errors import InputError
from leptonc.evaluate.fidelity import compare_logits, compare_rows, log_softmax, scores, significant
from leptonc.evaluate.text import load_text, sentences
from leptonc.report import as_plain
from leptonc.report.quality import Fidelity

LENGTH, VOCAB = 29, 50
RANDOM = np.random.default_rng(0)
WANT = (RANDOM.standard_normal((LENGTH, VOCAB)) * 3).astype(np.float32)
GOT = (WANT + RANDOM.standard_normal((LENGTH, VOCAB)) * 0.7).astype(np.float32)
IDS = [int(t) for t in RANDOM.integers(0, VOCAB, LENGTH)]


def blocks(logits: NDArray[np.float32], sizes: Sequence[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    at = 0
    for n in sizes:
        yield at, logits[at : at + n].copy()
        at += n
    assert at == len(logits)


def exact(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    odds = np.exp(logits.astype(np.float64))
    found: NDArray[np.float64] = np.log(odds / odds.sum(-1, keepdims=True))
    return found


@pytest.mark.parametrize(
    ("left", "right"), [([29], [29]), ([10, 19], [29]), ([29], [1] * 29), ([7, 7, 15], [3, 20, 6]), ([1] * 29, [28, 1])]
)
def test_figures_whatever_the_blocks(left: list[int], right: list[int]) -> None:
    found = as_plain(compare_logits(blocks(WANT, left), blocks(GOT, right), IDS))
    p, q = exact(WANT), exact(GOT)
    at = np.arange(LENGTH - 1)
    expected = {
        "tokens": LENGTH,
        "max_abs_diff": np.abs(WANT - GOT).max(),
        "mean_abs_diff": np.abs(WANT - GOT).mean(),
        "kl_divergence": (np.exp(p) * (p - q)).sum(1).mean(),
        "top1_agreement": (WANT.argmax(1) == GOT.argmax(1)).mean(),
        "perplexity_reference": math.exp(-p[at, IDS[1:]].mean()),
        "perplexity": math.exp(-q[at, IDS[1:]].mean()),
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name
    assert 0 < found["top1_agreement"] < 1
    assert found["kl_divergence"] > 0.01


def test_a_model_against_itself() -> None:
    same = compare_logits(blocks(WANT, [29]), blocks(WANT, [29]), IDS)
    assert (same.max_abs_diff, same.mean_abs_diff, same.kl_divergence) == (0, 0, 0)
    assert same.top1_agreement == 1
    assert same.perplexity == same.perplexity_reference


def test_kl_divergence_is_of_the_reference_from_the_artifact() -> None:
    one = compare_logits(blocks(WANT, [29]), blocks(GOT, [29]), IDS).kl_divergence
    other = compare_logits(blocks(GOT, [29]), blocks(WANT, [29]), IDS).kl_divergence
    assert one != pytest.approx(other, rel=1e-3)


def test_a_single_token() -> None:
    alone = compare_logits(blocks(WANT[:1], [1]), blocks(GOT[:1], [1]), IDS[:1])
    assert (alone.tokens, alone.perplexity, alone.perplexity_reference) == (1, 1, 1)


def test_log_softmax_of_large_numbers() -> None:
    logits = np.array([[1e4, 1e4 - 1, -1e4], [88.0, 89.0, 90.0]], np.float32)
    found = log_softmax(logits)
    assert found[0, :2] == pytest.approx([-math.log(1 + math.exp(-1)), -1 - math.log(1 + math.exp(-1))], abs=1e-5)
    assert np.exp(found).sum(1) == pytest.approx([1, 1], abs=1e-6)


def test_rows_of_embeddings() -> None:
    found = as_plain(compare_rows(WANT, GOT, function=None))
    cosine = [float(np.dot(w, g) / np.linalg.norm(w) / np.linalg.norm(g)) for w, g in zip(WANT, GOT, strict=True)]
    assert found["texts"] == LENGTH
    assert found["cosine_min"] == pytest.approx(min(cosine), rel=1e-5)
    assert found["cosine_mean"] == pytest.approx(np.mean(cosine), rel=1e-5)
    assert found["max_abs_diff"] == pytest.approx(np.abs(WANT - GOT).max(), rel=1e-5)
    assert "top1_agreement" not in found
    agree = compare_rows(WANT, GOT, function="softmax").top1_agreement
    assert agree == pytest.approx((WANT.argmax(1) == GOT.argmax(1)).mean(), rel=1e-5)
    zero = np.zeros((2, 3), np.float32)
    assert compare_rows(zero, zero, function=None).cosine_min == 0


def test_scores() -> None:
    logits = np.array([[0.0, math.log(3), -2000.0]], np.float32)
    with np.errstate(over="ignore"):
        assert scores(logits, "softmax")[0] == pytest.approx([0.25, 0.75, 0.0], abs=1e-6)
        assert scores(logits, "sigmoid")[0] == pytest.approx([0.5, 0.75, 0.0], abs=1e-6)
    assert scores(logits, "none") is logits


def test_figures_have_six_digits() -> None:
    assert significant(1234567.0) == 1234570.0
    assert significant(0.000123456789) == 0.000123457
    assert significant(0.0) == 0.0
    assert significant(1 / 3, 2) == 0.33


# Texts


def test_the_built_in_text() -> None:
    text = load_text(None)
    assert len(text) > 2000
    assert len(sentences(text, 32)) == 32


def test_the_users_text(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("naïve — ok", encoding="utf-8")
    assert load_text(path) == "naïve — ok"


@pytest.mark.parametrize("data", [b"", b" \n\t "])
def test_a_text_that_is_empty(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"expected text in .*t\.txt, found none"):
        load_text(path)


def test_texts_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"na\xefve")
    with pytest.raises(InputError, match=r"expected UTF-8 text in .*latin, found other bytes at 2"):
        load_text(tmp_path / "latin")
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="cannot read the text"):
            load_text(path)


def test_sentences() -> None:
    text = "One is first.  Is two second? Yes!\nThree costs 3.50 now. "
    assert sentences(text, 10) == ["One is first.", "Is two second?", "Yes!", "Three costs 3.50 now."]
    assert sentences(text, 2) == ["One is first.", "Is two second?"]
    assert sentences("  ", 2) == []


@pytest.mark.parametrize(
    ("figures", "refused"),
    [
        ({"kl_divergence": 2e-6, "perplexity": 20.0, "perplexity_reference": 20.1}, False),
        ({"kl_divergence": 0.01, "perplexity": 20.0, "perplexity_reference": 20.0}, True),
        ({"cosine_mean": 1 - 1e-7}, False),
        ({"cosine_mean": 0.99}, True),
        ({"score_error": 1e-6}, False),
        ({"score_error": 0.01}, True),
    ],
    ids=str,
)
def test_float32_that_answers_otherwise_is_refused(figures: dict[str, float], refused: bool) -> None:
    from leptonc.errors import CaptureError
    from leptonc.evaluate.bounds import require_same

    if refused:
        with pytest.raises(CaptureError, match="expected cpu in float32 to answer as transformers"):
            require_same(Fidelity(**figures), "cpu")
    else:
        require_same(Fidelity(**figures), "cpu")
