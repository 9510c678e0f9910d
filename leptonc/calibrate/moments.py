"""Second moments of the inputs of linear layers, gathered a batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonc.calibrate.cores import lanes, side_by_side
from leptonc.errors import OVERFLOWS, InputError
from runtime_edge.probe import cpu_field

WAITING = 2**25  # bytes of tokens that wait until they are multiplied at once
PARTS = 4  # of them, at most: texts that are learnt from, texts that are held out, and exact ones twice
PART = 512  # rows of which a part is multiplied beside another
HELD = 4  # one of so many texts is held out
SINK = 25.0  # a token with so many times the median energy is an attention sink


@cache
def multiplies_bfloat16() -> bool:
    """Whether the processor multiplies matrices of bfloat16 faster than of float32."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(cpu_field("flags").split())


Product = Callable[[NDArray[Any], NDArray[Any], NDArray[np.float32]], None]  # of two arrays, and what it goes into


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


def _product(left: NDArray[Any], right: NDArray[Any], out: NDArray[np.float32]) -> None:
    """Computes left^T right. An array with itself takes half the time of two arrays."""
    np.matmul(left.T, right, out=out)


def _rounded(left: NDArray[Any], right: NDArray[Any], out: NDArray[np.float32]) -> None:
    """Computes left^T right in bfloat16, in a third of the time: what tokens are rounded by evens out."""
    import torch

    a, b = (torch.from_numpy(rows).to(torch.bfloat16) for rows in (left, right))
    torch.from_numpy(out).copy_(a.T @ b)


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
        self._waiting: dict[str, _Waiting] = {}  # by part
        self._products: list[NDArray[np.float32]] = []  # new memory for each product would take longer
        self._sinks: list[NDArray[Any]] = []  # few: they wait until the end

    def add(self, x: NDArray[Any], exact: NDArray[Any] | None = None) -> None:
        """Counts inputs float32 [..., width] of a text, and their distance from `exact` ones of the same shape.

        Raises:
            InputError: An input is not finite.
        """
        rows = x.reshape(-1, x.shape[-1])
        energy = finite_energy(rows, self.path)
        sink = is_sink(energy)
        if sink.any():
            self._sinks.append(rows[sink])
        self._texts += 1
        part = "held" if self._hold_out and self._texts % HELD == 0 else "learnt"
        self._rows[part] += len(rows) - int(sink.sum())
        self.tokens += len(energy)
        self._wait(part, rows, rows, sink)
        if exact is not None:
            self._wait("off", rows, exact.reshape(rows.shape), sink)
        if sum(rows.nbytes for rows in self._sinks) >= WAITING:
            self._sum_sinks()

    def _wait(self, part: str, rows: NDArray[Any], exact: NDArray[Any], sink: NDArray[np.bool_]) -> None:
        """Copies rows to those that wait, zeros in the place of massive ones, which are summed apart."""
        if (waiting := self._waiting.get(part)) is None:
            size = max(len(rows), WAITING // PARTS // max(1, 4 * self.width))
            waiting = self._waiting[part] = _Waiting(size, self.width, off=exact is not rows)
        if waiting.count + len(rows) > len(waiting.rows):
            self._sum(part)
            if len(rows) > len(waiting.rows):
                waiting = self._waiting[part] = _Waiting(len(rows), self.width, off=exact is not rows)
        at = slice(waiting.count, waiting.count + len(rows))
        waiting.count = at.stop
        waiting.rows[at] = rows
        waiting.rows[at][sink] = 0
        if waiting.off is not None:
            np.subtract(exact, rows, out=waiting.off[at])
            waiting.off[at][sink] = 0

    def _sum(self, *parts: str) -> None:
        """Adds the products of the rows that wait."""
        for part in parts:
            if (waiting := self._waiting.get(part)) is None or not waiting.count:
                continue
            rows = waiting.rows[: waiting.count]
            if waiting.off is None:
                self._add(part, rows, rows)
            else:
                self._add(part, waiting.off[: waiting.count], rows, _rounded if multiplies_bfloat16() else _product)
            waiting.count = 0

    def _sum_all(self) -> None:
        """Adds all that waits, and frees what it waited in. Rows may be added afterwards."""
        self._sum(*self._waiting)
        self._waiting.clear()
        self._products.clear()

    def _sum_sinks(self) -> None:
        if self._sinks:
            rows = np.concatenate(self._sinks)
            self._add("sinks", rows, rows)
            self._sinks.clear()

    def _add(self, name: str, left: NDArray[Any], right: NDArray[Any], product: Product | None = None) -> None:
        """Adds left^T right to a sum, in products that run side by side."""
        parts = lanes() if len(left) >= PART else 1
        rows = [slice(len(left) * at // parts, len(left) * (at + 1) // parts) for at in range(parts)]
        if name not in self._sums:
            self._sums[name] = np.zeros((self.width, self.width), np.float32)
        self._products += [np.empty_like(self._sums[name]) for _ in range(parts - len(self._products))]

        def multiplied(at: int) -> NDArray[np.float32]:
            (product or _product)(left[rows[at]], right[rows[at]], self._products[at])
            return self._products[at]

        for made in side_by_side(multiplied, range(parts), parts):
            self._sums[name] += made

    def held_out(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Returns second moments of three texts in four, and of every fourth, float32 [width, width] each.

        Returns None where either part has fewer tokens than features, or none was held out. Call it before `hessian`.
        """
        if min(self._rows.values()) < self.width:
            return None
        self._sum_all()
        return self._with_sinks(np.array(self._sums["learnt"])), self._with_sinks(np.array(self._sums["held"]))

    def hessian(self) -> NDArray[np.float32]:
        """Returns the second moments of all texts, float32 [width, width]. Nothing may be added afterwards.

        Raises:
            InputError: Their sum is beyond float32.
        """
        self._sum_all()
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
        self._sum_all()
        return self._sums.get("off")


class _Waiting:
    """Rows that wait until they are multiplied.

    Args:
        size: Room for so many rows.
        width: Features of a row.
        off: Whether there is another row beside each.

    Attributes:
        count: Rows that wait.
        rows: float32 [size, width].
        off: The other rows, likewise. None: there are none.
    """

    def __init__(self, size: int, width: int, *, off: bool) -> None:
        self.count = 0
        self.rows = np.empty((size, width), np.float32)
        self.off = np.empty((size, width), np.float32) if off else None
