"""Which inputs of a linear layer can go when those that stay make up for them, and how they do.

A layer y = W x, W [out, in], reads inputs of second moments H = E[x x^T] [in, in]. Without the inputs S, the best that
those kept can do costs tr(W_S [H^-1]_SS^-1 W_S^T) in the mean square of the outputs (Hassibi and Stork, Optimal Brain
Surgeon, 1993; for whole columns: Frantar and Alistarh, Optimal Brain Compression, 2022). An input that others can stand
in for is cheap even where it is large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DAMPING = 1e-3  # of the mean second moment, added to all: what was not seen is not zero
STEPS = 96  # that a layer's units are removed in, about


@dataclass(frozen=True)
class Curve:
    """What removing more and more units of a layer costs.

    Attributes:
        order: Units, in the order of removal.
        counts: Units removed after each step, from 0 on.
        costs: Mean square error of the outputs then, as the metric weighs it; it never falls.
    """

    order: NDArray[np.int64]
    counts: NDArray[np.int64]
    costs: NDArray[np.float64]


def damped(moments: NDArray[Any], damping: float = DAMPING) -> NDArray[np.float64]:
    """Returns second moments [in, in] as float64, a part of their mean added to each input's own."""
    found = np.array(moments, np.float64)
    level = float(np.trace(found)) / len(found)
    found[np.diag_indices_from(found)] += damping * level if level > 0 else 1.0
    return found


def curve(
    weight: NDArray[Any], moments: NDArray[Any], units: NDArray[np.int64], *, step: int = 0, most: float = 1.0,
    factor: NDArray[Any] | None = None, damping: float = DAMPING,
) -> Curve:  # fmt: skip
    """Removes the units that cost least, a few at a time, and counts what that costs.

    Args:
        weight: [out, in].
        moments: Second moments of the inputs, [in, in].
        units: Inputs of each unit, [units, inputs of one]. What is in none stays.
        step: Units removed at once; 0 for one of `STEPS` parts.
        most: Part of the units that are removed at most.
        factor: F [rows, out] of the metric F^T F that errors of outputs are weighed with; None weighs all alike.
        damping: Part of the mean second moment that is added to each input's own.
    """
    at_once = step or max(1, len(units) // STEPS)
    inverse = np.linalg.inv(damped(moments, damping))
    left = np.array(weight if factor is None else factor @ weight, np.float64)
    places, alive = np.asarray(units, np.int64), np.ones(len(units), np.bool_)
    order: list[int] = []
    counts, costs = [0], [0.0]
    while (few := min(at_once, len(units) - len(order))) and len(order) + few <= most * len(units):
        each = np.full(len(units), np.inf)
        each[alive] = _unit_costs(left, inverse, places[alive])
        gone = np.sort(np.argsort(each, kind="stable")[:few])
        columns = places[gone].reshape(-1)
        rows = inverse[columns]
        solved = np.linalg.solve(rows[:, columns], np.concatenate([left[:, columns].T, rows], 1))
        costs.append(costs[-1] + float(np.vdot(left[:, columns].T, solved[:, : len(left)])))
        # In place: what is gone becomes zeros, which costs less than copying what stays.
        left -= solved[:, : len(left)].T @ rows
        inverse -= rows.T @ solved[:, len(left) :]
        order += gone.tolist()
        alive[gone] = False
        counts.append(len(order))
    return Curve(np.array(order, np.int64), np.array(counts, np.int64), np.array(costs))


class Removal:
    """Costs of removing sets of inputs of one layer; arguments are those of `curve`."""

    def __init__(
        self, weight: NDArray[Any], moments: NDArray[Any], *, factor: NDArray[Any] | None = None,
        damping: float = DAMPING,
    ) -> None:  # fmt: skip
        left = np.asarray(weight if factor is None else factor @ weight, np.float64)
        self._squares = left.T @ left
        self._inverse = np.linalg.inv(damped(moments, damping))

    def cost(self, inputs: Sequence[int] | NDArray[np.int64]) -> float:
        """Returns what removing all of these inputs costs."""
        at = np.ix_(*2 * (np.asarray(inputs, np.int64),))
        return float(np.trace(np.linalg.solve(self._inverse[at], self._squares[at])))


def least_squares(
    weight: NDArray[Any], moments: NDArray[Any], cross: NDArray[Any] | None = None, *, ridge: float = DAMPING
) -> NDArray[np.float32]:
    """Fits a layer to targets: argmin over V of E|V x - t|^2 + r |V - W|^2.

    Args:
        weight: W [out, in] of the inputs that are kept.
        moments: E[x x^T] of these, [in, in].
        cross: E[t x^T], [out, in].
        ridge: r, as a part of the mean second moment: what the text says little of stays near W.

    Returns:
        V, float32 [out, in]; W itself where there is nothing to fit to.
    """
    if cross is None or not weight.shape[1]:
        return np.asarray(weight, np.float32)
    off = np.asarray(cross, np.float64) - np.asarray(weight, np.float64) @ np.asarray(moments, np.float64)
    return np.asarray(weight + np.linalg.solve(damped(moments, ridge), off.T).T, np.float32)


def _unit_costs(left: NDArray[Any], inverse: NDArray[Any], places: NDArray[np.int64]) -> NDArray[np.float64]:
    """What each unit alone would cost."""
    if places.shape[1] == 1:
        at = places[:, 0]
        found: NDArray[np.float64] = np.einsum("ij,ij->j", left, left)[at] / inverse.diagonal()[at]
        return found
    return np.array([np.vdot(left[:, at].T, np.linalg.solve(inverse[np.ix_(at, at)], left[:, at].T)) for at in places])
