"""Perplexity over windows, against sums written out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.cli.perplexity import lead_of, perplexity, room_of, windows
from runtime_edge.errors import RequestError


def uniform(token_ids: Sequence[int]) -> np.ndarray:
    return np.full(len(token_ids) - 1, -math.log(50.0), np.float32)


def by_token(token_ids: Sequence[int]) -> np.ndarray:
    """Log p of token t is -t/10, whatever came before."""
    return np.array([-t / 10 for t in token_ids[1:]], np.float32)


def test_a_model_that_knows_nothing_has_the_vocabularys_perplexity() -> None:
    found = perplexity(uniform, range(1000), window=64, stride=64)
    assert found.perplexity == pytest.approx(50.0, rel=1e-5)
    assert found.windows == 16
    assert found.tokens == 1000 - 16  # all but each window's first


def test_overlapping_windows_score_every_token_once() -> None:
    found = perplexity(by_token, range(101), window=20, stride=7)
    assert found.tokens == 100
    assert found.nll == pytest.approx(sum(range(1, 101)) / 10 / 100, rel=1e-6)


def test_a_token_is_scored_with_the_context_of_its_own_window() -> None:
    seen: list[tuple[int, int]] = []

    def score(token_ids: Sequence[int]) -> np.ndarray:
        seen.append((token_ids[0], token_ids[-1]))
        return np.zeros(len(token_ids) - 1, np.float32)

    perplexity(score, range(25), window=10, stride=5)
    assert seen == [(0, 9), (5, 14), (10, 19), (15, 24)]


def test_limit_and_progress() -> None:
    steps: list[int] = []
    found = perplexity(uniform, range(1000), window=10, stride=10, limit=3, advance=steps.append)
    assert (found.windows, found.tokens, steps) == (3, 27, [1, 1, 1])


def test_a_token_without_any_chance() -> None:
    found = perplexity(lambda ids: np.full(len(ids) - 1, -np.inf, np.float32), range(10), window=10, stride=10)
    assert found.perplexity == math.inf


def test_each_window_begins_with_what_comes_before_every_text() -> None:
    seen: list[list[int]] = []

    def score(token_ids: Sequence[int]) -> np.ndarray:
        seen.append(list(token_ids))
        return by_token(token_ids)

    found = perplexity(score, range(10), window=6, stride=4, lead=2)
    assert seen == [[0, 1, 2, 3, 4, 5], [0, 1, 6, 7, 8, 9]]
    assert found.tokens == 8
    assert found.nll == pytest.approx(sum(range(2, 10)) / 10 / 8, rel=1e-6)


@pytest.mark.parametrize(
    ("token_ids", "empty", "count"), [([7, 8, 9], [], 0), ([1, 8, 9], [1], 1), ([1, 8, 2], [1, 2], 1), ([1], [1], 1)]
)
def test_what_comes_before_every_text(token_ids: list[int], empty: list[int], count: int) -> None:
    assert lead_of(token_ids, empty) == count


def test_a_window_that_has_no_room() -> None:
    assert room_of(3, 2) == 1
    with pytest.raises(RequestError, match="more than the 2 tokens that come before every text, found 2"):
        room_of(2, 2)


@given(count=st.integers(0, 300), window=st.integers(2, 40), lead=st.integers(0, 3), data=st.data())
def test_windows_cover_the_text(count: int, window: int, lead: int, data: st.DataObject) -> None:
    room = window if window <= lead else window - lead
    lead = window - room
    stride = data.draw(st.integers(1, room))
    scored: list[int] = []
    for start, end, first in windows(count, window, stride, lead):
        assert lead <= start <= first <= end <= count
        assert first > start or lead
        assert end - start <= room
        scored += range(first, end)
    assert scored == sorted(set(scored))
    unscored = set(range(count)) - set(scored)
    if lead:
        assert unscored == set(range(min(lead, count)))
    else:
        assert unscored == (set(range(0, count, stride)) if stride == window else {0} & set(range(count)))
