"""Deciding inputs one after the other against the same in float64, the inverse made anew for what is left."""

from __future__ import annotations

import numpy as np
import pytest

from leptonc.passes.columns import DAMPING, decide, energy, factorize, shift_of


def layer(columns: int, rows: int = 24) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(columns)
    x = random.standard_normal((400, columns)) @ (random.standard_normal((columns, columns)) / columns**0.5)
    return random.standard_normal((rows, columns)).astype(np.float32), (x.T @ x).astype(np.float32)


@pytest.mark.parametrize("together", [1, 4])
@pytest.mark.parametrize("largest_first", [True, False])
@pytest.mark.parametrize("columns", [4, 16, 44, 100])
def test_inputs_left_make_up_for_those_decided(columns: int, largest_first: bool, together: int) -> None:
    """Halves and panels change nothing: every third input loses its weights, and all others fit anew (1e-4)."""
    weight, hessian = layer(columns)
    factor = factorize(hessian, largest_first=largest_first)
    assert factor is not None
    rest = np.array(weight.T[factor.order])
    seen: list[int] = []

    def choose(at: int) -> np.ndarray:
        seen.append(at)
        return rest[at] * np.float32(at % 3 != 0)

    decide(rest, factor, choose, together)
    assert seen == list(range(columns))
    h = hessian.astype(np.float64) + np.eye(columns) * DAMPING * np.diag(hessian.astype(np.float64)).mean()
    h = h[np.ix_(factor.order, factor.order)]
    wanted = weight.T[factor.order].astype(np.float64)
    for at in range(0, columns, 3):
        inverse = np.linalg.inv(h[at:, at:])
        wanted[at:] -= np.outer(inverse[:, 0] / inverse[0, 0], wanted[at])
        wanted[at] = 0  # exactly: the line before leaves rounding
    np.testing.assert_allclose(rest, wanted, atol=1e-4 * np.abs(wanted).max())


def test_inputs_are_decided_by_their_moments_or_in_their_order() -> None:
    _, hessian = layer(12)
    found = [factorize(hessian, largest_first=each) for each in (True, False)]
    assert found[0] is not None and found[1] is not None  # noqa: PT018
    assert found[0].order.tolist() == np.argsort(-np.diag(hessian)).tolist()
    assert found[1].order.tolist() == list(range(12))
    assert factorize(np.zeros_like(hessian)) is None


def test_a_rough_factor_is_near_and_float64_takes_over_where_float32_fails() -> None:
    _, hessian = layer(60)
    exact, rough = factorize(hessian), factorize(hessian, rough=True)
    assert exact is not None and rough is not None  # noqa: PT018
    np.testing.assert_allclose(rough.upper, exact.upper, atol=1e-4 * np.abs(exact.upper).max())
    again = factorize(np.full((60, 60), 1e4, np.float32), 1e-8, rough=True)  # one direction, and damping below its bits
    assert again is not None
    assert np.isfinite(again.upper).all()


def test_energy_is_the_sum_of_squares_of_outputs() -> None:
    x, weight = np.arange(12, dtype=np.float32).reshape(4, 3), np.array([[1, -2, 3]], np.float32)
    assert energy(weight, x.T @ x) == pytest.approx(float(((x @ weight.T) ** 2).sum()))


@pytest.mark.parametrize("largest_first", [True, False])
def test_what_inputs_lack_is_made_up_for(largest_first: bool) -> None:
    """Against least squares in float64 on inputs that are off, with rows of the damping below them (1e-3)."""
    random = np.random.default_rng(3)
    exact = random.standard_normal((400, 24)) @ random.standard_normal((24, 24))
    x = 0.9 * exact + 0.3 * random.standard_normal(exact.shape) @ random.standard_normal((24, 24))
    weight = random.standard_normal((8, 24))
    hessian, off = (x.T @ x).astype(np.float32), ((exact - x).T @ x).astype(np.float32)
    factor = factorize(hessian, largest_first=largest_first)
    assert factor is not None
    ridge = np.sqrt(DAMPING * np.diag(hessian).mean()) * np.eye(24)
    lacking = np.concatenate([(exact - x) @ weight.T, np.zeros((24, 8))])
    wanted = np.linalg.lstsq(np.concatenate([x, ridge]), lacking, rcond=None)[0].T
    shift = shift_of(off, factor, 1.0)
    np.testing.assert_allclose(weight @ shift, wanted, atol=1e-3 * np.abs(wanted).max())
    np.testing.assert_allclose(shift_of(off, factor, 0.5), shift / 2, atol=1e-6)
    outputs = exact @ weight.T
    errors = [np.square(x @ (weight + part * weight @ shift).T - outputs).sum() for part in (0, 0.5, 1)]
    assert errors[2] < errors[1] < 0.8 * errors[0]
