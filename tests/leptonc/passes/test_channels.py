"""Paired 8-bit codes: what they promise, and that they cost little."""

from __future__ import annotations

import numpy as np
import pytest

from leptonc.passes.quantize.blocks import Format, dequantize, round_to_nearest
from leptonc.passes.quantize.channels import FACTORS, MIDDLE, channel_codes, pair
from leptonc.passes.quantize.gptq import gptq, output_error

RANDOM = np.random.default_rng(0)


def form(columns: int, paired: bool = True) -> Format:
    return Format(8, columns, True, positive=True, paired=paired)


def worst(codes: np.ndarray) -> int:
    """The largest magnitude that unsigned bytes can make of two neighbours, float64."""
    signed = codes.astype(np.int64) - MIDDLE
    even = signed[:, : signed.shape[1] // 2 * 2].reshape(len(signed), -1, 2)
    up, down = (255 * np.maximum(sign * even, 0).sum(-1) for sign in (1, -1))
    return int(max(up.max(initial=0), down.max(initial=0)))


def test_every_pair_of_codes_is_made_safe_and_moves_as_little_as_it_can() -> None:
    a, b = np.meshgrid(np.arange(-127, 128), np.arange(-127, 128))
    codes = np.stack([a.ravel(), b.ravel()], 1).astype(np.float32)
    want = codes.copy()
    pair(codes)
    assert worst((codes + MIDDLE).astype(np.uint8)) <= 2**15 - 1
    same = (np.sign(want).prod(1) <= 0) | (np.abs(want).sum(1) <= 128)
    assert np.array_equal(codes[same], want[same])
    assert (np.abs(codes[~same]).sum(1) == 128).all()
    assert (codes * want >= 0).all()
    assert (np.abs(want - codes)[~same].sum(1) == np.abs(want[~same]).sum(1) - 128).all()
    assert (np.abs(np.subtract(*np.abs(want - codes).T)) <= 1).all()  # by halves


@pytest.mark.parametrize(("columns", "worse"), [(576, 2), (37, 4.5)])
def test_codes_are_paired_and_nearly_as_good_as_others(columns: int, worse: float) -> None:
    """In squares; 4 would be a bit. Few inputs have no outliers, beside which most pairs would be small."""
    weight = RANDOM.standard_normal((48, columns)).astype(np.float32)
    weight[3] = 0
    importance = RANDOM.random(columns) + 0.1
    found = channel_codes(weight, form(columns), importance)
    plain = round_to_nearest(weight, Format(8, columns, True, positive=True))
    assert worst(found.codes) <= 2**15 - 1
    assert found.scales.shape == (48, 1)
    assert (found.scales > 0).all()

    def error(parts: object) -> float:
        off = dequantize(parts, form(columns)).astype(np.float64) - weight  # type: ignore[arg-type]
        return float((np.square(off) @ importance).sum())

    assert 0 < error(found) <= worse * error(plain)
    # Of the steps that are tried, the best: straight from the definition, for one channel.
    row, costs = weight[0].astype(np.float64), []
    for factor in FACTORS:
        scale = np.abs(row).max() / 127 * factor
        codes = np.clip(np.rint(row / scale), -127, 127)[None].astype(np.float32)
        pair(codes)
        costs.append(float(np.square(codes[0] * scale - row) @ importance))
    got = float(np.square(dequantize(found, form(columns))[0].astype(np.float64) - row) @ importance)
    assert got == pytest.approx(min(costs), rel=1e-3)


def test_unpaired_codes_use_all_of_the_range() -> None:
    weight = RANDOM.standard_normal((16, 32)).astype(np.float32)
    found = channel_codes(weight, form(32, paired=False))
    assert (np.abs(found.codes.astype(int) - MIDDLE).max(1) >= 100).all()


def test_gptq_s_codes_are_paired_too_and_no_worse() -> None:
    weight = RANDOM.standard_normal((24, 32)).astype(np.float32)
    inputs = RANDOM.standard_normal((400, 32)) @ RANDOM.standard_normal((32, 32))
    hessian = (inputs.T @ inputs).astype(np.float32)
    found = gptq(weight, form(32), hessian)
    assert worst(found.codes) <= 2**15 - 1
    searched = channel_codes(weight, form(32), np.diag(hessian))
    assert output_error(weight, found, form(32), hessian) <= output_error(weight, searched, form(32), hessian)
    again = found.codes.astype(np.float32) - MIDDLE
    pair(again)
    assert np.array_equal(again + MIDDLE, found.codes)
    assert output_error(weight, found, form(32), hessian) < 0.7 * output_error(weight, searched, form(32), hessian)
