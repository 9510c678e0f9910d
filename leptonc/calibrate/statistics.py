"""Statistics of the inputs of linear layers on a text: ranges, a histogram and sample rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonc.calibrate.moments import finite_energy, is_sink, not_finite

BINS = 4096  # of a histogram, half of them on each side of zero
ROWS = 1024  # ordinary tokens whose inputs are kept, drawn evenly from all
SINKS = 64  # tokens with massive activations whose inputs are kept, drawn evenly from all


@dataclass
class Histogram:
    """Counts of values in even bins over [-limit, limit]; `limit` is a power of two that doubles when it must.

    Doubling joins pairs of bins, so counts stay exact. A value may weigh less than one.

    Attributes:
        limit: The largest magnitude that there are bins for. It is 0 until a value is not zero.
        counts: float64 [BINS].
        low: The least value counted, 0 at most.
        high: The greatest value counted, 0 at least.
    """

    limit: float = 0.0
    counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))
    low: float = 0.0
    high: float = 0.0

    def add(self, x: NDArray[Any], weight: float = 1.0) -> None:
        """Counts finite values float32 of any shape, each `weight` times."""
        if not x.size:
            return
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        largest = max(-self.low, self.high)
        if largest > self.limit:
            self._grow(largest)
        if self.limit:
            at = (x.reshape(-1) * np.float32(BINS / 2 / self.limit) + np.float32(BINS / 2)).astype(np.int32)
            counts = np.bincount(np.minimum(at, BINS - 1), minlength=BINS)
        else:
            counts = np.bincount([BINS // 2], weights=[x.size], minlength=BINS)
        self.counts += counts * weight

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

    Tokens with massive activations (see `Moments`) are counted apart. They count in the extremes, and with a weight in
    `importance` and `sample`, but not in what is ordinary.

    Args:
        path: Name of the value in error messages.
        width: Features.
        seed: Seed of the draw of the rows that are kept. Default: 0.

    Attributes:
        tokens: Number of ordinary tokens.
        sinks: Number of tokens with massive activations.
        low, high: Least and greatest value of each feature over all tokens, float32 [width].
        sum, square: Sum of each feature, and of its squares, over ordinary tokens, float64 [width].
        sink_square: Sum of each feature's squares over tokens with massive activations, float64 [width].
        histogram: Histogram of the ordinary tokens' values.
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
            InputError: An input is not finite, or the sum of squares is beyond float32.
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

    def _keep(self, sample: list[NDArray[np.float32]], rows: NDArray[Any], count: int, limit: int) -> int:
        """Draws rows into `sample` by reservoir sampling (Vitter, 1985), where every token has the same chance.

        Args:
            sample: The rows that are kept.
            rows: New rows.
            count: Number of rows before these.
            limit: Most rows in the sample.

        Returns:
            Number of rows with these.
        """
        first = min(len(rows), max(0, limit - count))
        sample += [np.array(row, np.float32) for row in rows[:first]]
        places = self._random.integers(np.arange(count + first, count + len(rows)) + 1)
        for at in np.flatnonzero(places < limit):
            sample[places[at]] = np.array(rows[first + at], np.float32)
        return count + len(rows)

    @property
    def largest(self) -> NDArray[np.float32]:
        """The largest magnitude of each feature, float32 [width]."""
        magnitudes: NDArray[np.float32] = np.maximum(-self.low, self.high)
        return magnitudes

    @property
    def sink_weight(self) -> float:
        """Weight of a token with massive activations, where an ordinary token has 1.

        With it the energy of all such tokens is at most that of all ordinary ones.
        """
        ordinary, sinks = float(self.square.sum()), float(self.sink_square.sum())
        return 1.0 if sinks <= ordinary or ordinary == 0 else ordinary / sinks

    def mean(self) -> NDArray[np.float64]:
        """Mean of each feature over ordinary tokens, float64 [width]."""
        return self.sum / max(1, self.tokens)

    def importance(self) -> NDArray[np.float64]:
        """Mean square of each feature, float64 [width]."""
        squares: NDArray[np.float64] = (self.square + self.sink_weight * self.sink_square) / max(1, self.tokens)
        return squares

    def sample(self, limit: int = ROWS) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Returns rows float32 [n, width] of at most `limit` ordinary tokens and of sinks, with weights float64 [n].

        The weights sum to about the number of tokens.
        """
        rows, massive = self._rows[:limit], self._sink_rows
        weights = [self.tokens / max(1, len(rows))] * len(rows)
        weights += [self.sink_weight * self.sinks / max(1, len(massive))] * len(massive)
        stacked = np.stack([*rows, *massive]) if weights else np.zeros((0, self.width), np.float32)
        return stacked, np.asarray(weights, np.float64)

    def scaled_histogram(self, scales: NDArray[np.float32] | None) -> tuple[Histogram, Histogram]:
        """Returns histograms of the ordinary tokens' inputs divided by `scales` [width], and of sinks.

        Without scales the first histogram counts all ordinary tokens, with scales the rows that are kept.
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
        """Returns the least and the greatest of all inputs divided by `scales` [width]; the range holds zero."""
        scale = np.ones(self.width, np.float32) if scales is None else scales
        return min(0.0, float((self.low / scale).min())), max(0.0, float((self.high / scale).max()))
