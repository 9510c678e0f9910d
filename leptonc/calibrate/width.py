"""Fits what reads the residual stream to the features of it that stay."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.input_moments import InputMoments
from leptonc.calibrate.stage_session import Weights
from leptonc.ir.edit import producer
from leptonc.ir.residual import Residual
from leptonc.ir.structure import Linear, as_stored, lookups, weight_of
from leptonc.ir.weights import tensor_of
from leptonc.passes.prune.choose import errors_of, reconstructed
from leptonc.passes.prune.width import projection

RIDGE = 1e-3  # of the mean second moment: how much a fit keeps to the weights as they were
Error = dict[str, Any]


def by_value(linears: Iterable[Linear]) -> dict[ir.Value, list[Linear]]:
    """Returns linear layers by the value that they read."""
    found: dict[ir.Value, list[Linear]] = {}
    for each in linears:
        found.setdefault(each.x, []).append(each)
    return found


def fitted_width(
    model: ir.Model, found: Residual, seen: InputMoments, basis: NDArray[np.float32], kept: int, folder: Path
) -> tuple[Weights, list[Error]]:  # fmt: skip
    """Lets the features of the residual stream that stay make up for those that go, in every layer that reads it.

    A head that is tied to the embedding stays as it is; the layer before it says what the embedding's columns that stay
    cannot say, see `projection`.

    Args:
        model: The graph in the basis, nothing cut.
        found: Its residual stream.
        seen: What layers read before the basis changed: of each value that is read, of the first layer that reads it.
        basis: The basis, [width, width].
        kept: Features that stay.
        folder: Where the weights wait until they are written.

    Returns:
        Weights by initializer, in the shape before the cut; and of each layer fitted its path, the inputs that it
        keeps, and its outputs' error before and after, as parts of them.
    """
    tables = lookups(model)
    heads = [each for each in found.readers if each.weight in tables]
    before_head = {_source(head.x): head for head in heads}
    gone = np.arange(kept, found.size)
    weights: Weights = {}
    report: list[Error] = []

    def keep(value: ir.Value, array: NDArray[np.float32]) -> None:
        np.save(file := folder / f"{value.name}.npy", array)
        weights[str(value.name)] = np.load(file, mmap_mode="r")

    groups = by_value(each for each in found.readers if each.weight not in tables)
    with seen.clock("prune compensate", len(groups)) as advance:
        for linears in groups.values():
            moment = np.asarray(basis.T @ seen[linears[0]] @ basis, np.float32)
            for linear in linears:
                weight = weight_of(linear)
                new = reconstructed(weight, moment, gone, ridge=RIDGE)
                report.append({"path": linear.path, "kept": kept, **errors_of(weight, new, moment, gone)})
                if linear.y in before_head:
                    turn = np.zeros((found.size, found.size), np.float32)
                    turn[:kept] = projection(weight_of(before_head[linear.y]), kept)
                    new = turn @ new
                    if linear.bias is not None:
                        keep(linear.bias, turn @ tensor_of(linear.bias).numpy())
                keep(linear.weight, as_stored(new, linear))
            advance(1)
    return weights, report


def _source(value: ir.Value) -> ir.Value:
    """What a value is, but for its shape."""
    while (node := producer(value, "Reshape")) is not None and node.inputs[0] is not None:
        value = node.inputs[0]
    return value
