"""The report's table of linear layers, and what to do where a bound is not met."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from leptonc.ir.structure import linears, lookups
from leptonc.passes.quantize.blocks import Format
from runtime_edge.toml import toml

if TYPE_CHECKING:
    import onnx_ir as ir

    from leptonc.evaluate.noise import Rounded
    from leptonc.passes.base import Pass

WIDTH = {"fp32": 4, "fp16": 2, "fp8": 1}  # bytes of a weight that has no integer codes
_HIGHER = {"int2": "int4", "int4": "int8"}  # the next format; of others, what is not quantized
NAMED = 8  # layers that a message names

Row = dict[str, Any]


def shapes_of(model: ir.Model) -> dict[str, tuple[int, int]]:
    """Returns (out, in) of each linear layer of a captured graph by its path; an embedding's table is left out."""
    tables = lookups(model)
    return {each.path: each.shape for each in linears(model) if each.weight not in tables}


def rounded_of(passes: Sequence[Pass]) -> dict[str, Rounded]:
    """Returns what passes that ran have quantized of the source's own weights."""
    from leptonc.evaluate.noise import Rounded
    from leptonc.passes.quantize.weights import QuantizeWeights

    made = [each.made for each in passes if isinstance(each, QuantizeWeights)]
    return {path: Rounded(*what) for some in made for path, what in some.items()}


def linear_rows(
    shapes: Mapping[str, tuple[int, int]], rounded: Mapping[str, Rounded], noise: Mapping[str, float],
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
        sensitivity.
    """
    inputs = quantization.get("activations", {}).get("inputs", ())
    solved = {path: each["error"] for each in inputs if each["bits"] == 8 for path in each["layers"]}
    solved |= {each["path"]: each["error"] for each in quantization.get("linears", ())}
    hurt = {each["path"]: each["error"] for each in quantization.get("sensitivity", ()) if "error" in each}
    rows = []
    for path, shape in shapes.items():
        own = rounded.get(path)
        row: Row = {"path": path, "shape": list(shape)}
        if own is None:
            rows.append({**row, "weights": kept, "bytes": shape[0] * shape[1] * WIDTH[kept]})
            continue
        row |= {
            "weights": f"int{own.form.bits}", "block_size": own.form.size, "symmetric": own.form.symmetric,
            "bytes": own.form.stored_bytes(shape),
        }  # fmt: skip
        if path in noise:
            row["snr_db"] = noise[path]
        elif solved.get(path):
            row["snr_db"] = round(-10 * math.log10(solved[path]), 2)
        if path in hurt:
            row["sensitivity"] = hurt[path]
        rows.append(row)
    return rows


def worst(rows: Sequence[Row]) -> list[Row]:
    """Returns the layers that lose most of those with the fewest bits, worst first: by sensitivity, or by noise."""
    known = [row for row in rows if "snr_db" in row or "sensitivity" in row]
    fewest = min((row["weights"] for row in known), key=lambda name: int(name[3:]), default="")
    found = [row for row in known if row["weights"] == fewest]
    key = "sensitivity" if all("sensitivity" in row for row in found) else "snr_db"
    if key == "sensitivity":
        return sorted(found, key=lambda row: -row[key])
    return sorted((row for row in found if key in row), key=lambda row: row[key])


def advice(table: Sequence[Row], kept: str, budget: int | None) -> str | None:
    """Says which layers lose most, what it costs to raise them, and the recipe that does; None where nothing is known.

    Args:
        table: See `linear_rows`.
        kept: What the format of weights that are not quantized is called.
        budget: Bytes of graph and weights that were asked for, or None.
    """
    found = worst(table)[:NAMED]
    if not found:
        return None
    higher = _HIGHER.get(found[0]["weights"], kept)
    rule: dict[str, Any] = {"match": [row["path"] for row in found], "weights": higher}
    cost = -sum(row["bytes"] for row in found)
    blocks = higher in _HIGHER.values() and kept == "fp32"  # TensorRT's int8 has a scale a channel
    if blocks:
        rule["block_size"] = 64 if all(row["shape"][1] % 64 == 0 for row in found) else 32
    for rows, columns in (row["shape"] for row in found):
        if higher in WIDTH:
            cost += rows * columns * WIDTH[higher]
        else:
            form = Format(int(higher[3:]), rule.get("block_size", columns), True, half=blocks)
            cost += form.stored_bytes((rows, columns))
    listed = ", ".join(_worth(row) for row in found)
    if budget is not None:
        what = f"--weights auto:{math.ceil((budget + cost) / 1e5) / 10:g}MB has room for them, or a recipe"
    else:
        what = "a recipe raises these" if higher == kept else f"--weights {higher} raises all; a recipe these"
    return (
        f"these layers lose most: {listed}. In {higher} they take {cost:,} bytes more.\n{what}:\n"
        f"{toml({'layers': [rule]}).strip()}"
    )


def _worth(row: Row) -> str:
    return f"{row['path']} ({row['snr_db']:g} dB)" if "snr_db" in row else str(row["path"])
