"""Costs of removing inputs of a linear layer when the others make up for them, and the weights that do.

A layer y = W x, W [out, in], has inputs of second moments H = E[x x^T] [in, in]. Without the inputs S the least mean
square error of the outputs is tr(W_S [H^-1]_SS^-1 W_S^T) (Hassibi and Stork, Optimal Brain Surgeon, 1993; for whole
columns: Frantar and Alistarh, Optimal Brain Compression, 2022). An input that others predict is cheap even where it is
large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DAMPING = 1e-3  # part of the mean second moment that is added to all, because a short text shows no input's full range
STEPS = 96  # steps in which a layer's units are removed, about


@dataclass(frozen=True)
class Curve:
    """Costs of removing more and more units of a layer.

    Attributes:
        order: Units, in the order of removal.
        counts: Number of units removed after each step, from 0 on.
        costs: Mean square error of the outputs after each step, weighed by the metric. It never falls.
    """

    order: NDArray[np.int64]
    counts: NDArray[np.int64]
    costs: NDArray[np.float64]


def damped(moments: NDArray[Any], damping: float = DAMPING) -> NDArray[np.float64]:
    """Returns second moments [in, in] in float64 with a part of their mean added to the diagonal."""
    matrix = np.array(moments, np.float64)
    level = float(np.trace(matrix)) / len(matrix)
    matrix[np.diag_indices_from(matrix)] += damping * level if level > 0 else 1.0
    return matrix


def curve(
    weight: NDArray[Any], moments: NDArray[Any], units: NDArray[np.int64], *, step: int = 0, most: float = 1.0,
    factor: NDArray[Any] | None = None, damping: float = DAMPING,
) -> Curve:  # fmt: skip
    """Removes the units with the least cost, a few at a time, and returns the costs.

    Args:
        weight: [out, in].
        moments: Second moments of the inputs, [in, in].
        units: Inputs of each unit, [units, inputs of one]. Inputs of no unit stay.
        step: Number of units that are removed at once. Default: one of `STEPS` parts.
        most: Largest part of the units that is removed. Default: all.
        factor: F [rows, out] of the metric F^T F that weighs errors of outputs. Default: all outputs weigh the same.
        damping: Part of the mean second moment that is added to the diagonal. Default: `DAMPING`.
    """
    at_once = step or max(1, len(units) // STEPS)
    inverse = np.linalg.inv(damped(moments, damping))
    left = np.array(weight if factor is None else factor @ weight, np.float64)
    places, alive = np.asarray(units, np.int64), np.ones(len(units), np.bool_)
    order: list[int] = []
    counts, costs = [0], [0.0]
    while (few := min(at_once, len(units) - len(order))) and len(order) + few <= most * len(units):
        unit_costs = np.full(len(units), np.inf)
        unit_costs[alive] = _unit_costs(left, inverse, places[alive])
        gone = np.sort(np.argsort(unit_costs, kind="stable")[:few])
        columns = places[gone].reshape(-1)
        rows = inverse[columns]
        solved = np.linalg.solve(rows[:, columns], np.concatenate([left[:, columns].T, rows], 1))
        costs.append(costs[-1] + float(np.vdot(left[:, columns].T, solved[:, : len(left)])))
        # In place: zeros for the units that are gone take less time than a copy of those that stay.
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
        """Returns the cost of removing all of these inputs."""
        at = np.ix_(*2 * (np.asarray(inputs, np.int64),))
        return float(np.trace(np.linalg.solve(self._inverse[at], self._squares[at])))


def least_squares(
    weight: NDArray[Any], moments: NDArray[Any], cross: NDArray[Any] | None = None, *, ridge: float = DAMPING
) -> NDArray[np.float32]:
    """Fits a layer to targets: argmin over V of E|V x - t|^2 + r |V - W|^2.

    Args:
        weight: W [out, in] of the inputs that stay.
        moments: E[x x^T] of these inputs, [in, in].
        cross: E[t x^T], [out, in]. Default: there is nothing to fit to.
        ridge: r, as a part of the mean second moment. It keeps V near W where the text determines little. Default:
            `DAMPING`.

    Returns:
        V, float32 [out, in]; W itself where there is nothing to fit to.
    """
    if cross is None or not weight.shape[1]:
        return np.asarray(weight, np.float32)
    off = np.asarray(cross, np.float64) - np.asarray(weight, np.float64) @ np.asarray(moments, np.float64)
    return np.asarray(weight + np.linalg.solve(damped(moments, ridge), off.T).T, np.float32)


def _unit_costs(left: NDArray[Any], inverse: NDArray[Any], places: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the cost of removing each unit alone, float64 [units]."""
    if places.shape[1] == 1:
        at = places[:, 0]
        costs: NDArray[np.float64] = np.einsum("ij,ij->j", left, left)[at] / inverse.diagonal()[at]
        return costs
    return np.array([np.vdot(left[:, at].T, np.linalg.solve(inverse[np.ix_(at, at)], left[:, at].T)) for at in places])
