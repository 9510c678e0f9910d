"""What a text makes of the inputs of linear layers: ranges, a histogram and sample rows, gathered once for all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonc.calibrate.moments import finite_energy, is_sink, not_finite

BINS = 4096  # of a histogram, half of them on each side of zero
ROWS = 1024  # ordinary tokens whose inputs are kept, drawn evenly from all
SINKS = 64  # of the tokens with massive activations likewise


@dataclass
class Histogram:
    """Counts of values in even bins over [-limit, limit]; `limit` is a power of two that doubles when it must.

    Doubling joins pairs of bins, so what was counted stays exact. Counts may be parts: a value can weigh less than one.

    Attributes:
        limit: The largest magnitude that there are bins for; 0 before anything but zeros was seen.
        counts: float64 [BINS].
        low: The least value seen, 0 at most; high: the greatest, 0 at least.
    """

    limit: float = 0.0
    counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))
    low: float = 0.0
    high: float = 0.0

    def add(self, x: NDArray[Any], weight: float = 1.0) -> None:
        """Counts finite values float32 of any shape, each as much as `weight`."""
        if not x.size:
            return
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        largest = max(-self.low, self.high)
        if largest > self.limit:
            self._grow(largest)
        if self.limit:
            at = (x.reshape(-1) * np.float32(BINS / 2 / self.limit) + np.float32(BINS / 2)).astype(np.int32)
            found = np.bincount(np.minimum(at, BINS - 1), minlength=BINS)
        else:
            found = np.bincount([BINS // 2], weights=[x.size], minlength=BINS)
        self.counts += found * weight

    def _grow(self, largest: float) -> None:
        wanted = float(2.0 ** np.ceil(np.log2(largest)))
        if self.limit == 0:
            self.limit = wanted
        while self.limit < wanted:
            joined = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([np.zeros(BINS // 4), joined, np.zeros(BINS // 4)])
            self.limit *= 2

    def centers(self) -> NDArray[np.float64]:
        """Returns the middle of each bin, float64 [BINS]."""
        return np.linspace(-self.limit, self.limit, 2 * BINS + 1)[1::2]


class Statistics:
    """Statistics of one value that linear layers read.

    The tokens with massive activations (see `Moments`) are counted apart: they show in the extremes, and in whatever
    weighs them against the others, but they do not decide what is ordinary.

    Args:
        path: What error messages call the value.
        width: Features.
        seed: Of the draw of the rows that are kept.

    Attributes:
        tokens: Ordinary tokens seen; sinks: those with massive activations.
        low, high: Least and greatest value of each feature over all tokens, float32 [width].
        sum, square: Of each feature and its squares over ordinary tokens, float64 [width]; sink_square: over sinks.
        histogram: Of the ordinary tokens' values.
    """

    def __init__(self, path: str, width: int, seed: int = 0) -> None:
        self.path, self.width = path, width
        self.tokens = self.sinks = 0
        self.low, self.high = np.full(width, np.inf, np.float32), np.full(width, -np.inf, np.float32)
        self.sum, self.square, self.sink_square = np.zeros(width), np.zeros(width), np.zeros(width)
        self.histogram = Histogram()
        self._random = np.random.default_rng(seed)
        self._rows: list[NDArray[np.float32]] = []
        self._sink_rows: list[NDArray[np.float32]] = []

    def add(self, x: NDArray[Any]) -> None:
        """Counts inputs float32 [..., width].

        Raises:
            InputError: One is not finite, or the sum of their squares is more than float32 holds.
        """
        rows = x.reshape(-1, self.width)
        energy = finite_energy(rows, self.path)
        self.low, self.high = np.minimum(self.low, rows.min(0)), np.maximum(self.high, rows.max(0))
        sink = is_sink(energy)
        massive, rows = rows[sink], rows[~sink]
        self.sum += rows.sum(0, dtype=np.float64)
        self.square += np.einsum("ij,ij->j", rows, rows)
        self.sink_square += np.einsum("ij,ij->j", massive, massive)
        if not np.isfinite(self.square.sum() + self.sink_square.sum()):
            raise not_finite(self.path)
        self.histogram.add(rows)
        self.tokens = self._keep(self._rows, rows, self.tokens, ROWS)
        self.sinks = self._keep(self._sink_rows, massive, self.sinks, SINKS)

    def _keep(self, kept: list[NDArray[np.float32]], rows: NDArray[Any], seen: int, limit: int) -> int:
        """Reservoir sampling (Vitter, 1985): every token seen is among the kept with the same chance."""
        first = min(len(rows), max(0, limit - seen))
        kept += [np.array(row, np.float32) for row in rows[:first]]
        places = self._random.integers(np.arange(seen + first, seen + len(rows)) + 1)
        for at in np.flatnonzero(places < limit):
            kept[places[at]] = np.array(rows[first + at], np.float32)
        return seen + len(rows)

    @property
    def largest(self) -> NDArray[np.float32]:
        """The largest magnitude of each feature, float32 [width]."""
        found: NDArray[np.float32] = np.maximum(-self.low, self.high)
        return found

    @property
    def sink_weight(self) -> float:
        """How much a token with massive activations counts, where an ordinary one counts 1.

        All together, in energy, count at most as much as all ordinary ones.
        """
        ordinary, sinks = float(self.square.sum()), float(self.sink_square.sum())
        return 1.0 if sinks <= ordinary or ordinary == 0 else ordinary / sinks

    def mean(self) -> NDArray[np.float64]:
        """Mean of each feature over ordinary tokens, float64 [width]."""
        return self.sum / max(1, self.tokens)

    def importance(self) -> NDArray[np.float64]:
        """Mean square of each feature, float64 [width]."""
        found: NDArray[np.float64] = (self.square + self.sink_weight * self.sink_square) / max(1, self.tokens)
        return found

    def sample(self, limit: int = ROWS) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Returns rows float32 [n, width] of at most `limit` ordinary tokens and the sinks, and how much each counts.

        Weights float64 [n] sum to about the number of tokens seen.
        """
        rows, massive = self._rows[:limit], self._sink_rows
        weights = [self.tokens / max(1, len(rows))] * len(rows)
        weights += [self.sink_weight * self.sinks / max(1, len(massive))] * len(massive)
        stacked = np.stack([*rows, *massive]) if weights else np.zeros((0, self.width), np.float32)
        return stacked, np.asarray(weights, np.float64)

    def scaled_histogram(self, scales: NDArray[np.float32] | None) -> tuple[Histogram, Histogram]:
        """Returns histograms of the ordinary tokens' inputs divided by `scales` [width], and of the sinks', weighted.

        Without scales the first one is of all tokens; with scales it is of the rows that are kept.
        """
        sinks = Histogram()
        weight = self.sink_weight * self.sinks / max(1, len(self._sink_rows))
        for row in self._sink_rows:
            sinks.add(row if scales is None else row / scales, weight)
        if scales is None:
            return self.histogram, sinks
        ordinary = Histogram()
        if self._rows:
            ordinary.add(np.stack(self._rows) / scales, self.tokens / len(self._rows))
        return ordinary, sinks

    def ends(self, scales: NDArray[np.float32] | None) -> tuple[float, float]:
        """Returns the least and the greatest of all inputs divided by `scales`, with zero between."""
        scale = np.ones(self.width, np.float32) if scales is None else scales
        return min(0.0, float((self.low / scale).min())), max(0.0, float((self.high / scale).max()))
