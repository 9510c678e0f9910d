"""Second moments of inputs, and the share that massive activations have in them."""

from __future__ import annotations

import numpy as np
import pytest

from leptonc.calibrate.moments import Moments
from leptonc.errors import InputError


def test_ordinary_inputs_give_their_second_moments() -> None:
    x = np.random.default_rng(0).standard_normal((3, 50, 8)).astype(np.float32)
    moments = Moments("layer", 8)
    for part in x:
        moments.add(part)
    rows = x.reshape(-1, 8).astype(np.float64)
    np.testing.assert_allclose(moments.hessian(), rows.T @ rows, rtol=1e-4, atol=1e-3)
    assert moments.tokens == 150


def test_massive_activations_count_as_much_as_all_others_together() -> None:
    x = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    x[0] = 0
    x[0, 3] = 4000
    moments = Moments("layer", 8)
    moments.add(x)
    rest = x[1:].astype(np.float64)
    wanted = rest.T @ rest
    wanted[3, 3] += np.trace(wanted)
    np.testing.assert_allclose(moments.hessian(), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_inputs_that_are_not_finite_are_refused(value: float) -> None:
    x = np.ones((4, 8), np.float32)
    x[2, 1] = value
    with pytest.raises(InputError, match=r"finite activations .* layers\.3"):
        Moments("layers.3.mlp", 8).add(x)


def test_how_far_inputs_are_from_exact_ones_is_told_without_massive_ones() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((3, 1000, 8)).astype(np.float32)  # more than are summed at once
    exact = x + random.standard_normal(x.shape).astype(np.float32)
    x[0, 0], exact[0, 0] = 4000, -4000
    moments = Moments("layer", 8)
    for part, other in zip(x, exact, strict=True):
        moments.add(part, other)
    rows, off = x.reshape(-1, 8)[1:].astype(np.float64), (exact - x).reshape(-1, 8)[1:].astype(np.float64)
    found = moments.off()
    assert found is not None
    np.testing.assert_allclose(found, off.T @ rows, rtol=1e-4, atol=1e-2)
    alone = Moments("layer", 8)
    alone.add(x)
    assert alone.off() is None
