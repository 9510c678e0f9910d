"""A variant's rows in the report, and the advice where a bound on quality is not met."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from leptonc.artifact.matrices import Shapes, embedding_rows, linear_rows, worst
from leptonc.backends import backend_of
from leptonc.backends.traits import traits_of
from leptonc.formats import FORMATS
from leptonc.passes.quantize.blocks import Format
from leptonc.report.quantization import Quantization
from leptonc.report.variant import Matrix
from leptonc.variant import VariantBuild
from runtime_edge.toml_writer import toml

if TYPE_CHECKING:
    from leptonc.evaluate.noise import Rounded

NAMED = 8  # layers that a message names
INPUTS = 3  # inputs of layers in the graph for prompts that it names


def add_rows(variant: VariantBuild, shapes: Shapes, rounded: Mapping[str, Rounded]) -> None:
    """Gives the report of a variant, measured if it is to be, `linears` and `embeddings`: see `linear_rows`."""
    noise = variant.noise
    report, unquantized = variant.report, unquantized_format(variant)
    about = report.quantization or Quantization()
    report.linears = linear_rows(shapes.linears, rounded, noise, about, unquantized=unquantized)
    report.embeddings = embedding_rows(shapes, rounded, noise, about, unquantized=unquantized)


def unquantized_format(variant: VariantBuild) -> str:
    """Returns what the format of weights that are not quantized is called: fp32, fp16 or fp8."""
    return traits_of(variant.plan.target).unquantized(variant.plan.scheme)


def advice(variant: VariantBuild) -> str | None:
    """Says which layers lose most, what it costs to raise them, and the recipe that does; and the same of embeddings.

    Args:
        variant: It has its rows: see `add_rows`.

    Returns:
        The hint; None where nothing is known.
    """
    tables = [_raised(variant, row) for row in variant.report.embeddings or () if FORMATS[row.weights].higher]
    layers, unquantized = worst(variant.report.linears or ())[:NAMED], unquantized_format(variant)
    if not layers:
        return "\n".join(tables) or None
    raised = FORMATS[layers[0].weights].higher
    higher = raised or unquantized
    rule: dict[str, Any] = {"match": [row.path for row in layers], "weights": higher}
    cost = -sum(row.bytes for row in layers)
    blocks = raised is not None and unquantized == "fp32"  # TensorRT's int8 has a scale a channel
    if blocks:
        rule["block_size"] = 64 if all(row.shape[1] % 64 == 0 for row in layers) else 32
        if not all(row.symmetric for row in layers):
            rule["symmetric"] = True
    for rows, columns in (row.shape for row in layers):
        if raised is None:
            cost += rows * columns * FORMATS[higher].width
        else:
            form = Format(FORMATS[higher].bits, rule.get("block_size", columns), True, half=blocks)
            cost += form.stored_bytes((rows, columns))
    listed = ", ".join(_worth(row) for row in layers)
    if variant.plan.budget is not None:
        room = math.ceil((variant.plan.budget + cost) / 1e5) / 10
        what = f"--weights auto:{room:g}MB has room for them, or a recipe"
    else:
        what = "a recipe raises these" if higher == unquantized else f"--weights {higher} raises all; a recipe these"
    lines = [f"these layers lose most: {listed}. In {higher} they take {cost:,} bytes more.", *tables, f"{what}:"]
    return "\n".join([*lines, toml({"layers": [rule]}).strip()])


def prompts_advice(variant: VariantBuild) -> str:
    """Says what loses most in a graph for prompts, as far as calibration tells, and what helps, with its bytes.

    Args:
        variant: It has its rows, and its report the graph's bytes and activations.
    """
    about = variant.report.prompts()
    inputs = about.activations.inputs if about.activations is not None else []
    integers = [value for value in inputs if value.bits == 8]
    worst_inputs = sorted(integers, key=lambda value: -value.divergence)[:INPUTS]
    listed = ", ".join(f"{' and '.join(value.layers)} ({value.divergence:.2g} nats)" for value in worst_inputs)
    lines = [f"in the graph for prompts, what these read loses most in 8 bits: {listed}."] if worst_inputs else []
    if about.weights != "int8":
        own = {path for value in inputs if value.bits < 32 for path in value.layers}
        more = sum(math.prod(row.shape) for row in variant.report.linears or () if row.path in own)
        lines.append(f"--prefill int8, with weights of its own, loses less and takes about {more:,} bytes more;")
    fewer = about.bytes or 0
    lines.append(f"without --prefill, prompts go through the other graph, and there are {fewer:,} bytes less")
    return "\n".join(lines)


def _raised(variant: VariantBuild, row: Matrix) -> str:
    """What an embedding of few bits takes in 8, which backends that quantize embeddings have."""
    plan = variant.plan
    config = dataclasses.replace(backend_of(plan.target).config_of(plan, variant.choices), embedding_bits=8)
    more = config.form(row.shape[1], table=True).stored_bytes(row.shape) - row.bytes
    whose = f"{row.path} and {row.head}, tied to it, have" if row.head is not None else f"{row.path} has"
    lost = f" ({row.snr_db:g} dB)" if row.snr_db is not None else ""
    return f"{whose} {row.weights}{lost}: --embeddings int8 takes {more:,} bytes more."


def _worth(row: Matrix) -> str:
    return f"{row.path} ({row.snr_db:g} dB)" if row.snr_db is not None else row.path
