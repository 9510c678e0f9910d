"""Importance of units: a number for each unit of each block, and the least important units within a share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.errors import InputError
from leptonc.ir.groups import Block, Groups
from leptonc.ir.spread import indices_of
from leptonc.ir.structure import weight_of
from leptonc.passes.feature import Feature
from leptonc.passes.prune.plan import Cut, spell

METHODS = ("magnitude", "wanda", "flap", "taylor")
Floats = NDArray[np.float64]


def scores(block: Block, method: str, features: Mapping[str, Feature]) -> Floats:
    """Returns the importance of each channel of an MLP, or group of an attention, float64 [units].

    - magnitude: the sum of squares of all weights that go with the unit.
    - wanda: the sum over consuming weights of their square, times the mean square of their input (An et al.,
      Fluctuation-based Adaptive Structured Pruning, 2024, where it is called Wanda-sp after Sun et al., 2023).
    - flap: the same with the variance of the input, because a bias can keep the mean (the same paper).

    Args:
        block: The block.
        method: One of `METHODS`, without taylor, whose importance comes from gradients; see `by_unit`.
        features: Statistics by module path of the consuming linear layer. Magnitude needs none.
    """
    if method == "magnitude":
        return _magnitude(block)
    inputs: dict[str, Floats] = {}
    for linear in block.consumers:
        feature = features[linear.path]
        spread = feature.square if method == "wanda" else np.maximum(feature.square - feature.mean**2, 0)
        squares = np.einsum("ij,ij->j", weight := weight_of(linear), weight, dtype=np.float64)
        inputs[linear.path] = squares * spread
    return by_unit(block, inputs)


def by_unit(block: Block, inputs: Mapping[str, NDArray[Any]]) -> Floats:
    """Sums the importance of inputs [in] of the consuming linear layers, by module path, to float64 [units]."""
    importance: Floats = np.zeros(block.units)
    for linear in block.consumers:
        importance += inputs[linear.path].astype(np.float64).reshape(block.units, -1).sum(1)
    return importance


def _magnitude(block: Block) -> Floats:
    importance: Floats = np.zeros(block.units)
    for value, spans in block.spread.initializers().items():
        squares = np.square(_read(value), dtype=np.float64)
        for span in spans:
            along = squares.sum(tuple(a for a in range(squares.ndim) if a != span.axis))
            count = block.spread.counts[span.space]
            energy = along[indices_of(span, np.arange(count))].reshape(count, -1).sum(1)
            importance += energy.reshape(block.units, -1).sum(1)  # heads lie by groups
    return importance


def _read(value: ir.Value) -> NDArray[np.float32]:
    if value.const_value is None:
        raise ValueError(f"{value.name} has no data")
    array: NDArray[np.float32] = value.const_value.numpy()
    return array


def step_of(block: Block, multiple: int) -> int:
    """Returns how many channels go together, so that what stays is a multiple of it: fewer where there are few."""
    return 1 if block.kind == "attention" else step_within(block.units, multiple)


def step_within(units: int, multiple: int) -> int:
    """Returns the part of a multiple that divides a number of units, and is an eighth of it at most."""
    step = multiple
    while step > 1 and (units < 8 * step or units % step):
        step //= 2
    return step


def cheapest(
    groups: Groups, importance: Mapping[str, Floats], share: float, *, multiple: int = 32, uniform: bool = False,
    by_weight: bool = True,
) -> tuple[Cut, ...]:  # fmt: skip
    """Cuts the least important units until a share of all layers' weights is gone.

    Channels go in steps (`step_of`), groups one by one. Every block keeps a step.

    Args:
        groups: What can be cut.
        importance: Importance of each block's units, by the block's name. Other blocks stay.
        share: Part of the weights of all layers that goes, above 0 and below 1.
        multiple: The number of channels that stay is a multiple of this, for the target's kernels. Default: 32.
        uniform: Whether every block loses the same share of its units. Default: it does not.
        by_weight: Whether units are compared by importance a weight. Otherwise they are by importance alone. Default:
            by importance a weight.

    Raises:
        InputError: So much cannot go while every block keeps a step.
    """
    steps: list[tuple[float, int, str, NDArray[np.int64]]] = []  # worth, weights, block, units
    for block in groups.blocks:
        if block.name not in importance:
            continue
        size, order = step_of(block, multiple), np.argsort(importance[block.name], kind="stable")
        space = "channels" if block.kind == "mlp" else "groups"
        unit_weights = block.cost(space) + (block.heads_per_group * block.cost("heads") if space == "groups" else 0)
        for at in range(0, block.units - size, size):
            units = order[at : at + size]
            worth = importance[block.name][units].mean() / (unit_weights if by_weight else 1)
            worth = (at + size) / block.units if uniform else worth
            steps.append((float(worth), unit_weights * size, block.name, units))
    target, gone = share * groups.total, 0
    cut: dict[str, list[int]] = {}
    for _, weights, name, units in sorted(steps, key=lambda step: step[0]):
        if gone + weights / 2 > target:
            continue
        gone += weights
        cut.setdefault(name, []).extend(int(unit) for unit in units)
    if gone < target - max((weights for _, weights, _, _ in steps), default=0):
        raise InputError(
            f"expected a share that leaves something of every block, found {100 * share:g} %; "
            f"at most {100 * sum(w for _, w, _, _ in steps) / max(1, groups.total):.0f} % can go",
            hint="a smaller share, or --prune layers:N",
        )
    return tuple(
        Cut(block.name, "channels" if block.kind == "mlp" else "groups", spell(cut[block.name]))
        for block in groups.blocks
        if block.name in cut
    )
