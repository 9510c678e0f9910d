"""Perplexity over windows, against sums written out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.cli.perplexity import Windows, perplexity
from runtime_edge.errors import RequestError


def uniform(token_ids: Sequence[int]) -> np.ndarray:
    return np.full(len(token_ids) - 1, -math.log(50.0), np.float32)


def by_token(token_ids: Sequence[int]) -> np.ndarray:
    """Log p of token t is -t/10, whatever came before."""
    return np.array([-t / 10 for t in token_ids[1:]], np.float32)


def test_a_model_that_knows_nothing_has_the_vocabularys_perplexity() -> None:
    found = perplexity(uniform, Windows(range(1000), 0, 64, 64))
    assert found.perplexity == pytest.approx(50.0, rel=1e-5)
    assert found.windows == 16
    assert found.tokens == 1000 - 16  # all but each window's first


def test_overlapping_windows_score_every_token_once() -> None:
    found = perplexity(by_token, Windows(range(101), 0, 20, 7))
    assert found.tokens == 100
    assert found.nll == pytest.approx(sum(range(1, 101)) / 10 / 100, rel=1e-6)


def test_a_token_is_scored_with_the_context_of_its_own_window() -> None:
    seen: list[tuple[int, int]] = []

    def score(token_ids: Sequence[int]) -> np.ndarray:
        seen.append((token_ids[0], token_ids[-1]))
        return np.zeros(len(token_ids) - 1, np.float32)

    perplexity(score, Windows(range(25), 0, 10, 5))
    assert seen == [(0, 9), (5, 14), (10, 19), (15, 24)]


def test_some_windows_and_progress() -> None:
    steps: list[int] = []
    found = perplexity(uniform, islice(Windows(range(1000), 0, 10, 10), 3), steps.append)
    assert (found.windows, found.tokens, steps) == (3, 27, [1, 1, 1])


def test_a_token_without_any_chance() -> None:
    found = perplexity(lambda ids: np.full(len(ids) - 1, -np.inf, np.float32), Windows(range(10), 0, 10, 10))
    assert found.perplexity == math.inf


def test_each_window_begins_with_what_comes_before_every_text() -> None:
    seen: list[list[int]] = []

    def score(token_ids: Sequence[int]) -> np.ndarray:
        seen.append(list(token_ids))
        return by_token(token_ids)

    found = perplexity(score, Windows.of(range(10), [0, 1], 6))
    assert seen == [[0, 1, 2, 3, 4, 5], [0, 1, 6, 7, 8, 9]]
    assert found.tokens == 8
    assert found.nll == pytest.approx(sum(range(2, 10)) / 10 / 8, rel=1e-6)


@pytest.mark.parametrize(
    ("token_ids", "empty", "count"), [([7, 8, 9], [], 0), ([1, 8, 9], [1], 1), ([1, 8, 2], [1, 2], 1), ([1], [1], 1)]
)
def test_what_comes_before_every_text(token_ids: list[int], empty: list[int], count: int) -> None:
    assert Windows.of(token_ids, empty, 8).lead == count


def test_a_window_that_has_no_room() -> None:
    assert Windows.of(range(9), [0, 1], 3).room == 1
    with pytest.raises(RequestError, match="more than the 2 tokens that come before every text, found 2"):
        Windows.of(range(9), [0, 1], 2)


@given(count=st.integers(0, 300), window=st.integers(2, 40), lead=st.integers(0, 3), data=st.data())
def test_windows_cover_the_text(count: int, window: int, lead: int, data: st.DataObject) -> None:
    room = window if window <= lead else window - lead
    lead = window - room
    stride = data.draw(st.integers(1, room))
    scored: list[int] = []
    cuts = Windows(range(count), lead, window, stride)
    for (start, end, first), (token_ids, last) in zip(cuts.spans(), cuts, strict=True):
        assert lead <= start <= first <= end <= count
        assert first > start or lead
        assert end - start <= room
        scored += token_ids[len(token_ids) - last :]
        assert token_ids == [*range(lead), *range(start, end)]
        assert last == end - first
    assert scored == sorted(set(scored))
    unscored = set(range(count)) - set(scored)
    if lead:
        assert unscored == set(range(min(lead, count)))
    else:
        assert unscored == (set(range(0, count, stride)) if stride == window else {0} & set(range(count)))
