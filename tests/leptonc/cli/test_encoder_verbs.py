"""`run` and `bench` of models that do not generate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runtime_edge


def test_run_prints_the_embedding(leptonc: Callable[..., Any], artifact: Callable[..., Path]) -> None:
    path = artifact("sample:tiny-sentence", weights="fp32")
    with runtime_edge.load(path) as model:
        expected = model.encode(["some words"])[0].tolist()
    done = leptonc("run", path, "some words")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["embedding"] == pytest.approx(expected, abs=1e-6)


def test_run_with_a_prompt(leptonc: Callable[..., Any], artifact: Callable[..., Path]) -> None:
    path = artifact("sample:tiny-sentence", weights="fp32")
    plain = leptonc("run", path, "some words").out
    assert leptonc("run", path, "some words", "--prompt-name", "query").out == plain  # this model's is empty
    done = leptonc("run", path, "some words", "--prompt-name", "other")
    assert (done.code, done.out) == (1, "")
    assert "expected one of this model's prompts ('document', 'query'), found 'other'" in done.err
    classifier = artifact("sample:tiny-bert-classifier", weights="fp32")
    done = leptonc("run", classifier, "some words", "--prompt-name", "query")
    assert (done.code, done.out) == (2, "")
    assert "this one classifies" in done.err


def test_run_prints_the_labels(leptonc: Callable[..., Any], artifact: Callable[..., Path]) -> None:
    path = artifact("sample:tiny-bert-classifier", weights="fp32")
    found = json.loads(leptonc("run", path, "some words").out)
    assert found["scores"][found["label"]] == found["score"] == max(found["scores"].values())


def test_bench_measures_batches(leptonc: Callable[..., Any], artifact: Callable[..., Path]) -> None:
    path = artifact("sample:tiny-sentence", weights="fp32")
    done = leptonc("bench", path, "--batches", "2", "--repetitions", "2", "--json")
    record = json.loads(done.out)
    (figures,) = record["encode"]
    assert figures["batch"] == 2
    assert min(figures["texts_s"]["values"]) > 0
    assert record["prefill"] == record["decode"] == []
    assert [line.partition(":")[0] for line in record["includes"]] == ["start", "load", "encode", "memory"]


def test_what_only_a_language_model_has(leptonc: Callable[..., Any], artifact: Callable[..., Path]) -> None:
    done = leptonc("eval", artifact("sample:tiny-sentence", weights="fp32"), "--text", __file__)
    assert (done.code, done.out) == (1, "")
    assert "expected a model for text-generation, found one for text-embedding" in done.err
