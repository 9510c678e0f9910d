"""Signed 8-bit weights with one scale an output channel, for products with 8-bit activations.

Kernels for x86 processors without VNNI instructions multiply unsigned activations and signed weights with vpmaddubsw,
which adds the products of two neighbouring inputs in 16 bits and saturates: 255 * 127 + 255 * 127 becomes 32,767. Codes
here are paired: two neighbours of one sign add up to at most 128 in magnitude. So no activations make them saturate,
and the fastest kernel is right on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonc.passes.quantize.blocks import CHUNK, Codes, Format, chunks
from runtime_edge.derived import PAIR, TOP, pair

MIDDLE = 128  # codes are stored unsigned, as in other formats: the signed code plus this
# Scales that are tried, as parts of the scale that makes the largest weight of a channel 127. A larger scale rounds
# coarser, but fewer pairs are limited; at twice that scale none is.
FACTORS = tuple(float(f) for f in np.linspace(0.7, 2.0, 14))


class Neighbours:
    """Keeps codes paired while they are chosen one input after the other, in any order.

    Args:
        order: The inputs in the order of choosing, int64 [in].
        rows: Number of output channels.
    """

    def __init__(self, order: NDArray[np.int64], rows: int) -> None:
        self._order = order
        self._chosen = np.zeros((len(order) + len(order) % 2, rows), np.float32)  # signed, by input

    def limit(self, at: int, codes: NDArray[Any]) -> NDArray[Any]:
        """Returns codes [out] of the input at a place of the order, limited to the range that its neighbour leaves."""
        index = int(self._order[at])
        other = self._chosen[index ^ 1]
        low = np.where(other < 0, -PAIR - other, -TOP)
        high = np.where(other > 0, PAIR - other, TOP)
        level = np.clip(codes - MIDDLE, np.maximum(low, -TOP), np.minimum(high, TOP))
        self._chosen[index] = level
        limited: NDArray[Any] = level + MIDDLE
        return limited


def codes_of(weight: NDArray[Any], scale: NDArray[np.float32], form: Format) -> NDArray[np.float32]:
    """Returns the nearest signed codes float32 [out, in] on given scales [out], paired where the format says so."""
    codes = np.clip(np.rint(weight / scale[:, None]), -TOP, TOP).astype(np.float32)
    if form.paired:
        pair(codes)
    return codes


def channel_codes(weight: NDArray[Any], form: Format, importance: NDArray[Any] | None = None) -> Codes:
    """Quantizes each output channel with the scale of `FACTORS` that has the least error.

    Args:
        weight: float32 [out, in].
        form: A symmetric format of 8 bits and blocks of a whole channel.
        importance: Weight of each input's squared error, [in]. Default: 1 for all.

    Returns:
        Codes uint8 [out, in] with 128 in the middle, scales float32 [out, 1] above zero (1 for a channel of zeros).
    """
    rows, columns = weight.shape
    codes = np.empty((rows, columns), np.uint8)
    scales = np.empty((rows, 1), np.float32)
    weigh = np.ones(columns, np.float32) if importance is None else _normal(importance)
    for chunk in chunks(weight, CHUNK // 4):
        part = np.asarray(weight[chunk], np.float32)
        base = np.abs(part).max(1) / np.float32(TOP)
        base = np.where(base > np.finfo(np.float32).tiny, base, np.float32(1))
        best, least = base, np.full(len(part), np.inf, np.float32)
        for factor in FACTORS:
            scale = (base * np.float32(factor)).astype(np.float32)
            off = codes_of(part, scale, form) * scale[:, None] - part
            cost = np.square(off, out=off) @ weigh
            best, least = np.where(cost < least, scale, best), np.minimum(cost, least)
        codes[chunk] = (codes_of(part, best, form) + MIDDLE).astype(np.uint8)
        scales[chunk, 0] = best
    return Codes(codes, scales, None)


def _normal(importance: NDArray[Any]) -> NDArray[np.float32]:
    """Returns importance with a mean of one; ones where all importance is zero."""
    mean = float(np.mean(importance))
    normalized: NDArray[np.float32] = (importance / mean if mean > 0 else np.ones_like(importance)).astype(np.float32)
    return normalized
