"""Four ways to choose the ranges of activations that integers cover, from the statistics of a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leptonc.calibrate.statistics import BINS, Histogram, Statistics
from leptonc.errors import InputError

TAIL = 1e-4  # percentile: the part of the values beyond each end of the range
LEVELS = 128  # entropy: magnitudes that 8 bits tell apart
STEPS = 25  # mse: ranges that are tried, even parts of the whole


@dataclass(frozen=True)
class Grid:
    """256 even steps: x ~ scale * (code - zero), codes uint8, or int8 with zero 0 where symmetric."""

    scale: float
    zero: int
    symmetric: bool

    @staticmethod
    def over(low: float, high: float, symmetric: bool) -> Grid:
        """The grid over [low, high], which zero lies in; zero itself is one of its numbers."""
        if symmetric:
            return Grid(scale_of(max(-low, high) / 127), 0, True)
        scale = scale_of((high - low) / 255)
        return Grid(scale, int(np.clip(np.rint(-low / scale), 0, 255)), False)

    def round(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns x, quantized and dequantized as QuantizeLinear and DequantizeLinear do."""
        bottom, top = (-128, 127) if self.symmetric else (0, 255)
        scale = np.float32(self.scale)
        codes = np.clip(np.rint(x / scale) + self.zero, bottom, top)
        rounded: NDArray[np.float32] = ((codes - self.zero) * scale).astype(np.float32)
        return rounded


def scale_of(step: float) -> float:
    """Returns a step in float32; 1 for inputs that are always zero."""
    return float(np.float32(step)) if step > np.finfo(np.float32).tiny else 1.0


Calibrator = Callable[[Histogram, Histogram, tuple[float, float], bool], tuple[float, float]]


def minmax(ordinary: Histogram, sinks: Histogram, ends: tuple[float, float], symmetric: bool) -> tuple[float, float]:
    """Returns the whole range, with massive activations."""
    return ends


def percentile(
    ordinary: Histogram, sinks: Histogram, ends: tuple[float, float], symmetric: bool
) -> tuple[float, float]:  # fmt: skip
    """Leaves out one in ten thousand ordinary values at each end, and massive activations."""
    total = ordinary.counts.sum()
    if not total:
        return ends
    below = np.cumsum(ordinary.counts) / total
    step = 2 * ordinary.limit / BINS
    low = np.searchsorted(below, TAIL, side="right") * step - ordinary.limit
    high = (np.searchsorted(below, 1 - TAIL) + 1) * step - ordinary.limit
    return max(ordinary.low, min(0.0, float(low))), min(ordinary.high, max(0.0, float(high)))


def entropy(ordinary: Histogram, sinks: Histogram, ends: tuple[float, float], symmetric: bool) -> tuple[float, float]:
    """Returns the range whose 128 levels differ least from the values' distribution, in Kullback-Leibler divergence.

    Migacz, 8-bit inference with TensorRT (2017): for each threshold, the histogram of magnitudes with what lies beyond
    added to its last bin, against the same bins merged to 128 levels and spread evenly over those that held something.
    Massive activations are cut off.
    """
    half = BINS // 2
    magnitudes = ordinary.counts[half:] + ordinary.counts[:half][::-1]
    used = int(np.flatnonzero(magnitudes)[-1]) + 1 if magnitudes.any() else 0
    if used <= LEVELS:
        return ordinary.low, ordinary.high
    best, least = used, np.inf
    after = magnitudes[::-1].cumsum()[::-1]
    for bins in range(LEVELS, used + 1, LEVELS // 16):
        reference = magnitudes[:bins].copy()
        edges = np.arange(LEVELS) * bins // LEVELS
        held = (reference > 0).astype(np.float64)
        mean = np.add.reduceat(reference, edges) / np.maximum(np.add.reduceat(held, edges), 1)
        spread = np.repeat(mean, np.diff(np.append(edges, bins))) * held
        if bins < used:
            reference[-1] += after[bins]
        p, q = reference / reference.sum(), spread / max(spread.sum(), np.finfo(float).tiny)
        present = p > 0
        divergence = np.inf if (q[present] == 0).any() else float((p[present] * np.log(p[present] / q[present])).sum())
        if divergence <= least:
            best, least = bins, divergence
    limit = best * ordinary.limit / half
    return max(ordinary.low, -limit), min(ordinary.high, limit)


def mse(ordinary: Histogram, sinks: Histogram, ends: tuple[float, float], symmetric: bool) -> tuple[float, float]:
    """Returns the range with the least square error, of rounding within it and of clipping beyond it.

    Both ends shrink together, or one alone. Massive activations count as `Statistics` weighs them.
    """
    best, least = ends, np.inf
    parts = [_held(part) for part in (ordinary, sinks) if part.counts.any()]
    for limit in {(ordinary.low, ordinary.high), ends}:
        for shrink in np.arange(1, STEPS + 1) / STEPS:
            for low, high in ((limit[0] * shrink, limit[1] * shrink), (limit[0] * shrink, limit[1]),
                              (limit[0], limit[1] * shrink)):  # fmt: skip
                cost = sum(_cost(*part, Grid.over(low, high, symmetric)) for part in parts)
                if cost < least:
                    best, least = (low, high), cost
    return best


def _held(histogram: Histogram) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the middles of a histogram's bins that are not empty, and their counts."""
    held = np.flatnonzero(histogram.counts)
    return histogram.centers()[held], histogram.counts[held]


def _cost(x: NDArray[np.float64], counts: NDArray[np.float64], grid: Grid) -> float:
    """Returns the square error that a grid makes in values: a twelfth of its step squared, or the clipped part's."""
    bottom, top = (-128, 127) if grid.symmetric else (0, 255)
    low, high = (bottom - grid.zero - 0.5) * grid.scale, (top - grid.zero + 0.5) * grid.scale
    cut = np.maximum(np.maximum(low + grid.scale / 2 - x, x - high + grid.scale / 2), 0)
    inside = (x >= low) & (x <= high)
    return float((counts * np.where(inside, grid.scale**2 / 12, cut**2)).sum())


CALIBRATORS: dict[str, Calibrator] = {"minmax": minmax, "percentile": percentile, "entropy": entropy, "mse": mse}


# `search` tries these, and compares the outputs of the layers that read the value.
SEARCH = "search"
SEARCHED = ("minmax", "percentile", "mse")


def calibrators(name: str) -> tuple[str, ...]:
    """Returns the calibrators that a name stands for.

    Raises:
        InputError: There is none of that name.
    """
    if name not in (*CALIBRATORS, SEARCH):
        raise InputError(f"expected a calibrator among {', '.join((*CALIBRATORS, SEARCH))}, found {name!r}")
    return SEARCHED if name == SEARCH else (name,)


def grids_of(
    statistics: Statistics, names: Sequence[str], symmetric: bool, scales: NDArray[np.float32] | None = None
) -> list[Grid]:  # fmt: skip
    """Returns each calibrator's grid for a value. Its features are divided by `scales` [width]; None: they are not."""
    ordinary, sinks = statistics.scaled_histogram(scales)
    ends = statistics.ends(scales)
    return [Grid.over(*CALIBRATORS[name](ordinary, sinks, ends, symmetric), symmetric) for name in names]
