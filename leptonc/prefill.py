"""A second graph of a decoder, which prompts go through: 8-bit weights and activations, over the same cache.

Many tokens at once are limited by arithmetic, which 8-bit integers have most of; one token at a time is limited by the
bytes of the weights, which 4 bits have fewest of. Each gets its best form: from weights that are stored twice, or from
those that decode, of which the runtime makes integers of 8 bits when it opens the artifact.
"""

from __future__ import annotations

from typing import Any

import msgspec
import onnx_ir as ir

from leptonc.artifact.writer import ArtifactWriter
from leptonc.backends import Clock, Job
from leptonc.backends import onnxruntime as backend
from leptonc.backends.onnxruntime.integer import derived_of
from leptonc.passes.base import Manager
from leptonc.passes.quantize.blocks import Quantized
from runtime_edge.derived import Derived, Part, Weight
from runtime_edge.manifest import PassRecord, Variant


def add_prefill(
    job: Job, model: ir.Model, decode: ir.Model, variant: Variant, writer: ArtifactWriter, clock: Clock, prefix: str
) -> tuple[Variant, list[PassRecord]]:  # fmt: skip
    """Lowers and writes the graph for prefill.

    Args:
        job: The variant's job, calibrated.
        model: The captured model, or with shared weights the quantized one; it is changed.
        decode: The graph that decodes, written.
        variant: The variant's record.
        writer: Of the artifact.
        clock: Times stages.
        prefix: What the names of stages begin with.

    Returns:
        The variant's record with the graph, and the passes that were run.
    """
    manager = Manager()
    with clock.stage(f"{prefix}prefill passes"):
        manager.run(model, backend.prefill_passes(job, model))
    backend.finish(model)
    with clock.stage(f"{prefix}prefill weights"):
        blobs = writer.add_graph(job.prefill_graph, model, beside=True)
    found = msgspec.structs.replace(variant, prefill=job.prefill_graph, blobs=tuple(sorted({*variant.blobs, *blobs})))
    if made := derived_of(model):
        weights = tuple(_derived(name, weight, decode, model) for name, weight in sorted(made.items()))
        writer.add(job.derived, msgspec.json.encode(Derived(weights=weights)))
        found = msgspec.structs.replace(found, derived=job.derived)
    return found, manager.records


def _derived(name: str, weight: Quantized, decode: ir.Model, model: ir.Model) -> Weight:
    """Says where the parts of a weight lie that the runtime makes; `model` has the steps, `decode` the rest."""

    def part(graph: ir.Graph, suffix: str) -> Part | None:
        value = graph.initializers.get(f"{weight.key}.{suffix}")
        if value is None:
            return None
        tensor: Any = value.const_value
        return Part(blob=str(tensor.location), offset=int(tensor.offset))

    parts: dict[str, Any] = {each: part(decode.graph, f"nbits.{each}") for each in ("codes", "scales", "zeros")}
    parts["steps"] = part(model.graph, "int8.steps")
    if parts["codes"] is None:
        raise ValueError(f"the graph that decodes has no {weight.key}")
    return Weight(
        name=name, rows=weight.shape[0], columns=weight.shape[1], bits=weight.form.bits, block_size=weight.form.size,
        **parts,
    )  # fmt: skip
