"""Block-wise codes against a plain float64 reference, one block at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from leptonc.passes.quantize import blocks
from leptonc.passes.quantize.blocks import Codes, Format, Quantized, dequantize, round_to_nearest

FORMATS = [Format(bits, size, symmetric) for bits in (2, 4, 8) for size in (16, 32) for symmetric in (True, False)]


def matrix(rows: int = 7, columns: int = 96, seed: int = 0) -> NDArray[np.float32]:
    """Rows of very different scale, signs and offsets."""
    random = np.random.default_rng(seed)
    scale = 10.0 ** random.uniform(-4, 2, (rows, 1))
    offset = random.choice([-2.0, 0.0, 2.0], (rows, 1))
    return ((random.standard_normal((rows, columns)) + offset) * scale).astype(np.float32)


def reference_block(block: NDArray[np.float64], form: Format) -> tuple[NDArray[Any], float, int]:
    """Codes, scale and zero of one block by the textbook."""
    top = 2**form.bits - 1
    if form.symmetric:
        extreme = float(block[np.argmax(np.abs(block))])
        scale, zero = extreme / -(2 ** (form.bits - 1)), 2 ** (form.bits - 1)
    else:
        low, high = min(0.0, block.min()), max(0.0, block.max())
        scale = (high - low) / top
        zero = round(-low / scale) if scale else 0
    codes = np.clip(np.rint(block / scale) + zero, 0, top) if scale else np.full(block.shape, zero)
    return codes, scale, zero


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("columns", [96, 90])
def test_codes_are_the_references(form: Format, columns: int) -> None:
    weight = matrix(columns=columns)
    found = round_to_nearest(weight, form)
    assert (found.codes.dtype, found.codes.shape) == (np.uint8, weight.shape)
    assert found.scales.shape == (7, -(-columns // form.size))
    assert (found.zeros is None) == form.symmetric
    ties = 0
    for row in range(7):
        for index in range(found.scales.shape[1]):
            at = slice(index * form.size, min(columns, (index + 1) * form.size))
            codes, scale, zero = reference_block(weight[row, at].astype(np.float64), form)
            assert found.scales[row, index] == pytest.approx(scale, rel=1e-6)
            assert (form.middle if found.zeros is None else found.zeros[row, index]) == zero
            # float32 and float64 may fall on different sides of a half.
            differ = np.abs(found.codes[row, at].astype(int) - codes.astype(int))
            assert differ.max() <= 1
            ties += int(differ.sum())
    assert ties <= 2


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_the_round_trip_errs_by_half_a_step_at_most(form: Format) -> None:
    weight = matrix()
    found = round_to_nearest(weight, form)
    error = np.abs(dequantize(found, form) - weight).reshape(7, -1, form.size).max(-1)
    step = np.abs(found.scales)
    # A symmetric range ends one code before the other side's extreme; an asymmetric zero is rounded.
    assert (error <= step * (1 + 1e-5)).all()
    inside = np.abs(dequantize(found, form) - weight).reshape(7, -1, form.size)
    codes = found.codes.reshape(inside.shape)
    unclipped = (codes > 0) & (codes < form.top)
    assert (inside <= step[..., None] / 2 * (1 + 1e-5))[unclipped].all()
    assert error.max() > 0  # something was rounded


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_symmetric_block_puts_its_extreme_on_the_extreme_code(bits: int, sign: int) -> None:
    form = Format(bits, 16, True)
    weight = np.linspace(-0.4, 0.4, 16, dtype=np.float32)[None]
    weight[0, 5] = sign * 1.7
    found = round_to_nearest(weight, form)
    assert found.codes[0, 5] == 0
    assert np.sign(found.scales[0, 0]) == -sign
    assert dequantize(found, form)[0, 5] == pytest.approx(sign * 1.7, rel=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_an_asymmetric_block_spans_its_range_and_zero(bits: int) -> None:
    form = Format(bits, 16, False)
    top = form.top
    weight = np.stack(
        [np.linspace(0.5, 2.0, 16), np.linspace(-2.0, -0.5, 16), np.linspace(-1.0, 3.0, 16)]
    ).astype(np.float32)  # fmt: skip
    found = round_to_nearest(weight, form)
    assert found.zeros is not None
    assert found.zeros[:, 0].tolist() == [0, top, round(top / 4)]
    assert found.scales[:, 0] == pytest.approx([2.0 / top, 2.0 / top, 4.0 / top], rel=1e-6)
    assert found.codes[0, -1] == top
    assert found.codes[1, 0] == 0
    assert (found.codes[2, 0], found.codes[2, -1]) == (0, top)
    exact = dequantize(Codes(found.zeros.repeat(16, 1), found.scales, found.zeros), form)
    assert not exact.any()  # zero has a code of its own


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_blocks_of_zeros(form: Format) -> None:
    weight = matrix()
    weight[2, form.size : 2 * form.size] = 0
    weight[3] = np.float32(1e-42)  # its scale cannot be inverted
    found = round_to_nearest(weight, form)
    back = dequantize(found, form)
    assert np.isfinite(found.scales).all()
    assert not back[2, form.size : 2 * form.size].any()
    assert np.abs(back[3]).max() <= 2e-42
    assert np.abs(back[2, : form.size] - weight[2, : form.size]).max() <= np.abs(found.scales[2, 0])


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("chunk", [1, 200])
def test_chunks_change_nothing(form: Format, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = matrix(columns=90)
    whole = round_to_nearest(weight, form)
    monkeypatch.setattr(blocks, "CHUNK", chunk)
    for one, other in zip(whole, round_to_nearest(weight, form), strict=True):
        assert np.array_equal(one, other) if one is not None else other is None


def test_a_short_last_block_has_a_scale_of_its_own() -> None:
    form = Format(8, 32, True)
    weight = np.ones((1, 40), np.float32)
    weight[0, 32:] = 1e-3
    found = round_to_nearest(weight, form)
    assert found.scales.shape == (1, 2)
    assert np.abs(dequantize(found, form) - weight).max() <= 1e-9 + 1e-7


# Lazy weights


def lazy(key: str, log: list[str], form: Format = FORMATS[0], rows: int = 2) -> Quantized:
    def compute() -> Codes:
        log.append(key)
        return round_to_nearest(matrix(rows, seed=len(key)), form)

    return Quantized((rows, 96), form, key, compute)


def test_a_weight_is_computed_once_while_it_is_the_last() -> None:
    Quantized.forget()
    log: list[str] = []
    one, other = lazy("a", log), lazy("bb", log)
    assert log == []
    assert one.parts() is one.parts()
    other.parts()
    assert log == ["a", "bb"]
    one.parts()  # only one is kept
    assert log == ["a", "bb", "a"]
    Quantized.forget()
    one.parts()
    assert log == ["a", "bb", "a", "a"]
    Quantized.forget()


@pytest.mark.parametrize("form", [Format(4, 32, True), Format(4, 32, False)], ids=str)
def test_stacked_rows(form: Format) -> None:
    log: list[str] = []
    parts = [lazy("a", log, form), lazy("bb", log, form, rows=3)]
    stacked = Quantized.stack(parts)
    assert (stacked.shape, stacked.form, stacked.key) == ((5, 96), form, "a+bb")
    assert log == []
    got = dequantize(stacked.parts(), form)
    assert np.array_equal(got, np.concatenate([dequantize(p.parts(), form) for p in parts]))
    Quantized.forget()


def test_weights_of_one_name_in_two_models_are_two_weights() -> None:
    form = Format(4, 16, True)
    first, second = (np.full((2, 16), value, np.uint8) for value in (3, 5))
    codes = [
        Quantized((2, 16), form, "weight", lambda each=each: Codes(each, np.ones((2, 1), np.float32), None))
        for each in (first, second)
    ]
    for weight, expected in zip(codes, (first, second), strict=True):
        np.testing.assert_array_equal(weight.parts().codes, expected)
    Quantized.forget()
