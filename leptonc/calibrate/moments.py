"""Statistics of the inputs of linear layers, gathered a batch at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonc.errors import OVERFLOWS, InputError

WAITING = 2**25  # bytes of tokens whose products are summed at once
HELD = 4  # of so many texts one is held out
SINK = 25.0  # a token whose energy is so many times the median's is an attention sink's


def not_finite(path: str) -> InputError:
    """Returns the error of inputs at `path` that float32 does not hold, or whose squares' sum it does not."""
    return InputError(
        f"expected finite activations on the calibration text, found others at the input of {path}",
        hint=OVERFLOWS,
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
        hold_out: Whether some texts are summed apart, too; see `held_out`.

    Attributes:
        tokens: How many were counted.
    """

    def __init__(self, path: str, width: int, *, hold_out: bool = False) -> None:
        self.path, self.width, self.tokens = path, width, 0
        self._hold_out, self._texts = hold_out, 0
        self._sums: dict[str, NDArray[np.float32]] = {}  # [width, width], each made when something is added to it
        self._rows = {"learnt": 0, "held": 0}
        self._waiting: list[tuple[str, NDArray[Any], NDArray[Any] | None]] = []
        self._sinks: list[NDArray[Any]] = []  # few: they wait to the end

    def add(self, x: NDArray[Any], exact: NDArray[Any] | None = None) -> None:
        """Counts inputs float32 [..., width] of a text, and how far they are from exact ones.

        Raises:
            InputError: One is not finite.
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
        if sum(each.nbytes * (1 if off is None else 2) for _, each, off in self._waiting) >= WAITING:
            self._sum()
        if sum(each.nbytes for each in self._sinks) >= WAITING:
            self._sum_sinks()

    def _sum(self) -> None:
        """Adds the products of what waits; an array with itself is half the work of two."""
        for part in self._rows:
            some = [each for name, each, _ in self._waiting if name == part]
            if some:
                rows = np.concatenate(some)
                self._add(part, rows.T @ rows)
        beside = [(off, rows) for _, rows, off in self._waiting if off is not None]
        if beside:
            offs, inputs = (np.concatenate(each) for each in zip(*beside, strict=True))
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
        """Returns second moments of the texts but for each fourth, and of these, float32 [width, width] each.

        None where either has fewer tokens than features, or where none was held out; not to be had after `hessian`.
        """
        if min(self._rows.values()) < self.width:
            return None
        self._sum()
        return self._with_sinks(np.array(self._sums["learnt"])), self._with_sinks(np.array(self._sums["held"]))

    def hessian(self) -> NDArray[np.float32]:
        """Returns the second moments, float32 [width, width]; nothing is counted afterwards.

        Raises:
            InputError: Their sum is more than float32 holds.
        """
        self._sum()
        found = self._sums.pop("learnt", None)
        if found is None:
            found = np.zeros((self.width, self.width), np.float32)
        if "held" in self._sums:
            found += self._sums.pop("held")
        self._sums["learnt"] = found = self._with_sinks(found)
        self._sums.pop("sinks", None)
        return found

    def _with_sinks(self, ordinary: NDArray[np.float32]) -> NDArray[np.float32]:
        """Adds the moments of massive tokens, scaled down, in place."""
        self._sum_sinks()
        sinks = self._sums.get("sinks")
        energies = float(np.trace(ordinary)), 0.0 if sinks is None else float(np.trace(sinks))
        if not np.isfinite(sum(energies)):
            raise not_finite(self.path)
        if sinks is not None:
            ordinary += sinks * np.float32(energies[0] / energies[1]) if energies[1] > energies[0] > 0 else sinks
        return ordinary

    def off(self) -> NDArray[np.float32] | None:
        """Returns (E - X)^T X of inputs X and exact ones E, float32 [width, width], massive ones left out; or None."""
        self._sum()
        return self._sums.get("off")
