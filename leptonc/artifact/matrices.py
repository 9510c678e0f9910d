"""The report's tables of linear layers and embeddings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from leptonc.formats import FORMATS
from leptonc.ir.dialect import module_of
from leptonc.ir.structure import linears, lookups
from leptonc.report.quantization import Quantization
from leptonc.report.variant import Matrix

if TYPE_CHECKING:
    import onnx_ir as ir

    from leptonc.evaluate.noise import Rounded
    from leptonc.passes.base import Pass

Shape = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Shapes of a captured graph's matrices, without repetition.

    Attributes:
        linears: Shape (out, in) of each linear layer by its path, without heads that are tied to an embedding.
        embeddings: By path, the shape (rows, columns) of each embedding's table and the path of a head tied to it, or
            None.
    """

    linears: Mapping[str, Shape]
    embeddings: Mapping[str, tuple[Shape, str | None]]


def shapes_of(*graphs: ir.Model) -> Shapes:
    """Reads the shapes off captured graphs, before passes change them."""
    tables = {table: node for graph in graphs for table, node in lookups(graph).items()}
    layers = [layer for graph in graphs for layer in linears(graph)]
    heads = {layer.weight: layer.path for layer in layers if layer.weight in tables}
    return Shapes(
        {layer.path: layer.shape for layer in layers if layer.weight not in tables},
        {
            module_of(node): ((int(rows), int(columns)), heads.get(table))  # type: ignore[arg-type]
            for table, node in tables.items() if table is not None and table.shape is not None
            for rows, columns in [table.shape]
        },
    )  # fmt: skip


def rounded_of(passes: Sequence[Pass]) -> dict[str, Rounded]:
    """Returns the linear layers that passes quantized, by path, with their formats and codes."""
    from leptonc.evaluate.noise import Rounded
    from leptonc.passes.quantize.weights import QuantizeWeights

    quantizing = [step for step in passes if isinstance(step, QuantizeWeights)]
    return {
        path: Rounded(*weights, off=step.off.get(path)) for step in quantizing for path, weights in step.made.items()
    }  # fmt: skip


def linear_rows(
    shapes: Mapping[str, Shape], rounded: Mapping[str, Rounded], noise: Mapping[str, float],
    quantization: Quantization, *, unquantized: str,
) -> list[Matrix]:  # fmt: skip
    """Returns a row for each linear layer: its path, shape, format, bytes, and the cost of rounding it.

    Args:
        shapes: See `shapes_of`.
        rounded: Layers whose weights were quantized.
        noise: Measured signal-to-noise ratios of their outputs, in decibels.
        quantization: Calibration's report: errors on its text replace ratios that were not measured.
        unquantized: Format of the other layers: fp32, fp16 or fp8.

    Returns:
        Rows; those of quantized layers have `snr_db` and `sensitivity` where these are known.
    """
    inputs = quantization.activations.inputs if quantization.activations is not None else []
    static = {path: value for value in inputs if value.bits == 8 for path in value.layers}
    solved = {layer.path: layer.error for layer in quantization.linears or ()}
    sensitivity = {layer.path: layer.error for layer in quantization.sensitivity or ()}
    sensitivity |= {path: value.divergence for path, value in static.items()}
    rows = []
    for path, shape in shapes.items():
        own = rounded.get(path)
        if own is None:
            size = shape[0] * shape[1] * FORMATS[unquantized].width
            rows.append(Matrix(path=path, shape=shape, weights=unquantized, bytes=size))
            continue
        row = Matrix(
            path=path, shape=shape, weights=f"int{own.form.bits}", block_size=own.form.size,
            symmetric=own.form.symmetric, bytes=own.form.stored_bytes(shape), sensitivity=sensitivity.get(path),
        )  # fmt: skip
        # With 8-bit inputs the error is that of inputs and weights; `noise` and the solver have the weights' alone.
        error = max(static[path].error if path in static else 0.0, solved.get(path, 0.0))
        if path in noise and path not in static:
            row.snr_db = noise[path]
        elif error > 0 or own.off:
            row.snr_db = round(-10 * math.log10(error or own.off), 2)  # type: ignore[arg-type]
        rows.append(row)
    return rows


def embedding_rows(
    shapes: Shapes, rounded: Mapping[str, Rounded], noise: Mapping[str, float], quantization: Quantization, *,
    unquantized: str,
) -> list[Matrix]:  # fmt: skip
    """Returns a row for each embedding, see `linear_rows`; a tied head adds `head` and its noise."""
    unquantized = "fp16" if unquantized == "fp8" else unquantized  # a table is no matrix of a product
    rows = []
    for path, (shape, head) in shapes.embeddings.items():
        # `QuantizeWeights` records a tied table under its head's path, and others under none.
        own = rounded.get(head or "")
        known = {path: own} if own is not None and own.shape == shape else {}
        decibels = {path: noise[head]} if head is not None and head in noise else {}
        (row,) = linear_rows({path: shape}, known, decibels, quantization, unquantized=unquantized)
        row.head = head
        rows.append(row)
    return rows


def worst(rows: Sequence[Matrix]) -> list[Matrix]:
    """Returns the layers with the fewest bits, those that lose most first: by sensitivity, or by noise."""
    known = [row for row in rows if row.snr_db is not None or row.sensitivity is not None]
    fewest = min((row.weights for row in known), key=lambda name: FORMATS[name].bits, default="")
    lowest = [row for row in known if row.weights == fewest]
    if measured := [row for row in lowest if row.sensitivity is not None]:
        return sorted(measured, key=lambda row: -(row.sensitivity or 0.0))
    return sorted(lowest, key=lambda row: row.snr_db or 0.0)
