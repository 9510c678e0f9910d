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


@pytest.mark.parametrize(("rounds", "tolerance"), [(False, 1e-2), (True, 1.0)])
def test_how_far_inputs_are_from_exact_ones_is_told_without_massive_ones(
    rounds: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of some 50, also where the product is one of bfloat16, on processors that have it."""
    monkeypatch.setattr("leptonc.calibrate.moments.multiplies_bfloat16", lambda: rounds)
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
    np.testing.assert_allclose(found, off.T @ rows, rtol=1e-4, atol=tolerance)
    alone = Moments("layer", 8)
    alone.add(x)
    assert alone.off() is None


def test_a_fourth_of_the_texts_is_held_out_and_still_counted() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((9, 40, 8)).astype(np.float32)
    x[:, 0] *= 1000  # a sink in each text
    moments = Moments("layer", 8, hold_out=True)
    for part in x:
        moments.add(part)

    def wanted(texts: list[int]) -> np.ndarray:
        rows = x[texts][:, 1:].reshape(-1, 8).astype(np.float64)
        massive = x[:, 0].astype(np.float64)  # those of all texts
        ordinary, sinks = rows.T @ rows, massive.T @ massive
        return ordinary + sinks * np.trace(ordinary) / np.trace(sinks)

    parts = moments.held_out()
    assert parts is not None
    for found, texts in zip(parts, ([0, 1, 2, 4, 5, 6, 8], [3, 7]), strict=True):
        np.testing.assert_allclose(found, wanted(texts), rtol=1e-4, atol=1e-2)
    for _ in range(2):
        np.testing.assert_allclose(moments.hessian(), wanted(list(range(9))), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(("texts", "tokens", "hold_out"), [(4, 7, True), (3, 100, True), (8, 100, False)])
def test_too_few_tokens_hold_nothing_out(texts: int, tokens: int, hold_out: bool) -> None:
    moments = Moments("layer", 8, hold_out=hold_out)
    for seed in range(texts):
        moments.add(np.random.default_rng(seed).standard_normal((tokens, 8)).astype(np.float32))
    assert moments.held_out() is None
    assert moments.tokens == texts * tokens


def test_sums_that_wait_are_the_same_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leptonc.calibrate.moments.multiplies_bfloat16", lambda: False)

    def sums(waiting: int) -> list[np.ndarray]:
        monkeypatch.setattr("leptonc.calibrate.moments.WAITING", waiting)
        moments = Moments("layer", 8, hold_out=True)
        for seed in range(8):
            x = np.random.default_rng(seed).standard_normal((30, 8)).astype(np.float32)
            x[0] *= 1000
            moments.add(x, x + np.float32(0.1))
        parts, off = moments.held_out(), moments.off()
        assert parts is not None and off is not None  # noqa: PT018
        return [*parts, off, moments.hessian()]

    for one, other in zip(sums(0), sums(2**25), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-2)
