"""The report's tables of linear layers and embeddings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from leptonc.formats import FORMATS
from leptonc.ir.dialect import module_of
from leptonc.ir.structure import linears, lookups

if TYPE_CHECKING:
    import onnx_ir as ir

    from leptonc.evaluate.noise import Rounded
    from leptonc.passes.base import Pass


Row = dict[str, Any]
Shape = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The matrices of a captured graph, each once.

    Attributes:
        linears: (out, in) of each linear layer by its path, but for heads that are tied to an embedding.
        embeddings: (rows, columns) of each embedding's table by its path, and the path of a head tied to it, or None.
    """

    linears: Mapping[str, Shape]
    embeddings: Mapping[str, tuple[Shape, str | None]]


def shapes_of(model: ir.Model) -> Shapes:
    """Reads the shapes off a captured graph, before passes change it."""
    tables, found = lookups(model), linears(model)
    heads = {each.weight: each.path for each in found if each.weight in tables}
    return Shapes(
        {each.path: each.shape for each in found if each.weight not in tables},
        {
            module_of(node): ((int(rows), int(columns)), heads.get(table))  # type: ignore[arg-type]
            for table, node in tables.items() if table is not None and table.shape is not None
            for rows, columns in [table.shape]
        },
    )  # fmt: skip


def rounded_of(passes: Sequence[Pass]) -> dict[str, Rounded]:
    """Returns what passes that ran have quantized of the source's own weights."""
    from leptonc.evaluate.noise import Rounded
    from leptonc.passes.quantize.weights import QuantizeWeights

    made = [each for each in passes if isinstance(each, QuantizeWeights)]
    return {
        path: Rounded(*what, off=each.off.get(path)) for each in made for path, what in each.made.items()
    }  # fmt: skip


def linear_rows(
    shapes: Mapping[str, Shape], rounded: Mapping[str, Rounded], noise: Mapping[str, float],
    quantization: Mapping[str, Any], *, kept: str,
) -> list[Row]:  # fmt: skip
    """Returns a row for each linear layer: its path, shape, format, bytes, and what rounding it costs.

    Args:
        shapes: See `shapes_of`.
        rounded: Layers whose weights were quantized.
        noise: Decibels of their outputs, as far as they were measured.
        quantization: What calibration reported: errors on its text stand in for decibels that were not measured.
        kept: What the others' format is called: fp32, fp16 or fp8.

    Returns:
        Rows with path, shape, weights, bytes; of quantized ones block_size, symmetric, and, where known, snr_db and
        sensitivity: what the model's output loses by that layer alone in 4 bits (`auto`), or by its input in 8.
    """
    inputs = quantization.get("activations", {}).get("inputs", ())
    static = {path: each for each in inputs if each["bits"] == 8 for path in each["layers"]}
    solved = {each["path"]: each["error"] for each in quantization.get("linears", ())}
    hurt = {each["path"]: each["error"] for each in quantization.get("sensitivity", ()) if "error" in each}
    hurt |= {path: each["divergence"] for path, each in static.items()}
    rows = []
    for path, shape in shapes.items():
        own = rounded.get(path)
        row: Row = {"path": path, "shape": list(shape)}
        if own is None:
            rows.append({**row, "weights": kept, "bytes": shape[0] * shape[1] * FORMATS[kept].width})
            continue
        row |= {
            "weights": f"int{own.form.bits}", "block_size": own.form.size, "symmetric": own.form.symmetric,
            "bytes": own.form.stored_bytes(shape),
        }  # fmt: skip
        # Of inputs in 8 bits the error is that of both sides, where `noise` and the solver have the weights' alone.
        error = max(static[path]["error"] if path in static else 0.0, solved.get(path, 0.0))
        if path in noise and path not in static:
            row["snr_db"] = noise[path]
        elif error > 0 or own.off:
            row["snr_db"] = round(-10 * math.log10(error or own.off), 2)  # type: ignore[arg-type]
        if path in hurt:
            row["sensitivity"] = hurt[path]
        rows.append(row)
    return rows


def embedding_rows(
    shapes: Shapes, rounded: Mapping[str, Rounded], noise: Mapping[str, float], quantization: Mapping[str, Any], *,
    kept: str,
) -> list[Row]:  # fmt: skip
    """Returns a row for each embedding, as `linear_rows` does; with a head tied to it, `head` and its noise."""
    kept = "fp16" if kept == "fp8" else kept  # a table is no matrix of a product
    rows = []
    for path, (shape, head) in shapes.embeddings.items():
        # `QuantizeWeights` knows a tied one by its head, another by no path.
        own = rounded.get(head or "")
        known = {path: own} if own is not None and own.shape == shape else {}
        decibels = {path: noise[head]} if head is not None and head in noise else {}
        (row,) = linear_rows({path: shape}, known, decibels, quantization, kept=kept)
        rows.append(row if head is None else {**row, "head": head})
    return rows


def worst(rows: Sequence[Row]) -> list[Row]:
    """Returns the layers that lose most of those with the fewest bits, worst first: by sensitivity, or by noise."""
    known = [row for row in rows if "snr_db" in row or "sensitivity" in row]
    fewest = min((row["weights"] for row in known), key=lambda name: FORMATS[name].bits, default="")
    found = [row for row in known if row["weights"] == fewest]
    if measured := [row for row in found if "sensitivity" in row]:
        return sorted(measured, key=lambda row: -row["sensitivity"])
    return sorted(found, key=lambda row: row["snr_db"])
