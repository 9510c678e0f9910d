"""Examples: the original's greedy answers from another model's drafts, and neighbours of texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leptonc.evaluate.examples import QUESTIONS, greedy, neighbours
from leptonc.evaluate.reference import Reference
from leptonc.frontend.capture import capture
from leptonc.sources import open_source


def following(text: list[int], salt: int) -> int:
    """The next token of a made-up model: two of them agree on most."""
    return (sum(text[-3:]) * 7 + len(text) + (salt if len(text) % 5 == 0 else 0)) % 50


def alone(text: list[int], most: int, salt: int, ends: frozenset[int]) -> list[int]:
    said: list[int] = []
    while len(said) < most:
        said.append(following([*text, *said], salt))
        if said[-1] in ends:
            break
    return said


@pytest.mark.parametrize("ends", [frozenset[int](), frozenset({3, 17})])
def test_drafts_of_another_model_change_no_answer(ends: frozenset[int]) -> None:
    prompts = [[1, 2], [5, 6, 7], [9]]
    calls: list[int] = []

    def likeliest(texts: list[list[int]], since: list[int]) -> list[list[int]]:
        calls.append(len(texts))
        both = zip(texts, since, strict=True)
        return [[following(text[: at + 1], 0) for at in range(start, len(text))] for text, start in both]

    def go_on(texts: list[list[int]], most: int) -> list[list[int]]:
        return [alone(text, most, 1, ends) for text in texts]

    drafts = go_on(prompts, 30)
    wanted = [alone(prompt, 30, 0, ends) for prompt in prompts]
    assert drafts != wanted
    assert greedy(likeliest, go_on, prompts, drafts, ends, most=30, rounds=99) == wanted
    assert len(calls) < 12  # and not 30
    cut = greedy(likeliest, go_on, prompts, drafts, ends, most=30, rounds=1)
    assert all(cut)
    assert all(whole[: len(part)] == part for part, whole in zip(cut, wanted, strict=True))


def test_texts_of_different_lengths_run_side_by_side() -> None:
    with open_source("sample:tiny-llama") as source:
        reference = Reference(source, capture(source, max_seq_len=64).task)
        texts, since = [[5, 9, 11, 40], [7, 8, 3, 2, 30, 31, 6]], [1, 4]
        picked = reference.likeliest(texts, since)
        for text, at, tokens in zip(texts, since, picked, strict=True):
            logits = np.concatenate([block for _, block in reference.logits(text)])
            assert tokens == logits[at:].argmax(-1).tolist()


def test_neighbours_are_the_most_alike() -> None:
    rows = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 2]], np.float32)
    shown = neighbours(["a", "b", "c", "d" * 500], rows, rows[:, ::-1] * 3)
    assert shown is not None
    assert [row.original.partition(": ")[2][:1] for row in shown.rows] == ["b", "a", "d", "c"]
    assert [row.original for row in shown.rows] == [row.artifact for row in shown.rows]
    assert len(shown.rows[3].input) < 200
    assert neighbours(["a", "b"], rows[:2], rows[:2]) is None


def test_a_report_has_what_both_say(artifact: Callable[..., Path]) -> None:
    path = artifact("sample:tiny-llama", weights="fp32", check=True)
    found: dict[str, Any] = json.loads((path / "report.json").read_text())["variants"]["cpu"]["examples"]
    rows = found["rows"]
    assert [row["input"] for row in rows] == list(QUESTIONS)  # it has a chat template
    assert all(row["original"] == row["artifact"] for row in rows)  # float32 says the same
    assert any(row["original"] for row in rows)
