"""Statistics of the inputs of linear layers, gathered a batch at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonc.errors import InputError

ROWS = 2048  # tokens whose products are summed at once
SINK = 25.0  # a token whose energy is so many times the median's is an attention sink's


def not_finite(path: str) -> InputError:
    """Returns the error of inputs at `path` that float32 does not hold, or whose squares' sum it does not."""
    return InputError(
        f"expected finite activations on the calibration text, found others at the input of {path}",
        hint="the checkpoint's weights hold values that are not finite, or the model overflows float32",
    )


def finite_energy(rows: NDArray[Any], path: str) -> NDArray[Any]:
    """Returns the sum of squares of each token's features [tokens, width].

    Raises:
        InputError: One is not finite; `path` says where.
    """
    energy: NDArray[Any] = np.einsum("ij,ij->i", rows, rows)
    if not np.isfinite(energy).all():
        raise not_finite(path)
    return energy


def is_sink(energy: NDArray[Any]) -> NDArray[np.bool_]:
    """Which tokens of one text, by their energy [tokens], have massive activations."""
    found: NDArray[np.bool_] = energy > SINK * np.median(energy)
    return found


class Moments:
    """Second moments of a layer's inputs, the massive activations of a few tokens counted as much as all others.

    The first token of a text carries activations thousands of times the others' (Sun et al., Massive Activations in
    Large Language Models, 2024). Counted as they are they decide everything, left out they are lost and with them the
    attention that rests on them: they are scaled down until their energy is at most that of all other tokens.

    Args:
        path: What error messages call the inputs.
        width: Features of an input.

    Attributes:
        tokens: How many were counted.
    """

    def __init__(self, path: str, width: int) -> None:
        self.path, self.width, self.tokens = path, width, 0
        self._ordinary = np.zeros((width, width), np.float32)
        self._sinks = np.zeros((width, width), np.float32)
        self._off: NDArray[np.float32] | None = None
        self._waiting: list[tuple[NDArray[Any], NDArray[Any] | None]] = []

    def add(self, x: NDArray[Any], exact: NDArray[Any] | None = None) -> None:
        """Counts inputs float32 [..., width], and how far they are from exact ones.

        Raises:
            InputError: One is not finite.
        """
        rows = x.reshape(-1, x.shape[-1])
        energy = finite_energy(rows, self.path)
        sink = is_sink(energy)
        off = None if exact is None else exact.reshape(rows.shape) - rows
        if sink.any():
            massive, rows, off = rows[sink], rows[~sink], None if off is None else off[~sink]
            self._sinks += massive.T @ massive
        self._waiting.append((np.array(rows), off))
        self.tokens += len(energy)
        if sum(len(each) for each, _ in self._waiting) >= ROWS:
            self._sum()

    def _sum(self) -> None:
        if not self._waiting:
            return
        rows = np.concatenate([each for each, _ in self._waiting])
        offs = [off for _, off in self._waiting if off is not None]
        self._ordinary += rows.T @ rows  # one array with itself: half the work of two
        if offs:
            self._off = np.zeros_like(self._ordinary) if self._off is None else self._off
            self._off += np.concatenate(offs).T @ rows
        self._waiting.clear()

    def hessian(self) -> NDArray[np.float32]:
        """Returns the second moments, float32 [width, width].

        Raises:
            InputError: Their sum is more than float32 holds.
        """
        self._sum()
        ordinary, sinks = float(np.trace(self._ordinary)), float(np.trace(self._sinks))
        if not np.isfinite(ordinary + sinks):
            raise not_finite(self.path)
        if sinks <= ordinary or ordinary == 0:
            return self._ordinary + self._sinks
        found: NDArray[np.float32] = self._ordinary + self._sinks * np.float32(ordinary / sinks)
        return found

    def off(self) -> NDArray[np.float32] | None:
        """Returns (E - X)^T X of inputs X and exact ones E, float32 [width, width], massive ones left out; or None."""
        self._sum()
        return self._off
