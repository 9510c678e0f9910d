"""A second graph of a decoder, which prompts go through: 8-bit weights and activations, over the same cache.

Many tokens at once are limited by arithmetic, which 8-bit integers have most of; one token at a time is limited by the
bytes of the weights, which 4 bits have fewest of. Each gets its best form.
"""

from __future__ import annotations

import msgspec
import onnx_ir as ir

from leptonc.artifact.writer import ArtifactWriter
from leptonc.backends import Clock, Job
from leptonc.backends import onnxruntime as backend
from leptonc.passes.base import Manager
from runtime_edge.manifest import PassRecord, Variant


def add_prefill(
    job: Job, model: ir.Model, variant: Variant, writer: ArtifactWriter, clock: Clock, prefix: str
) -> tuple[Variant, list[PassRecord]]:  # fmt: skip
    """Lowers and writes the graph for prefill.

    Args:
        job: The variant's job, calibrated.
        model: The captured model, which is changed.
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
        blobs = writer.add_graph(job.prefill_graph, model)
    found = msgspec.structs.replace(variant, prefill=job.prefill_graph, blobs=tuple(sorted({*variant.blobs, *blobs})))
    return found, manager.records
