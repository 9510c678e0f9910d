"""Removal of a layer's inputs against brute force, and what makes up for them against numpy's least squares."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from leptonc.passes.prune import obs
from leptonc.passes.prune.allocate import allocate


def _layer(seed: int, out: int = 5, width: int = 12, tokens: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.standard_normal((tokens, width)) @ random.standard_normal((width, width))
    return random.standard_normal((out, width)), x, x.T @ x / tokens


def _units(count: int, width: int) -> np.ndarray:
    return np.arange(count * width).reshape(count, width)


def _best_error(weight: np.ndarray, x: np.ndarray, gone: list[int], factor: np.ndarray | None = None) -> float:
    """Mean square error of the outputs that least squares over the inputs kept leaves."""
    keep = np.delete(np.arange(x.shape[1]), gone)
    y = x @ weight.T
    off = y - x[:, keep] @ np.linalg.lstsq(x[:, keep], y, rcond=None)[0]
    off = off if factor is None else off @ factor.T
    return float((off**2).sum() / len(x))


@pytest.mark.parametrize("factor", [False, True])
def test_cost_of_a_removal_is_what_least_squares_leaves(factor: bool) -> None:
    weight, x, moments = _layer(0)
    metric = np.random.default_rng(1).standard_normal((3, 5)) if factor else None
    for gone in ([3], [0, 7], [1, 2, 5, 11]):
        found = obs.Removal(weight, moments, factor=metric, damping=0).cost(gone)
        assert found == pytest.approx(_best_error(weight, x, gone, metric), rel=1e-9)


@pytest.mark.parametrize("width", [1, 3])
def test_costs_along_the_curve_are_those_of_the_sets(width: int) -> None:
    weight, x, moments = _layer(2)
    curve = obs.curve(weight, moments, _units(12 // width, width), damping=0)
    assert sorted(curve.order) == list(range(12 // width))
    assert curve.counts[0] == 0
    assert curve.costs[0] == 0
    assert np.all(np.diff(curve.costs) >= 0)
    for count, cost in zip(curve.counts[1:], curve.costs[1:], strict=True):
        gone = [unit * width + i for unit in curve.order[:count] for i in range(width)]
        assert cost == pytest.approx(_best_error(weight, x, gone), rel=1e-7)


def test_units_may_be_anywhere_and_some_inputs_in_none() -> None:
    weight, x, moments = _layer(9)
    units = np.array([[0, 11], [3, 4], [7, 2]])
    curve = obs.curve(weight, moments, units, step=2, most=0.7, damping=0)
    assert curve.counts.tolist() == [0, 2]
    gone = units[curve.order].reshape(-1).tolist()
    assert curve.costs[1] == pytest.approx(_best_error(weight, x, gone), rel=1e-9)


def test_first_removal_is_the_best_of_all() -> None:
    weight, x, moments = _layer(3)
    curve = obs.curve(weight, moments, _units(3, 4), damping=0)
    errors = [_best_error(weight, x, list(range(4 * unit, 4 * unit + 4))) for unit in range(3)]
    assert curve.order[0] == int(np.argmin(errors))


def test_inputs_that_others_stand_in_for_go_first_however_large() -> None:
    weight, x, _ = _layer(4)
    x[:, 6] = 50 * (x[:, 1] - 2 * x[:, 9])
    moments = x.T @ x / len(x)
    curve = obs.curve(weight, moments, _units(12, 1), damping=1e-12)
    assert curve.order[0] in (1, 6, 9)
    assert curve.costs[1] < 1e-6 * float(np.vdot(weight @ moments, weight))


def test_least_squares_is_numpys() -> None:
    weight, x, moments = _layer(5)
    target = np.random.default_rng(6).standard_normal((len(x), 5))
    cross = target.T @ x / len(x)
    found = obs.least_squares(weight, moments, cross, ridge=0)
    np.testing.assert_allclose(found, np.linalg.lstsq(x, target, rcond=None)[0].T, rtol=1e-5, atol=1e-6)
    near = obs.least_squares(weight, moments, cross, ridge=1e9)
    np.testing.assert_allclose(near, weight, atol=1e-5)
    np.testing.assert_array_equal(obs.least_squares(weight, moments), weight.astype(np.float32))


def test_least_squares_is_exact_for_combinations_of_what_is_kept() -> None:
    weight, x, _ = _layer(7)
    x[:, 8:] = x[:, :8] @ np.random.default_rng(8).standard_normal((8, 4))
    keep, y = x[:, :8], x @ weight.T
    found = obs.least_squares(weight[:, :8], keep.T @ keep / len(x), y.T @ keep / len(x), ridge=0)
    np.testing.assert_allclose(keep @ found.T, y, atol=1e-4)


def test_nothing_seen_keeps_the_weights() -> None:
    weight = np.eye(4)
    curve = obs.curve(weight, np.zeros((4, 4)), _units(4, 1))
    assert sorted(curve.order) == [0, 1, 2, 3]
    np.testing.assert_array_equal(obs.least_squares(weight, np.zeros((4, 4)), np.zeros((4, 4))), weight)


def _brute(blocks: list[np.ndarray], target: float) -> float:
    found = [
        sum(block[i, 1] for block, i in zip(blocks, pick, strict=True))
        for pick in itertools.product(*(range(len(block)) for block in blocks))
        if sum(block[i, 0] for block, i in zip(blocks, pick, strict=True)) >= target
    ]
    return min(found)


@pytest.mark.parametrize("seed", range(5))
def test_allocation_of_equal_convex_steps_is_the_best(seed: int) -> None:
    random = np.random.default_rng(seed)
    blocks = [
        np.stack([np.arange(5.0), np.concatenate([[0], np.cumsum(np.sort(random.random(4)))])], 1) for _ in range(4)
    ]
    for target in range(17):
        chosen = allocate(blocks, target)
        cost = sum(block[i, 1] for block, i in zip(blocks, chosen, strict=True))
        assert sum(block[i, 0] for block, i in zip(blocks, chosen, strict=True)) == target
        assert cost == pytest.approx(_brute(blocks, target))


def test_allocation_skips_choices_that_a_mix_of_others_beats() -> None:
    dear = np.array([[0, 0], [1, 5], [4, 6]])  # half way costs nearly all
    cheap = np.array([[0, 0], [1, 1], [2, 4]])
    assert allocate([dear, cheap], 1) == [0, 1]
    assert allocate([dear, cheap], 5) == [2, 1]
    assert allocate([dear, cheap], 100) == [2, 2]
    assert allocate([dear, cheap], 0) == [0, 0]


def test_allocation_takes_back_what_a_large_step_made_needless() -> None:
    small = np.array([[0.0, 0.0], [1.0, 0.1]])
    large = np.array([[0.0, 0.0], [10.0, 5.0]])
    assert allocate([small, large], 10) == [0, 1]
