"""Chooses how one value that linear layers read becomes 8-bit integers: range, smoothing, and outliers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonc.calibrate.calibrators import SEARCH as SEARCHES
from leptonc.calibrate.calibrators import Grid, calibrators, grids_of
from leptonc.calibrate.cores import lanes, side_by_side
from leptonc.calibrate.statistics import Statistics
from leptonc.ir.structure import Linear, weight_of
from leptonc.passes.quantize.smooth import Place

STRENGTHS = (0.5, 0.8, 0.9)  # tried, besides none, for smoothing a norm's output
CAPS = (0.01, 0.05)  # tried, besides none, for other values: the part of the features that is divided
SMALL = 2**22  # weights of which several candidates may be in memory, because they run side by side
SEARCH = 128  # ordinary tokens that strengths are compared on
OUTLIERS = 16  # features, one in 64 at most, that may stay float where a single layer reads the value
# They stay float where the error is above LARGE and falls to less than GAIN of it: they cost three small operators.
LARGE, GAIN = 0.003, 0.5


@dataclass(frozen=True)
class Choice:
    """How one value that linear layers read is quantized.

    Attributes:
        value: The value's name in the graph.
        linears: The layers that read it.
        strength: Strength of smoothing: one of STRENGTHS for a norm's output, one of CAPS for other values, 0 for none.
        scales: float32 [width] that the value is divided by. None: it is not divided.
        grid: The integers of the divided value.
        outliers: Features that stay float, in order.
        ends: Least and greatest number of the divided value on the text, outliers left out.
        mean, importance: Mean and mean square of each feature of the divided value, float64 [width]; 0 for outliers.
        error: Mean over the layers of the error of their outputs, with weights and inputs rounded, as a part of the
            outputs' energy.
        unsmoothed: The same without smoothing.
    """

    value: str
    linears: tuple[Linear, ...]
    strength: float
    scales: NDArray[np.float32] | None
    grid: Grid
    outliers: tuple[int, ...]
    ends: tuple[float, float]
    mean: NDArray[np.float64]
    importance: NDArray[np.float64]
    error: float
    unsmoothed: float

    @property
    def path(self) -> str:
        """The path of the first layer, which stands for the value."""
        return self.linears[0].path

    def apart(self, weight: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns a weight [out, width] without the outliers' columns, and with these alone."""
        few = np.zeros_like(weight)
        few[:, self.outliers] = weight[:, self.outliers]
        return weight - few, few

    @property
    def work(self) -> int:
        """Multiply-adds of the layers for one token."""
        return sum(linear.shape[0] * linear.shape[1] for linear in self.linears)


def smooth_scales(
    inputs: NDArray[np.float32], weights: NDArray[np.float32], strength: float
) -> NDArray[np.float32]:  # fmt: skip
    """Returns max|X_j|^strength / max|W_j|^(1 - strength) of each feature (equation 4 of SmoothQuant), float32 [width].

    Args:
        inputs: Largest magnitude of each feature, [width].
        weights: Weights [out, width] of all layers that read it.
        strength: From 0, where the inputs keep their range, to 1, where the weights take all of it.

    The geometric mean of the scales is 1. Features that are always zero, or that no weight reads, have 1.
    """
    largest = np.abs(weights).max(0)
    used = (inputs > 0) & (largest > 0)
    logs = np.zeros(len(inputs))
    logs[used] = strength * np.log(inputs[used]) - (1 - strength) * np.log(largest[used])
    logs[used] -= logs[used].mean() if used.any() else 0
    # Far-off features stay within what float32 weights and norms carry without loss.
    scales: NDArray[np.float32] = np.exp(np.clip(logs, -9, 9)).astype(np.float32)
    return scales


def cap_scales(inputs: NDArray[np.float32], part: float, past: int = 0) -> NDArray[np.float32]:
    """Returns scales that bring the features that reach furthest to the others' range, float32 [width], 1 at least.

    Products of gates are sparse: a feature's range on one text says little of its range on the next. So no feature is
    enlarged, as smoothing would do, and most have room beyond the text.

    Args:
        inputs: Largest magnitude of each feature, [width].
        part: The part of the features that is divided.
        past: How many further features stay float, because they reach furthest. Default: none.
    """
    at = min(len(inputs) - 1, past + int(part * len(inputs)))
    limit = max(float(np.sort(inputs)[::-1][at]), float(np.finfo(np.float32).tiny))
    scales: NDArray[np.float32] = np.maximum(inputs / np.float32(limit), 1).astype(np.float32)
    return scales


def choose(
    statistics: Statistics, linears: tuple[Linear, ...], place: Place | None, calibrator: str, *, symmetric: bool,
    strengths: Sequence[float] = STRENGTHS, weights: float = 1.0,
) -> Choice:  # fmt: skip
    """Chooses the grid of one value and, where it can be divided, the smoothing with the least error of the outputs.

    Where one layer reads the value, and no norm makes it, the features that reach furthest may stay float: see `LARGE`.

    Outputs are compared on the tokens of `Statistics.sample`, with inputs on their grid, and with weights in 8 bits a
    channel. The latter's error counts `weights` times.
    """
    weight = np.concatenate([weight_of(linear) for linear in linears])
    rows, counts = statistics.sample(SEARCH)
    want = rows @ weight.T
    split = np.cumsum([linear.shape[0] for linear in linears])[:-1]
    whole = _energies(want, counts, split)
    # Products of gates are sparse, and on other texts other features reach far: nothing that the text shows is clipped.
    gated = place is not None and place.linear is not None and place.heads == (1, 1)
    names = ("minmax",) if gated and calibrator == SEARCHES else calibrators(calibrator)
    tries: list[tuple[float, Callable[[int], NDArray[np.float32] | None]]] = [(0.0, lambda past: None)]
    if place is not None and place.norm is not None:
        ordinary = np.abs(rows[: len(rows) - min(statistics.sinks, len(rows))]).max(0, initial=0)
        for largest in (statistics.largest, ordinary) if statistics.sinks else (statistics.largest,):
            smooth = [place.shared(smooth_scales(largest, weight, strength)) for strength in strengths]
            tries += [(strength, lambda past, scales=s: scales) for strength, s in zip(strengths, smooth, strict=True)]  # type: ignore[misc]
    elif place is not None:
        largest = statistics.largest
        tries += [(cap, lambda past, cap=cap: place.shared(cap_scales(largest, cap, past))) for cap in CAPS]  # type: ignore[misc]

    def part(off: NDArray[Any]) -> float:
        parts = _energies(off, counts, split)
        return float(np.divide(parts, whole, out=np.zeros_like(parts), where=whole > 0).mean())

    def tried(strength: float, scale: Callable[[int], NDArray[np.float32] | None], count: int) -> _Tried:
        scales = scale(count)
        by = np.ones(statistics.width, np.float32) if scales is None else scales
        few = np.sort(np.argsort(-statistics.largest, kind="stable")[:count])
        x, moved = rows / by, weight * by
        x[:, few] = moved[:, few] = 0
        by_weights = weights * part(x @ (_nearest(moved) - moved).T)
        narrowed = by.copy()
        narrowed[few] = np.inf  # what is divided by it is zero
        known = None if scales is None and not count else narrowed
        grids = grids_of(statistics, names, symmetric, known)
        off, grid = min(((part((grid.round(x) - x) @ moved.T), grid) for grid in grids), key=lambda pair: pair[0])
        return _Tried(off + by_weights, strength, scales, tuple(few.tolist()), grid)

    runs = lanes() if weight.size <= SMALL else 1
    unmoved = list(side_by_side(lambda candidate: tried(*candidate, 0), tries, runs))
    best = min(unmoved, key=lambda candidate: candidate.error)
    count = min(OUTLIERS, statistics.width // 64)
    alone = len(linears) == 1 and len(list(linears[0].weight.uses())) == 1  # a shared weight is another layer's too
    if count and alone and (place is None or place.norm is None):
        beyond = side_by_side(lambda candidate: tried(*candidate, count), tries, runs)
        past = min(beyond, key=lambda candidate: candidate.error)
        best = past if best.error > LARGE and past.error < GAIN * best.error else best
    by = np.ones(statistics.width, np.float32) if best.scales is None else best.scales.copy()
    importance = statistics.importance() / np.square(by.astype(np.float64))
    importance[list(best.outliers)] = 0
    by[list(best.outliers)] = np.inf
    mean = statistics.mean() / by
    return Choice(
        str(linears[0].x.name), linears, best.strength, best.scales, best.grid, best.outliers, statistics.ends(by),
        mean, importance, best.error, unmoved[0].error,
    )  # fmt: skip


@dataclass(frozen=True)
class _Tried:
    """One way to quantize a value; names are those of `Choice`."""

    error: float
    strength: float
    scales: NDArray[np.float32] | None
    outliers: tuple[int, ...]
    grid: Grid


def _energies(y: NDArray[Any], counts: NDArray[np.float64], split: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns sums of squares [layers] of outputs [tokens, outputs of all layers]; a token counts `counts` times."""
    features = counts @ np.square(y)
    return np.array([float(part.sum()) for part in np.split(features, split)])


def _nearest(moved: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns a weight [out, in] rounded to 255 even steps a channel."""
    step = np.abs(moved).max(1, keepdims=True) / np.float32(127)
    step = np.where(step > 0, step, np.float32(1))
    rounded: NDArray[np.float32] = np.rint(moved / step) * step
    return rounded
