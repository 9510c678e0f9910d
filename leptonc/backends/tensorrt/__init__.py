"""TensorRT and TensorRT-RTX: lowering to a strongly typed ONNX graph, checked on the CPU, then engines built from it.

The engine builder itself is the runtime's (`runtime_edge.tensorrt`): on a Jetson it runs on the device.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from leptonc.backends import Job, check_method
from leptonc.backends.tensorrt import preflight as memory
from leptonc.backends.tensorrt import recipe as recipes
from leptonc.backends.tensorrt.decoder import (
    CachedAttentionToScatter,
    FixedShapes,
    FixedShapesConfig,
    LogitsAt,
    with_capacity,
)
from leptonc.backends.tensorrt.engine import build_engine
from leptonc.backends.tensorrt.execute import decoder_inputs, encoder_rows, logits_blocks, open_session
from leptonc.backends.tensorrt.operators import require_operators
from leptonc.backends.tensorrt.precision import HalfPrecision, HalfPrecisionConfig
from leptonc.backends.tensorrt.primitives import decompositions
from leptonc.backends.tensorrt.ranges import Batch, MeasureRanges
from leptonc.errors import InputError
from leptonc.memory import give_back
from leptonc.passes.base import Pass
from leptonc.passes.cleanup import Cleanup
from leptonc.passes.quantize.choose import ChooseCodes
from leptonc.passes.quantize.weights import QuantizeWeights, QuantizeWeightsConfig
from runtime_edge.manifest import Engine, Manifest, Variant
from runtime_edge.tensorrt.flavours import first_version, flavour, parses

if TYPE_CHECKING:
    from leptonc.artifact.writer import ArtifactWriter

_EVERY = 16
_CHECK_BYTES = 128 * 2**20  # of logits that a run of the check gives: the CPU is not bound to the engine's profiles


def check_request(job: Job) -> None:
    """See `Backend.check_request`."""
    lacking = [each for each in ("int8", "int4") if each not in job.target.precisions]
    if job.budget is not None and lacking:
        raise InputError(
            f"expected a target that has weights of 8 and of 4 bits for a budget of bytes, found {job.target.spec} "
            f"without {' and '.join(lacking)}",
            hint=f"--weights {job.target.weights} is the target's default",
        )
    recipes.check_format(job)
    if job.embeddings:
        raise InputError(
            f"expected no format for embeddings for target {job.target.name}, found {job.embeddings}",
            hint="--embeddings is for ONNX Runtime's targets, cpu among them",
        )
    if job.method != "rtn" and job.scheme not in ("int8", "int4"):
        raise InputError(
            f"expected weights int8 or int4 with method {job.method} for target {job.target.name}, found {job.scheme}",
            hint="--weights int4",
        )
    check_method(job)
    if job.rules and memory.BITS[job.scheme] > 8:
        raise InputError(
            f"expected weights of 8 or 4 bits with layers of a recipe, found {job.scheme}",
            hint=f"--weights {' or '.join(each for each in job.target.precisions if memory.BITS.get(each, 16) <= 8)}",
        )
    if job.activations == "int8" and job.scheme != "int8":
        raise InputError(
            f"expected weights int8 with activations int8 for target {job.target.name}, found {job.scheme}",
            hint="--weights int8 --activations int8",
        )
    if job.prefill is not None:
        raise InputError(
            f"expected no graph for prefill for target {job.target.name}, found {job.prefill}",
            hint="an engine has a profile for prefill; --prefill is for ONNX Runtime's targets",
        )
    if job.kv_cache is not None:
        raise InputError(
            f"expected a cache in the engine's own format for target {job.target.name}, found {job.kv_cache}",
            hint="--kv-cache is for ONNX Runtime's targets",
        )
    recipes.checked(job)
    if memory.BITS[job.scheme] <= 8:
        config_of(job)


def preflight(job: Job) -> None:
    """See `Backend.preflight`: the recipe's layers; weights, cache and workspace fit the target's memory."""
    job.layers = recipes.layers(job)
    decoder = job.captured.task.cached
    chunk = min(recipes.CHUNK, job.captured.max_seq_len) if decoder else recipes.BATCH * job.captured.max_seq_len
    found = memory.need(
        job, block_size=recipes.block_size(job), chunk=chunk, logits=recipes.logits_rows(job) if decoder else 0,
        cache_copies=1 if _in_place(job) else 2,
    )  # fmt: skip
    job.report["preflight"] = memory.check(found, job.target)


def _parses(job: Job, op_type: str) -> bool:
    """Whether every version of TensorRT that the target can have parses an operator."""
    return parses(flavour(job.target.backend), op_type, first_version(recipes.versions(job)))


def _in_place(job: Job) -> bool:
    """Whether the cache is updated where it is: only TensorScatter promises that."""
    return _parses(job, "TensorScatter")


def config_of(job: Job) -> QuantizeWeightsConfig:
    """See `Backend.config_of`."""
    return QuantizeWeightsConfig(
        bits=memory.BITS[job.scheme], block_size=recipes.block_size(job), signed=True, floating=job.scheme == "fp8",
        embeddings=False, method=job.method, layers=job.layers, half_scales=job.scheme != "fp8",
        channels=job.static.layers if job.static is not None else (),
    )  # fmt: skip


def _quantize(job: Job, chosen: ChooseCodes | None) -> list[Pass]:
    if memory.BITS[job.scheme] > 8:
        return []
    found = QuantizeWeights(
        config_of(job), None if chosen is None else lambda model, form: chosen.codes,
        job.static.importance if job.static is not None else None,
    )  # fmt: skip
    job.report["kept_in_half_precision"] = found.kept
    return [found]


def passes(job: Job, scratch: Path) -> list[Pass]:
    """See `Backend.passes`."""
    # Before ranges are measured: what is rounded is an activation too.
    found: list[Pass] = job.static.passes() if job.static is not None else []
    found += [job.scaling] if job.scaling is not None else []
    chosen = ChooseCodes(config_of(job), job.solve) if job.solve is not None else None
    found += [chosen] if chosen is not None else []
    if job.captured.task.cached:
        capacity = FixedShapesConfig(capacity=job.captured.max_seq_len)
        found += [LogitsAt(), FixedShapes(capacity), CachedAttentionToScatter()]
    found.append(InlineFunctions())
    if job.scheme != "fp32":
        ranges = MeasureRanges(partial(_as_run, job), partial(_batches, job), scratch)
        half = HalfPrecision(HalfPrecisionConfig(), lambda _: ranges.found)
        job.report["float32_for_their_range"] = half.wide
        found += [ranges, *_quantize(job, chosen), half]
    return [*found, *decompositions(partial(_parses, job)), Cleanup(), *recipes.sparsity(job)]


class InlineFunctions(Pass):
    """Inlines what is left of our domain's functions: the graph has standard operators only from here on."""

    name = "tensorrt-inline"

    def run(self, model: ir.Model) -> int:
        from onnx_ir.passes import common

        count = len(model.functions)
        common.InlinePass()(model)
        model.functions.clear()
        return count


def _as_run(job: Job, model: ir.Model) -> ir.Model:
    """The graph as the CPU runs the sample's text through it: with a cache for that text alone."""
    cached = job.captured.task.cached
    return with_capacity(model, len(job.sample.token_ids)) if cached else model


def _batches(job: Job, model: ir.Model) -> list[Batch]:
    """Returns the sample's text as inputs of the float32 graph."""
    sample = job.sample
    if not job.captured.task.cached:
        return list(sample.encoder_batches())
    ids = sample.token_ids[: recipes.CHUNK]
    kept = range(len(ids) - 1, -1, -_EVERY)  # logits are large, and alike: some of them do
    batch: dict[str, np.ndarray[Any, Any]] = dict(decoder_inputs(ids, 0, kept))
    for value in model.graph.inputs:
        if str(value.name).startswith("past_key_values."):
            batch[str(value.name)] = np.zeros([int(d) for d in value.shape or ()], np.float32)  # type: ignore[arg-type]
    return [batch]


def finish(model: ir.Model) -> None:
    """See `Backend.finish`: standard operators only, of the dialect's operator set or the one lowered to."""


def variant(job: Job, blobs: tuple[str, ...]) -> Variant:
    """See `Backend.variant`."""
    left_out = recipes.capabilities(job)[1]
    if left_out:
        job.report["left_out"] = f"compute capabilities {', '.join(left_out)}: they cannot run {job.scheme} weights"
    engine = Engine(
        recipe=recipes.recipe(job), cache_dtype="float32" if job.scheme == "fp32" else "float16",
        cache_in_place=_in_place(job),
    )  # fmt: skip
    return Variant(
        name=job.name, target=job.target.spec, backend=job.target.backend, graph=job.graph, weights=job.label,
        activations=job.activations, blobs=blobs, engine=engine,
    )  # fmt: skip


def measure(job: Job, writer: ArtifactWriter, manifest: Manifest) -> dict[str, Any]:
    """See `Backend.measure`: ONNX Runtime runs the lowered graph, in float arithmetic, before an engine is built."""
    sample, path = job.sample, writer.path / job.graph
    if job.captured.task.cached:
        rows = max(1, min(recipes.CHUNK, _CHECK_BYTES // (4 * int(job.captured.config.vocab_size))))
        short = writer.path / f"{job.name}.check.onnx"  # beside the blobs that it refers to
        ir.save(_as_run(job, ir.load(path)), short)
        try:
            found = sample.compare_decoder(logits_blocks(short, sample.token_ids, rows))
        finally:
            short.unlink()
    else:
        reference = sample.reference_rows()
        got = encoder_rows(open_session(path), sample.encoder_batches())
        found = sample.compare_encoder(reference, got, logits=True)
    return {**found, "executed": "the lowered graph, by ONNX Runtime on the CPU"}


def compile(job: Job, writer: ArtifactWriter, model: ir.Model, variant: Variant) -> Variant:
    """See `Backend.compile`: a plan where it can be built, else a rehearsal of it."""
    give_back()  # what the check took: TensorRT has much to keep
    require_operators(model, job.target.backend, first_version(recipes.versions(job)))
    return build_engine(job, writer, model, variant)
