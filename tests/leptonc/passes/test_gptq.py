"""GPTQ and the clipping search against straightforward float64, and against rounding to nearest."""

from __future__ import annotations

import numpy as np
import pytest

from leptonc.passes.columns import DAMPING
from leptonc.passes.quantize.blocks import Format, dequantize, round_to_nearest
from leptonc.passes.quantize.gptq import clip_search, gptq, output_error, spread

FORMS = [
    Format(2, 16, False), Format(4, 16, False), Format(4, 32, True), Format(8, 32, False),
    Format(4, 32, True, positive=True),
]  # fmt: skip


def layer(columns: int = 80) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    weight = random.standard_normal((24, columns)).astype(np.float32)
    mixed = random.standard_normal((columns, columns)) * np.linspace(0.1, 3, columns)
    x = (random.standard_normal((400, columns)) @ mixed).astype(np.float32)
    return weight, x.T @ x


def reference(weight: np.ndarray, form: Format, hessian: np.ndarray) -> np.ndarray:
    """GPTQ as the paper's equations say it, a channel at a time, the inverse made anew for what is left."""
    searched = clip_search(weight, form, np.diag(hessian))
    scale, zero = (each.astype(np.float64) for each in spread(searched.scales, searched.zeros, form, weight.shape[1]))
    h = hessian.astype(np.float64)
    h = h + np.eye(len(h)) * DAMPING * np.diag(h).mean()
    left, rest = list(np.argsort(-np.diag(hessian.astype(np.float64)), kind="stable")), weight.astype(np.float64)
    result = np.empty_like(rest)
    while left:
        at, inverse = left[0], np.linalg.inv(h[np.ix_(left, left)])
        code = np.clip(np.rint(rest[:, at] / scale[:, at]) + zero[:, at], 0, form.top)
        result[:, at] = (code - zero[:, at]) * scale[:, at]
        error = (rest[:, at] - result[:, at]) / inverse[0, 0]
        rest[:, left[1:]] -= np.outer(error, inverse[0, 1:])
        left = left[1:]
    return result


@pytest.mark.parametrize("form", FORMS)
def test_gptq_is_what_the_papers_equations_give(form: Format) -> None:
    weight, hessian = layer()
    found, wanted = dequantize(gptq(weight, form, hessian), form), reference(weight, form, hessian)
    # A rounding that float32 decides the other way changes what follows in its row: few rows may differ.
    equal = np.isclose(found, wanted, atol=1e-5).all(axis=1)
    assert equal.mean() >= 0.8
    off = wanted - weight
    exact = np.vdot(off @ hessian, off) / np.vdot(weight @ hessian, weight)
    assert output_error(weight, gptq(weight, form, hessian), form, hessian) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("form", FORMS)
def test_gptq_loses_less_than_the_search_and_the_search_less_than_rounding(form: Format) -> None:
    weight, hessian = layer()
    diagonal = np.diag(np.diag(hessian))
    errors = [
        output_error(weight, parts, form, hessian)
        for parts in (gptq(weight, form, hessian), clip_search(weight, form, np.diag(hessian)))
    ]
    assert errors[0] < 0.7 * errors[1]
    searched = clip_search(weight, form, np.diag(hessian))
    rounded = round_to_nearest(weight, form)
    assert output_error(weight, searched, form, diagonal) <= output_error(weight, rounded, form, diagonal) * (1 + 1e-6)


@pytest.mark.parametrize("columns", [40, 7])
def test_a_last_block_may_be_short(columns: int) -> None:
    weight, hessian = layer(columns)
    parts = gptq(weight, Format(4, 16, False), hessian)
    assert parts.codes.shape == (24, columns)
    assert parts.scales.shape == (24, -(-columns // 16))


def test_inputs_that_are_always_zero_leave_the_search() -> None:
    weight, hessian = layer()
    parts = gptq(weight, Format(4, 16, False), np.zeros_like(hessian))
    assert np.isfinite(dequantize(parts, Format(4, 16, False))).all()


def test_a_weight_of_zeros_stays_zero() -> None:
    _, hessian = layer()
    form = Format(4, 16, False)
    assert not dequantize(gptq(np.zeros((3, 80), np.float32), form, hessian), form).any()
