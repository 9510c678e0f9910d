"""Fits what reads the residual stream to the features of it that stay."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

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
from leptonc.report.pruning import FittedLayer

RIDGE = 1e-3  # part of the mean second moment: how strongly a fit keeps to the old weights


def by_value(linears: Iterable[Linear]) -> dict[ir.Value, list[Linear]]:
    """Returns linear layers by the value that they read."""
    readers: dict[ir.Value, list[Linear]] = {}
    for linear in linears:
        readers.setdefault(linear.x, []).append(linear)
    return readers


def fitted_width(
    model: ir.Model, residual: Residual, moments: InputMoments, basis: NDArray[np.float32], stay: int, folder: Path
) -> tuple[Weights, list[FittedLayer]]:  # fmt: skip
    """Fits every layer that reads the residual stream to the features of the stream that stay.

    A head that is tied to the embedding stays as it is. The layer before it makes up for the columns that the embedding
    loses; see `projection`.

    Args:
        model: The graph in the new basis, of which nothing is cut.
        residual: The graph's residual stream.
        moments: Moments of layers' inputs before the basis changed. Of layers that read one value the first counts.
        basis: The basis, [width, width].
        stay: Number of features that stay.
        folder: Holds the weights until they are written.

    Returns:
        Weights by initializer, in the shape from before the cut. And for each fitted layer its path, the number of
        inputs that it keeps, and the error of its outputs before and after, as parts of their energy.
    """
    tables = lookups(model)
    heads = [reader for reader in residual.readers if reader.weight in tables]
    before_head = {_source(head.x): head for head in heads}
    gone = np.arange(stay, residual.size)
    weights: Weights = {}
    report: list[FittedLayer] = []

    def keep(value: ir.Value, array: NDArray[np.float32]) -> None:
        np.save(file := folder / f"{value.name}.npy", array)
        weights[str(value.name)] = np.load(file, mmap_mode="r")

    groups = by_value(reader for reader in residual.readers if reader.weight not in tables)
    with moments.clock("prune compensate", len(groups)) as advance:
        for linears in groups.values():
            moment = np.asarray(basis.T @ moments[linears[0]] @ basis, np.float32)
            for linear in linears:
                weight = weight_of(linear)
                new = reconstructed(weight, moment, gone, ridge=RIDGE)
                report.append(FittedLayer(path=linear.path, kept=stay, **errors_of(weight, new, moment, gone)))
                if linear.y in before_head:
                    turn = np.zeros((residual.size, residual.size), np.float32)
                    turn[:stay] = projection(weight_of(before_head[linear.y]), stay)
                    new = turn @ new
                    if linear.bias is not None:
                        keep(linear.bias, turn @ tensor_of(linear.bias).numpy())
                keep(linear.weight, as_stored(new, linear))
            advance(1)
    return weights, report


def _source(value: ir.Value) -> ir.Value:
    """Returns the value that a chain of Reshapes begins with."""
    while (node := producer(value, "Reshape")) is not None and node.inputs[0] is not None:
        value = node.inputs[0]
    return value
