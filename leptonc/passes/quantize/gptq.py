"""Codes that keep a layer's outputs near, rather than its weights: a clipping search, and GPTQ.

Both use the second moments H = X^T X [in, in] of the layer's inputs X. Rounding a weight W [out, in] to Q makes an
error of tr((W - Q) H (W - Q)^T) in the layer's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonc.passes.columns import Factor, decide, energies, energy, factorize
from leptonc.passes.quantize.blocks import CHUNK, Codes, Format, chunks, dequantize, round_to_nearest, storable
from leptonc.passes.quantize.channels import Neighbours, channel_codes

CLIPS = tuple(float(c) for c in np.linspace(0.6, 1.0, 17))  # parts of a block's range that are tried
DAMPINGS = (0.003, 0.01, 0.03, 0.1, 0.3)  # parts of the mean second moment that are tried
CACHED = 2**17  # elements that are searched at a time, which fit in a processor's cache


def output_error(
    weight: NDArray[Any], parts: Codes, form: Format, hessian: NDArray[Any], shift: NDArray[Any] | None = None
) -> float:
    """Returns the outputs' error as a part of their energy: tr(D H D^T) / tr(W H W^T), D = W - Q.

    Args:
        weight: float32 [out, in].
        parts: The weight's codes.
        form: The format of the codes.
        hessian: Second moments of the inputs, float32 [in, in].
        shift: Result of `shift_of`, with which W + W shift counts as W. Default: no shift.
    """
    off = whole = 0.0
    for rows in chunks(weight):
        part = Codes(*(None if array is None else array[rows] for array in parts))  # type: ignore[arg-type]
        aim = _shifted(weight[rows], shift)
        off += energy(aim - dequantize(part, form), hessian)
        whole += energy(aim, hessian)
    return off / whole if whole > 0 else 0.0


def _shifted(rows: NDArray[Any], shift: NDArray[Any] | None) -> NDArray[Any]:
    return rows if shift is None else rows + rows @ shift


def _by_rows(
    shape: tuple[int, ...], form: Format, elements: int, choose: Callable[[slice], Codes]
) -> Codes:  # fmt: skip
    """Chooses codes a chunk of rows at a time. The results are allocated before temporaries, to keep the heap whole."""
    rows, columns = shape
    blocks = -(-columns // form.size)
    all_codes = Codes(
        np.empty((rows, columns), np.uint8), np.empty((rows, blocks), np.float32),
        None if form.symmetric else np.empty((rows, blocks), np.uint8),
    )  # fmt: skip
    for chunk in chunks(all_codes.codes, elements):
        for whole, part in zip(all_codes, choose(chunk), strict=True):
            if whole is not None and part is not None:
                whole[chunk] = part
    return all_codes


def clip_search(weight: NDArray[Any], form: Format, importance: NDArray[Any]) -> Codes:
    """Quantizes each block over the part of its range that has the least error.

    Args:
        weight: float32 [out, in].
        form: The format.
        importance: Weight of each input's squared error, [in], such as the input's mean square.

    Returns:
        The nearest codes for the best of `CLIPS`. By that error they are never worse than rounding to nearest.
    """
    return _by_rows(weight.shape, form, CACHED, lambda rows: _searched(weight[rows], form, importance))


def _searched(weight: NDArray[Any], form: Format, importance: NDArray[Any]) -> Codes:
    base = round_to_nearest(weight, form)
    rows, columns = weight.shape
    short = base.scales.shape[1] * form.size - columns
    weigh = np.pad(importance.astype(np.float32), (0, short)).reshape(-1, form.size)
    blocks = np.pad(weight, ((0, 0), (0, short))).reshape(rows, -1, form.size)
    zero = np.float32(form.middle) if base.zeros is None else base.zeros[..., None].astype(np.float32)
    low, high, off = -zero, form.top - zero, np.empty_like(blocks)
    best, least = base.scales, np.full(base.scales.shape, np.inf, np.float32)
    for clip in reversed(CLIPS):
        scales = storable(base.scales * np.float32(clip), form)
        np.multiply(blocks, inverse(scales)[..., None], out=off)
        np.rint(off, out=off)
        np.minimum(np.maximum(off, low, out=off), high, out=off)
        off *= scales[..., None]
        off -= blocks
        np.square(off, out=off)
        cost = np.einsum("rbs,bs->rb", off, weigh)
        best, least = np.where(cost < least, scales, best), np.minimum(cost, least)
    return nearest(weight, best, base.zeros, form)


def nearest(weight: NDArray[Any], scales: NDArray[np.float32], zeros: NDArray[np.uint8] | None, form: Format) -> Codes:
    """Returns the nearest codes of a weight [out, in] on given scales and zero points [out, blocks]."""
    scale, zero = spread(scales, zeros, form, weight.shape[1])
    codes = np.clip(np.rint(weight * inverse(scale)) + zero, 0, form.top).astype(np.uint8)
    return Codes(codes, scales, zeros)


def spread(
    scales: NDArray[np.float32], zeros: NDArray[np.uint8] | None, form: Format, columns: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns the scale and the zero point of each weight, float32 [out, in]."""
    scale = np.repeat(scales, form.size, 1)[:, :columns]
    if zeros is None:
        return scale, np.full_like(scale, form.middle)
    return scale, np.repeat(zeros, form.size, 1)[:, :columns].astype(np.float32)


def inverse(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns 1 / scale, and 0 for a block of zeros."""
    return np.divide(1, scale, out=np.zeros_like(scale), where=np.abs(scale) > np.finfo(np.float32).tiny)


def gptq(
    weight: NDArray[Any], form: Format, hessian: NDArray[Any], factor: Factor | None = None,
    shift: NDArray[Any] | None = None,
) -> Codes:  # fmt: skip
    """Quantizes one input channel after the other; later channels make up for the errors so far.

    Frantar et al., GPTQ (2022). Channels come in the order of their second moments. Scales are fixed before by
    `clip_search`, so that blocks are of neighbouring channels in any order.

    Args:
        weight: float32 [out, in].
        form: The format.
        hessian: Second moments of the inputs, [in, in].
        factor: Factor of the moments. Default: it is computed.
        shift: Result of `shift_of`, [in, in]: W + W shift is quantized. Default: no shift.

    Returns:
        Codes of GPTQ; for rows where the clipping search has less error on these inputs, its codes.
    """
    return gptq_with_errors(weight, form, hessian, factor, shift)[0]


def gptq_with_errors(
    weight: NDArray[Any], form: Format, hessian: NDArray[Any], factor: Factor | None = None,
    shift: NDArray[Any] | None = None,
) -> tuple[Codes, NDArray[np.float32], NDArray[np.float32]]:  # fmt: skip
    """Returns the codes of `gptq`, and what `output_error` sums: the error of each output, and its energy, [out].

    Outputs are independent of each other: the weights of several layers that read one value may be one weight.
    """
    factor = factorize(hessian) if factor is None else factor
    off, whole = np.empty(len(weight), np.float32), np.empty(len(weight), np.float32)

    def choose(rows: slice) -> Codes:
        aim = _shifted(weight[rows], shift)
        codes, off[rows] = _solved(aim, form, hessian, factor)
        whole[rows] = energies(aim, hessian)
        return codes

    return _by_rows(weight.shape, form, CHUNK, choose), off, whole


def damping_of(
    weights: Sequence[tuple[NDArray[Any], Format]], learnt: NDArray[Any], held: NDArray[Any], more: float = 0
) -> float:  # fmt: skip
    """Chooses the damping of GPTQ's moments whose codes have the least error on held-out inputs.

    Args:
        weights: Some rows of the weight of each layer that reads the inputs, float32 [n, in], and its format.
        learnt: Second moments of the inputs that codes are chosen by, [in, in].
        held: Second moments of held-out inputs, [in, in].
        more: Added to each damping. Default: 0.

    Returns:
        One of `DAMPINGS`. The search begins in the middle, and goes on as long as the error falls.
    """
    tried = []
    for form in dict.fromkeys(form for _, form in weights):  # layers of one format at once: rows are independent
        parts = [rows for rows, other in weights if other == form]
        rows, wholes = np.concatenate(parts), [energy(part, held) for part in parts]
        counts = np.repeat([1 / whole if whole > 0 else 0 for whole in wholes], [len(part) for part in parts])
        tried.append((rows, form, _searched_codes(rows, form, learnt), counts))
    errors: dict[int, float] = {}

    def error(at: int) -> float:
        if at not in errors:
            factor = factorize(learnt, DAMPINGS[at] + more, rough=True)
            errors[at] = sum(
                float(counts @ energies(rows - dequantize(_decided(rows, form, searched, factor), form), held))
                for rows, form, searched, counts in tried
                if factor is not None
            )
        return errors[at]

    at = len(DAMPINGS) // 2
    for step in (1, -1):
        while 0 <= at + step < len(DAMPINGS) and error(at + step) < error(at):
            at += step
    return DAMPINGS[at]


def _solved(
    weight: NDArray[Any], form: Format, hessian: NDArray[Any], factor: Factor | None
) -> tuple[Codes, NDArray[Any]]:  # fmt: skip
    """Returns the better codes of each output, and their errors [out]."""
    searched = _searched_codes(weight, form, hessian)
    costs = energies(weight - dequantize(searched, form), hessian)
    if factor is None:
        return searched, costs
    solved = _decided(weight, form, searched, factor)
    better = (lower := energies(weight - dequantize(solved, form), hessian)) <= costs
    codes = np.where(better[:, None], solved.codes, searched.codes)
    return searched._replace(codes=codes), np.where(better, lower, costs)


def _searched_codes(weight: NDArray[Any], form: Format, hessian: NDArray[Any]) -> Codes:
    return (channel_codes if form.paired else clip_search)(weight, form, np.diag(hessian))


def _decided(weight: NDArray[Any], form: Format, searched: Codes, factor: Factor) -> Codes:
    return searched._replace(codes=_Columns(weight, form, searched, factor).solve())


class _Columns:
    """Quantizes the channels of one weight, with the scales and zero points of `searched`."""

    def __init__(self, weight: NDArray[Any], form: Format, searched: Codes, factor: Factor) -> None:
        order = factor.order
        grids = spread(searched.scales, searched.zeros, form, weight.shape[1])
        self.scale, self.zero = (np.ascontiguousarray(grid[:, order].T) for grid in grids)
        self.inverted = inverse(self.scale)
        self.rest = np.ascontiguousarray(weight[:, order].T, np.float32)
        self.codes = np.empty(self.rest.shape, np.uint8)
        self.factor, self.top = factor, form.top
        self.neighbours = Neighbours(order, self.rest.shape[1]) if form.paired else None

    def solve(self) -> NDArray[np.uint8]:
        """Returns the codes [out, in]."""
        decide(self.rest, self.factor, self._channel)
        codes = np.empty(self.codes.shape[::-1], np.uint8)
        codes[:, self.factor.order] = self.codes.T
        return codes

    def _channel(self, at: int) -> NDArray[np.float32]:
        scale, zero = self.scale[at], self.zero[at]
        code = np.rint(self.rest[at] * self.inverted[at])
        code += zero
        np.clip(code, 0, self.top, out=code)
        if self.neighbours is not None:  # the later of two neighbours is limited, and later channels make up for that
            code = self.neighbours.limit(at, code)
        self.codes[at] = code
        rounded: NDArray[np.float32] = (code - zero) * scale
        return rounded
