"""Each calibrator against its definition in float64, over the values themselves and not a histogram."""

from __future__ import annotations

import numpy as np
import pytest

from leptonc.calibrate.calibrators import CALIBRATORS, LEVELS, STEPS, TAIL, Grid, calibrators, grids_of
from leptonc.calibrate.statistics import BINS, Histogram, Statistics
from leptonc.errors import InputError

RANDOM = np.random.default_rng(0)
HEAVY = (RANDOM.standard_t(3, 40_000) * np.where(RANDOM.random(40_000) < 0.3, 3, 1) + 0.5).astype(np.float32)


def histogram(values: np.ndarray) -> Histogram:
    found = Histogram()
    found.add(values)
    return found


def ends(values: np.ndarray) -> tuple[float, float]:
    return min(0.0, float(values.min())), max(0.0, float(values.max()))


def chosen(name: str, values: np.ndarray, symmetric: bool) -> tuple[float, float]:
    return CALIBRATORS[name](histogram(values), Histogram(), ends(values), symmetric)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_grid_rounds_as_onnx_says(symmetric: bool) -> None:
    grid = Grid.over(-3.0, 5.0, symmetric)
    x = np.linspace(-10, 10, 4001, dtype=np.float32)
    bottom, top = (-128, 127) if symmetric else (0, 255)
    want = (np.clip(np.rint(x.astype(np.float64) / grid.scale) + grid.zero, bottom, top) - grid.zero) * grid.scale
    # Off by a step where x lies half way between two and float32 decides.
    assert np.median(np.abs(grid.round(x) - want)) <= 1e-6
    assert np.abs(grid.round(x) - want).max() <= grid.scale * 1.001
    assert grid.round(np.zeros(1, np.float32))[0] == 0
    inside = (x >= -3) & (x <= 5)
    assert np.abs(grid.round(x) - x)[inside].max() <= grid.scale * 1.001  # a half, and where the zero is rounded to


@pytest.mark.parametrize("symmetric", [True, False])
def test_inputs_that_are_always_zero(symmetric: bool) -> None:
    seen = Statistics("layer", 2)
    seen.add(np.zeros((3, 2), np.float32))
    for name in CALIBRATORS:
        grid = grids_of(seen, [name], symmetric)[0]
        assert (grid.scale, grid.zero) == (1.0, 0)


def test_minmax_is_the_whole_range() -> None:
    assert chosen("minmax", HEAVY, False) == (HEAVY.min(), HEAVY.max())


def test_percentile_is_numpy_s() -> None:
    low, high = chosen("percentile", HEAVY, False)
    want = np.quantile(HEAVY.astype(np.float64), [TAIL, 1 - TAIL])
    bin_ = 2 * histogram(HEAVY).limit / BINS
    gap = np.diff(np.sort(HEAVY))[[2, 3, 4, -5, -4, -3]].max()  # between the values that the quantile lies among
    assert abs(low - want[0]) <= bin_ + gap
    assert abs(high - want[1]) <= bin_ + gap


def divergence(values: np.ndarray, bins: int, width: float) -> float:
    """Of magnitudes cut off at `bins` bins from what 128 levels make of them; straight from the definition."""
    edges = np.arange(bins + 1) * width
    counts, _ = np.histogram(np.abs(values), bins=edges)
    counts = counts.astype(np.float64)
    p = counts.copy()
    p[-1] += (np.abs(values) > edges[-1]).sum()
    q = np.zeros(bins)
    for level in range(LEVELS):
        start, stop = level * bins // LEVELS, (level + 1) * bins // LEVELS
        held = counts[start:stop] > 0
        if held.any():  # of what lies within: what lies beyond is in p alone
            q[start:stop][held] = counts[start:stop].sum() / held.sum()
    p, q = p / p.sum(), q / q.sum()
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / q[seen])).sum()) if (q[seen] > 0).all() else np.inf


def test_entropy_is_the_least_divergence() -> None:
    values = np.abs(HEAVY)
    found = histogram(values)
    width = found.limit / (BINS // 2)
    used = int(np.ceil(values.max() / width))
    tried = range(LEVELS, used + 1, LEVELS // 16)
    each = [divergence(values, bins, width) for bins in tried]
    low, high = chosen("entropy", values, True)
    at = round(high / width)
    assert low == 0
    assert LEVELS < at < used  # it cuts, and not everything
    assert divergence(values, at, width) <= min(each) * 1.01
    assert min(each) < 0.6 * divergence(values, used, width)


@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_is_the_least_squared_error(symmetric: bool) -> None:
    low, high = chosen("mse", HEAVY, symmetric)
    values = HEAVY.astype(np.float64)

    def cost(low: float, high: float) -> float:
        return float(np.square(Grid.over(low, high, symmetric).round(HEAVY) - values).mean())

    whole = ends(HEAVY)
    parts = np.arange(1, STEPS + 1) / STEPS
    tried = [(whole[0] * a, whole[1] * b) for a in parts for b in (a, 1.0)] + [(whole[0], whole[1] * b) for b in parts]
    assert cost(low, high) <= min(cost(*each) for each in tried) * 1.02
    assert cost(low, high) < 0.95 * cost(*whole)


def test_massive_activations_neither_decide_nor_vanish() -> None:
    """One token in 400 whose activations are a thousand times the others'."""
    seen, random = Statistics("layer", 8), np.random.default_rng(1)
    x = random.standard_normal((400, 8)).astype(np.float32)
    x[0] *= 1000
    seen.add(x)
    largest, ordinary = float(np.abs(x[0]).max()), float(np.abs(x[1:]).max())
    assert grids_of(seen, ["minmax"], True)[0].scale == pytest.approx(largest / 127)
    for name in ("percentile", "entropy"):
        assert grids_of(seen, [name], True)[0].scale <= ordinary / 127 * 1.001
    # They count as much as all others: rounding those away would cost that much, cutting these off twice as much.
    assert ordinary / 127 * 0.2 < grids_of(seen, ["mse"], True)[0].scale < largest / 127 * 0.2
    # The same massive token is not cut off where it counts more.
    few = Statistics("layer", 8)
    few.add(np.concatenate([x[:1] / 200, x[1:]]))
    assert few.sinks == 0 or few.sink_weight == 1


def test_an_unknown_name() -> None:
    with pytest.raises(InputError, match="among minmax, percentile, entropy, mse, search, found 'max'"):
        calibrators("max")
    assert calibrators("mse") == ("mse",)
    assert set(calibrators("search")) < CALIBRATORS.keys()
