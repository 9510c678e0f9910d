"""Writes a decoder's second graph, for prompts: 8-bit weights and activations, over the same cache.

Arithmetic limits runs of many tokens, and 8-bit integers have most of it. Reading weights limits runs of one token, and
4 bits have the fewest bytes. So prompts get 8-bit weights: stored beside those that decode, or made from them by the
runtime when it opens the artifact.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.artifact.writer import ArtifactWriter
from leptonc.backends.onnxruntime import lowering
from leptonc.backends.onnxruntime.integer import derived_of
from leptonc.backends.traits import TRAITS
from leptonc.ir.ports import added
from leptonc.passes.base import Manager
from leptonc.passes.quantize.blocks import Quantized
from leptonc.variant import VariantBuild
from runtime_edge.derived import Derived, Part, Weight
from runtime_edge.manifest import PROMPTS, Graph, PassRecord, Variant


def prompt_graph(
    variant: VariantBuild, model: ir.Model, record: Variant, writer: ArtifactWriter
) -> tuple[Variant, list[PassRecord]]:
    """See `Backend.prompt_graph`."""
    clock, plan, decode, prefix = variant.clock, variant.plan, variant.graph, variant.prefix
    manager = Manager(variant.manager.dump, variant.manager.start, "prefill-")
    with clock.stage(f"{prefix}prefill passes"):
        manager.run(model, lowering.prompt_passes(variant, model))
    lowering.finish(model)
    with clock.stage(f"{prefix}prefill weights"):
        blobs = writer.add_graph(plan.prefill_graph, model, beside=True)
    derived, more = None, set[str]()
    if derived_weights := dict(sorted(derived_of(model).items())):
        beside = {name: _beside(weight, model) for name, weight in derived_weights.items()}
        places = iter(writer.add_arrays([array for arrays in beside.values() for array in arrays.values()]))
        parts = {name: {part: _part(*next(places)) for part in arrays} for name, arrays in beside.items()}
        weights = tuple(_derived(name, weight, decode, model, parts[name]) for name, weight in derived_weights.items())
        writer.add(plan.derived, msgspec.json.encode(Derived(weights=weights)))
        more = {part.blob for weight_parts in parts.values() for part in weight_parts.values()}
        derived = plan.derived
    graph = Graph(
        part=variant.part, file=plan.prefill_graph, purpose=PROMPTS, activations="int8", added=added(model.graph),
        blobs=tuple(sorted({*blobs, *more})), derived=derived,
    )  # fmt: skip
    return msgspec.structs.replace(record, graphs=(*record.graphs, graph)), manager.records


def described_bytes(model: ir.Model) -> int:
    """See `Backend.described_bytes`: the size of `Derived` and of the arrays that it refers to."""
    weights = derived_of(model).values()
    rows = sum(4 * weight.shape[0] for weight in weights if weight.rows is not None)
    columns = {weight.columns.tobytes() for weight in weights if weight.columns is not None}
    return TRAITS["onnxruntime"].described * len(weights) + rows + sum(len(data) // 2 for data in columns)


def _beside(weight: Quantized, model: ir.Model) -> dict[str, NDArray[Any]]:
    """Returns the parts of a weight that no graph has, by name: this graph's own smoothing needs them."""
    arrays: dict[str, NDArray[Any]] = {}
    if weight.columns is not None:
        arrays["inputs"] = weight.columns.astype(np.float16)
    if weight.rows is not None:  # the graph's steps contain these factors
        steps: Any = model.graph.initializers[f"{weight.key}.int8.steps"].const_value
        arrays["steps"] = (steps.numpy() / weight.rows).astype(np.float32)
    return arrays


def _part(blob: str, offset: int) -> Part:
    return Part(blob=blob, offset=offset)


def _derived(name: str, weight: Quantized, decode: ir.Model, model: ir.Model, beside: dict[str, Part]) -> Weight:
    """Returns the record of a weight that the runtime makes: where its parts are stored.

    `beside` has the weight's own parts, `model` the other steps, `decode` the rest.
    """

    def part(graph: ir.Graph, suffix: str) -> Part | None:
        value = graph.initializers.get(f"{weight.key}.{suffix}")
        if value is None:
            return None
        tensor: Any = value.const_value
        return _part(str(tensor.location), int(tensor.offset))

    parts: dict[str, Any] = {kind: part(decode.graph, f"nbits.{kind}") for kind in ("codes", "scales", "zeros")}
    parts |= {"steps": part(model.graph, "int8.steps"), **beside}
    if parts["codes"] is None:
        raise ValueError(f"the graph that decodes has no {weight.key}")
    return Weight(
        name=name, rows=weight.shape[0], columns=weight.shape[1], bits=weight.form.bits, block_size=weight.form.size,
        **parts,
    )  # fmt: skip
