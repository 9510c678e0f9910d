"""Second moments of the inputs of linear layers, gathered a batch at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonc.errors import OVERFLOWS, InputError

WAITING = 2**25  # bytes of tokens that are multiplied at once
HELD = 4  # one of so many texts is held out
SINK = 25.0  # a token with so many times the median energy is an attention sink


def not_finite(path: str) -> InputError:
    """Returns the error for inputs at `path`, or sums of their squares, that are beyond float32."""
    return InputError(
        f"expected finite activations on the calibration text, found others at the input of {path}",
        hint=OVERFLOWS,
    )


def finite_energy(rows: NDArray[Any], path: str) -> NDArray[Any]:
    """Returns the sum of squares of each token's features [tokens, width].

    Raises:
        InputError: A sum is not finite; the message has `path`.
    """
    energy: NDArray[Any] = np.einsum("ij,ij->i", rows, rows)
    if not np.isfinite(energy).all():
        raise not_finite(path)
    return energy


def is_sink(energy: NDArray[Any]) -> NDArray[np.bool_]:
    """Returns which tokens of one text have massive activations, by their energy [tokens]."""
    massive: NDArray[np.bool_] = energy > SINK * np.median(energy)
    return massive


class Moments:
    """Second moments of a layer's inputs. Massive activations of a few tokens count at most as much as all others.

    The first token of a text carries activations thousands of times the others' (Sun et al., Massive Activations in
    Large Language Models, 2024). At full weight they would decide everything. Left out, the attention that rests on
    them would be lost. So they are scaled down until their energy is at most that of all other tokens.

    Args:
        path: Name of the inputs in error messages.
        width: Features of an input.
        hold_out: Whether some texts are summed apart; see `held_out`. Default: they are not.

    Attributes:
        tokens: Number of tokens that were counted.
    """

    def __init__(self, path: str, width: int, *, hold_out: bool = False) -> None:
        self.path, self.width, self.tokens = path, width, 0
        self._hold_out, self._texts = hold_out, 0
        self._sums: dict[str, NDArray[np.float32]] = {}  # [width, width], by part
        self._rows = {"learnt": 0, "held": 0}
        self._waiting: list[tuple[str, NDArray[Any], NDArray[Any] | None]] = []
        self._sinks: list[NDArray[Any]] = []  # few: they wait until the end

    def add(self, x: NDArray[Any], exact: NDArray[Any] | None = None) -> None:
        """Counts inputs float32 [..., width] of a text, and their distance from `exact` ones of the same shape.

        Raises:
            InputError: An input is not finite.
        """
        rows = x.reshape(-1, x.shape[-1])
        energy = finite_energy(rows, self.path)
        sink = is_sink(energy)
        off = None if exact is None else exact.reshape(rows.shape) - rows
        if sink.any():
            self._sinks.append(rows[sink])
            rows, off = rows[~sink], None if off is None else off[~sink]
        self._texts += 1
        part = "held" if self._hold_out and self._texts % HELD == 0 else "learnt"
        self._waiting.append((part, np.array(rows), off))
        self._rows[part] += len(rows)
        self.tokens += len(energy)
        if sum(rows.nbytes * (1 if off is None else 2) for _, rows, off in self._waiting) >= WAITING:
            self._sum()
        if sum(rows.nbytes for rows in self._sinks) >= WAITING:
            self._sum_sinks()

    def _sum(self) -> None:
        """Adds the products of the rows that wait. An array with itself takes half the time of two arrays."""
        for part in self._rows:
            parts = [rows for name, rows, _ in self._waiting if name == part]
            if parts:
                rows = np.concatenate(parts)
                self._add(part, rows.T @ rows)
        offs_and_rows = [(off, rows) for _, rows, off in self._waiting if off is not None]
        if offs_and_rows:
            offs, inputs = (np.concatenate(arrays) for arrays in zip(*offs_and_rows, strict=True))
            self._add("off", offs.T @ inputs)
        self._waiting.clear()

    def _sum_sinks(self) -> None:
        if self._sinks:
            rows = np.concatenate(self._sinks)
            self._add("sinks", rows.T @ rows)
            self._sinks.clear()

    def _add(self, name: str, product: NDArray[np.float32]) -> None:
        if name in self._sums:
            self._sums[name] += product
        else:
            self._sums[name] = product

    def held_out(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Returns second moments of three texts in four, and of every fourth, float32 [width, width] each.

        Returns None where either part has fewer tokens than features, or none was held out. Call it before `hessian`.
        """
        if min(self._rows.values()) < self.width:
            return None
        self._sum()
        return self._with_sinks(np.array(self._sums["learnt"])), self._with_sinks(np.array(self._sums["held"]))

    def hessian(self) -> NDArray[np.float32]:
        """Returns the second moments of all texts, float32 [width, width]. Nothing may be added afterwards.

        Raises:
            InputError: Their sum is beyond float32.
        """
        self._sum()
        sums = self._sums.pop("learnt", None)
        if sums is None:
            sums = np.zeros((self.width, self.width), np.float32)
        if "held" in self._sums:
            sums += self._sums.pop("held")
        self._sums["learnt"] = sums = self._with_sinks(sums)
        self._sums.pop("sinks", None)
        return sums

    def _with_sinks(self, ordinary: NDArray[np.float32]) -> NDArray[np.float32]:
        """Adds the moments of massive tokens, scaled down, to `ordinary` in place, and returns it."""
        self._sum_sinks()
        sinks = self._sums.get("sinks")
        energies = float(np.trace(ordinary)), 0.0 if sinks is None else float(np.trace(sinks))
        if not np.isfinite(sum(energies)):
            raise not_finite(self.path)
        if sinks is not None:
            ordinary += sinks * np.float32(energies[0] / energies[1]) if energies[1] > energies[0] > 0 else sinks
        return ordinary

    def off(self) -> NDArray[np.float32] | None:
        """Returns (E - X)^T X of inputs X and exact inputs E, float32 [width, width], massive tokens left out.

        Returns None where no exact inputs were counted.
        """
        self._sum()
        return self._sums.get("off")
