"""Statistics of activations, against numpy over all of them at once."""

from __future__ import annotations

import numpy as np
import pytest

from leptonc.calibrate.statistics import BINS, ROWS, Histogram, Statistics
from leptonc.errors import InputError


def test_a_histogram_is_that_of_all_values_at_once() -> None:
    random, found = np.random.default_rng(0), Histogram()
    parts = [random.standard_normal(5000).astype(np.float32) * size for size in (0.3, 5, 40)]
    for part in parts:
        found.add(part)
    values = np.concatenate(parts)
    want, _ = np.histogram(values, bins=BINS, range=(-found.limit, found.limit))
    assert found.limit == 2.0 ** np.ceil(np.log2(np.abs(values).max()))
    assert found.counts.sum() == len(values)
    # A value on an edge may be counted on either side of it.
    assert np.abs(np.cumsum(found.counts) - np.cumsum(want)).max() <= 2
    assert (found.low, found.high) == (values.min(), values.max())


def test_zeros_have_a_histogram_too() -> None:
    found = Histogram()
    found.add(np.zeros(7, np.float32))
    found.add(np.array([3.0], np.float32))
    assert found.counts.sum() == 8
    assert found.limit == 4
    assert found.counts[BINS // 2] == 7


def test_parts_make_the_whole() -> None:
    random = np.random.default_rng(1)
    texts = [(random.standard_normal((1, 200, 6)) * np.arange(1, 7)).astype(np.float32) for _ in range(3)]
    for text in texts:
        text[0, 0] = 500.0 * np.arange(-2, 4)  # an attention sink
    seen = Statistics("layer", 6)
    for text in texts:
        seen.add(text)
    rows = np.concatenate([text[0] for text in texts])
    ordinary = np.concatenate([text[0, 1:] for text in texts])
    assert (seen.tokens, seen.sinks) == (597, 3)
    assert np.array_equal(seen.low, rows.min(0))
    assert np.array_equal(seen.high, rows.max(0))
    assert np.array_equal(seen.largest, np.abs(rows).max(0))
    assert np.allclose(seen.square, np.square(ordinary.astype(np.float64)).sum(0), rtol=1e-5)
    assert np.allclose(seen.mean(), ordinary.mean(0, dtype=np.float64), rtol=1e-6, atol=1e-9)
    assert seen.histogram.high == ordinary.max()  # the sinks are apart
    assert seen.ends(None) == (-1000, 1500)
    # Sinks count as much as all others together, and no more.
    assert seen.sink_weight * seen.sink_square.sum() == pytest.approx(seen.square.sum())
    assert seen.importance().sum() * seen.tokens == pytest.approx(2 * seen.square.sum())
    kept, weights = seen.sample()
    assert len(kept) == 600
    assert {tuple(row) for row in kept} == {tuple(row) for row in rows}
    assert weights[:597].sum() == pytest.approx(597)
    assert weights[597:].sum() == pytest.approx(3 * seen.sink_weight)


def test_what_is_kept_is_bounded_and_even() -> None:
    seen, random = Statistics("layer", 1), np.random.default_rng(2)
    position = np.sort(random.uniform(1, 2, 20 * ROWS)).astype(np.float32)
    for part in np.split(position, 20):
        seen.add(part[:, None])
    kept, weights = seen.sample()
    assert len(kept) == ROWS
    assert weights.sum() == pytest.approx(20 * ROWS)
    assert abs(kept.mean() - position.mean()) < 0.05  # of all that was seen, not of its start or end


def test_scales_divide() -> None:
    seen, random = Statistics("layer", 3), np.random.default_rng(3)
    x = random.standard_normal((50, 3)).astype(np.float32)
    seen.add(x)
    scales = np.array([1, 4, 0.5], np.float32)
    ordinary, sinks = seen.scaled_histogram(scales)
    assert ordinary.counts.sum() == pytest.approx(150)
    assert ordinary.high == pytest.approx((x / scales).max())
    assert not sinks.counts.any()
    assert seen.ends(scales) == pytest.approx(((x / scales).min(), (x / scales).max()))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(bad: float) -> None:
    x = np.ones((4, 2), np.float32)
    x[2, 1] = bad
    with pytest.raises(InputError, match=r"expected finite activations .* found others at the input of layer"):
        Statistics("layer", 2).add(x)
