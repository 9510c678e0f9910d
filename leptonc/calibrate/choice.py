"""Chooses how one value that linear layers read becomes 8-bit integers: range, smoothing, and what goes past them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonc.calibrate.calibrators import SEARCH as SEARCHES
from leptonc.calibrate.calibrators import Grid, calibrators, grids_of
from leptonc.calibrate.statistics import Statistics
from leptonc.ir.structure import Linear, weight_of
from leptonc.passes.quantize.smooth import Place

STRENGTHS = (0.5, 0.8, 0.9)  # of smoothing what a norm makes, besides none
CAPS = (0.01, 0.05)  # parts of the features of other values that are brought down to the others, besides none
SEARCH = 128  # ordinary tokens that strengths are compared on
OUTLIERS = 16  # features, one in 64 at most, that may go past the integers of a value that one layer reads
# They do where the error is above the first, and at most this part of it is left: they cost three small operators.
LARGE, GAIN = 0.003, 0.5


@dataclass(frozen=True)
class Choice:
    """How one value that linear layers read is quantized.

    Attributes:
        value: Its name in the graph.
        linears: The layers.
        strength: Of smoothing what a norm makes, of STRENGTHS; of other values the part of CAPS; 0 for none.
        scales: float32 [width] that it is divided by, or None.
        grid: Its integers, after that.
        outliers: Features that stay float, in order.
        ends: Least and greatest value on the text, after that, of the others.
        mean, importance: Of each feature and its square, after that, float64 [width]; zero for those that stay float.
        error: Of the layers' outputs, both sides rounded, as a part of each layer's outputs, the mean of the layers;
            unsmoothed: without smoothing.
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
        """What stands for it: the path of the first layer."""
        return self.linears[0].path

    def apart(self, weight: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns a weight [out, width] without the outliers' columns, and with these alone."""
        few = np.zeros_like(weight)
        few[:, self.outliers] = weight[:, self.outliers]
        return weight - few, few

    @property
    def work(self) -> int:
        """Multiply-adds a token."""
        return sum(each.shape[0] * each.shape[1] for each in self.linears)


def smooth_scales(
    inputs: NDArray[np.float32], weights: NDArray[np.float32], strength: float
) -> NDArray[np.float32]:  # fmt: skip
    """Returns max|X_j|^strength / max|W_j|^(1 - strength) of each feature (equation 4 of SmoothQuant), float32 [width].

    Args:
        inputs: Largest magnitude of each feature, [width].
        weights: Weights [out, width] of all layers that read it.
        strength: From 0, all difficulty stays in the inputs, to 1, all goes to the weights.

    Their geometric mean is 1; features that are always zero, or that no weight reads, have 1.
    """
    largest = np.abs(weights).max(0)
    used = (inputs > 0) & (largest > 0)
    logs = np.zeros(len(inputs))
    logs[used] = strength * np.log(inputs[used]) - (1 - strength) * np.log(largest[used])
    logs[used] -= logs[used].mean() if used.any() else 0
    # Far-off features stay within what float32 weights and norms carry without loss.
    found: NDArray[np.float32] = np.exp(np.clip(logs, -9, 9)).astype(np.float32)
    return found


def cap_scales(inputs: NDArray[np.float32], part: float, past: int = 0) -> NDArray[np.float32]:
    """Returns what brings the features that reach furthest down to the others' range, float32 [width], 1 at least.

    Products of gates are sparse: what a feature reaches on one text says little of what it reaches on the next. So no
    feature is enlarged, as smoothing does, and most have room that they did not use yet.

    Args:
        inputs: Largest magnitude of each feature, [width].
        part: The part of the features that are brought down.
        past: How many others reach further and go past the integers.
    """
    at = min(len(inputs) - 1, past + int(part * len(inputs)))
    limit = max(float(np.sort(inputs)[::-1][at]), float(np.finfo(np.float32).tiny))
    found: NDArray[np.float32] = np.maximum(inputs / np.float32(limit), 1).astype(np.float32)
    return found


def choose(
    seen: Statistics, linears: tuple[Linear, ...], place: Place | None, calibrator: str, *, symmetric: bool,
    strengths: Sequence[float] = STRENGTHS, weights: float = 1.0,
) -> Choice:  # fmt: skip
    """Chooses the grid of one value and, where it can be divided, the smoothing whose outputs are off least.

    Where one layer reads it, and no norm makes it, features that reach furthest may go past the integers: see `LARGE`.

    Outputs are compared on the tokens that `Statistics.sample` gives, with inputs on their grid, and with weights on
    one of 8 bits a channel; `weights` is how much the error of the latter counts.
    """
    weight = np.concatenate([weight_of(each) for each in linears])
    rows, counts = seen.sample(SEARCH)
    want = rows @ weight.T
    split = np.cumsum([each.shape[0] for each in linears])[:-1]
    whole = _energies(want, counts, split)
    # What gates let through is sparse: on other texts others reach far, so nothing that was seen is cut off.
    gated = place is not None and place.linear is not None and place.heads == (1, 1)
    names = ("minmax",) if gated and calibrator == SEARCHES else calibrators(calibrator)
    tries: list[tuple[float, Callable[[int], NDArray[np.float32] | None]]] = [(0.0, lambda past: None)]
    if place is not None and place.norm is not None:
        ordinary = np.abs(rows[: len(rows) - min(seen.sinks, len(rows))]).max(0, initial=0)
        for largest in (seen.largest, ordinary) if seen.sinks else (seen.largest,):
            smooth = [place.shared(smooth_scales(largest, weight, each)) for each in strengths]
            tries += [(each, lambda past, known=known: known) for each, known in zip(strengths, smooth, strict=True)]  # type: ignore[misc]
    elif place is not None:
        tries += [(each, lambda past, each=each: place.shared(cap_scales(seen.largest, each, past))) for each in CAPS]  # type: ignore[misc]

    def part(off: NDArray[Any]) -> float:
        parts = _energies(off, counts, split)
        return float(np.divide(parts, whole, out=np.zeros_like(parts), where=whole > 0).mean())

    def tried(strength: float, scale: Callable[[int], NDArray[np.float32] | None], count: int) -> _Tried:
        scales = scale(count)
        by = np.ones(seen.width, np.float32) if scales is None else scales
        few = np.sort(np.argsort(-seen.largest, kind="stable")[:count])
        x, moved = rows / by, weight * by
        x[:, few] = moved[:, few] = 0
        by_weights = weights * part(x @ (_nearest(moved) - moved).T)
        narrowed = by.copy()
        narrowed[few] = np.inf  # what is divided by it is zero
        known = None if scales is None and not count else narrowed
        grids = grids_of(seen, names, symmetric, known)
        off, grid = min(((part((each.round(x) - x) @ moved.T), each) for each in grids), key=lambda found: found[0])
        return _Tried(off + by_weights, strength, scales, tuple(few.tolist()), grid)

    found = [tried(strength, scale, 0) for strength, scale in tries]
    best = min(found, key=lambda each: each.error)
    count = min(OUTLIERS, seen.width // 64)
    alone = len(linears) == 1 and len(list(linears[0].weight.uses())) == 1  # a shared weight is another layer's too
    if count and alone and (place is None or place.norm is None):
        past = min((tried(strength, scale, count) for strength, scale in tries), key=lambda each: each.error)
        best = past if best.error > LARGE and past.error < GAIN * best.error else best
    by = np.ones(seen.width, np.float32) if best.scales is None else best.scales.copy()
    importance = seen.importance() / np.square(by.astype(np.float64))
    importance[list(best.outliers)] = 0
    by[list(best.outliers)] = np.inf
    mean = seen.mean() / by
    return Choice(
        str(linears[0].x.name), linears, best.strength, best.scales, best.grid, best.outliers, seen.ends(by),
        mean, importance, best.error, found[0].error,
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
    """Sums of squares [layers] of outputs [tokens, out of all layers], tokens counted as they are."""
    features = counts @ np.square(y)
    return np.array([float(part.sum()) for part in np.split(features, split)])


def _nearest(moved: NDArray[np.float32]) -> NDArray[np.float32]:
    """A weight [out, in] on 255 even steps a channel."""
    step = np.abs(moved).max(1, keepdims=True) / np.float32(127)
    step = np.where(step > 0, step, np.float32(1))
    found: NDArray[np.float32] = np.rint(moved / step) * step
    return found
