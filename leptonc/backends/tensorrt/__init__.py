"""TensorRT and TensorRT-RTX: lowering to a strongly typed ONNX graph, checked on the CPU, then engines built from it.

The engine builder itself is the runtime's (`runtime_edge.tensorrt`): on a Jetson it runs on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.backends import check_method
from leptonc.backends.tensorrt import device_memory as memory
from leptonc.backends.tensorrt import engine_spec
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
from leptonc.formats import FORMATS
from leptonc.ir.ports import added
from leptonc.memory import give_back
from leptonc.passes.base import Pass
from leptonc.passes.cleanup import Cleanup
from leptonc.passes.quantize.choose import ChooseCodes
from leptonc.passes.quantize.methods import ROUNDING
from leptonc.passes.quantize.weights import LayerFormat, QuantizeWeights, QuantizeWeightsConfig
from leptonc.variant import Choices, VariantBuild, VariantPlan
from runtime_edge.manifest import Engine, Graph, Manifest, Variant
from runtime_edge.tensorrt.flavours import first_version, flavour, parses

if TYPE_CHECKING:
    from leptonc.artifact.writer import ArtifactWriter
    from leptonc.evaluate.measure import Comparison, NextTokens, Rows, Values
    from leptonc.evaluate.noise import Rounded

_EVERY = 16
_CHECK_BYTES = 128 * 2**20  # of logits in a run of the check: the CPU is not bound to the engine's profiles


def check_request(plan: VariantPlan) -> None:
    """See `Backend.check_request`."""
    lacking = [scheme for scheme in ("int8", "int4") if scheme not in plan.target.precisions]
    if plan.budget is not None and lacking:
        raise InputError(
            f"expected a target that has weights of 8 and of 4 bits for a budget of bytes, found {plan.target.spec} "
            f"without {' and '.join(lacking)}",
            hint=f"--weights {plan.target.weights} is the target's default",
        )
    engine_spec.check_format(plan)
    if plan.embeddings:
        raise InputError(
            f"expected no format for embeddings for target {plan.target.name}, found {plan.embeddings}",
            hint="--embeddings is for ONNX Runtime's targets, cpu among them",
        )
    if plan.method != ROUNDING and plan.scheme not in ("int8", "int4"):
        raise InputError(
            f"expected weights int8 or int4 with method {plan.method} for target {plan.target.name}, "
            f"found {plan.scheme}",
            hint="--weights int4",
        )
    check_method(plan)
    if plan.rules and not FORMATS[plan.scheme].scaled:
        scaled = [scheme for scheme in plan.target.precisions if scheme in FORMATS and FORMATS[scheme].scaled]
        raise InputError(
            f"expected weights of 8 or 4 bits with layers of a recipe, found {plan.scheme}",
            hint=f"--weights {' or '.join(scaled)}",
        )
    if plan.activations == "int8" and plan.scheme != "int8":
        raise InputError(
            f"expected weights int8 with activations int8 for target {plan.target.name}, found {plan.scheme}",
            hint="--weights int8 --activations int8",
        )
    if plan.prefill is not None:
        raise InputError(
            f"expected no graph for prefill for target {plan.target.name}, found {plan.prefill}",
            hint="an engine has a profile for prefill; --prefill is for ONNX Runtime's targets",
        )
    if plan.kv_cache is not None:
        raise InputError(
            f"expected a cache in the engine's own format for target {plan.target.name}, found {plan.kv_cache}",
            hint="--kv-cache is for ONNX Runtime's targets",
        )
    engine_spec.checked(plan)
    if FORMATS[plan.scheme].scaled:
        config_of(plan)


def preflight(variant: VariantBuild) -> tuple[LayerFormat, ...]:
    """See `Backend.preflight`: the recipe's layers; weights, cache and workspace fit the target's memory."""
    layers = engine_spec.layers(variant)
    plan, decoder, longest = variant.plan, variant.captured.interface.writes_text, variant.captured.max_seq_len
    chunk = min(engine_spec.CHUNK, longest) if decoder else engine_spec.BATCH * longest
    found = memory.need(
        variant, block_size=engine_spec.block_size(plan), chunk=chunk,
        logits=engine_spec.logits_rows(variant) if decoder else 0, cache_copies=1 if _in_place(plan) else 2,
    )  # fmt: skip
    variant.report.preflight = memory.check(found, plan.target)
    return layers


def _parses(plan: VariantPlan, op_type: str) -> bool:
    """Whether every version of TensorRT that the target can have parses an operator."""
    return parses(flavour(plan.target.backend), op_type, first_version(engine_spec.versions(plan)))


def _in_place(plan: VariantPlan) -> bool:
    """Whether the cache is updated where it is: only TensorScatter promises that."""
    return _parses(plan, "TensorScatter")


def config_of(plan: VariantPlan, choices: Choices | None = None) -> QuantizeWeightsConfig:
    """See `Backend.config_of`."""
    choices = choices or Choices()
    return QuantizeWeightsConfig(
        bits=FORMATS[plan.scheme].bits, block_size=engine_spec.block_size(plan), signed=True,
        floating=plan.scheme == "fp8", embeddings=False, method=plan.method, layers=choices.layers,
        half_scales=plan.scheme != "fp8", channels=choices.inputs.layers if choices.inputs is not None else (),
    )  # fmt: skip


def _quantize(variant: VariantBuild, chosen: ChooseCodes | None) -> list[Pass]:
    if not FORMATS[variant.plan.scheme].scaled:
        return []
    quantize = QuantizeForEngine(
        config_of(variant.plan, variant.choices), None if chosen is None else lambda model, form: chosen.codes,
        variant.choices.inputs.importance if variant.choices.inputs is not None else None,
    )  # fmt: skip
    return [quantize]


class QuantizeForEngine(QuantizeWeights):
    """Quantizes weights, and reports those that stay in half precision, because blocks do not divide them."""

    def report(self) -> Mapping[str, Any]:
        return {"kept_in_half_precision": self.kept}


def passes(variant: VariantBuild, scratch: Path) -> list[Pass]:
    """See `Backend.passes`."""
    plan, choices = variant.plan, variant.choices
    # Inputs are rounded before ranges are measured: rounded values are activations too.
    steps: list[Pass] = choices.inputs.passes() if choices.inputs is not None else []
    steps += [choices.scaling] if choices.scaling is not None else []
    chosen = ChooseCodes(config_of(plan, choices), choices.solve) if choices.solve is not None else None
    steps += [chosen] if chosen is not None else []
    if variant.captured.interface.writes_text:
        capacity = FixedShapesConfig(capacity=variant.captured.max_seq_len)
        steps += [LogitsAt(), FixedShapes(capacity), CachedAttentionToScatter()]
    steps.append(InlineFunctions())
    if plan.scheme != "fp32":
        ranges = MeasureRanges(partial(_as_run, variant), partial(_batches, variant), scratch)
        half = HalfPrecision(HalfPrecisionConfig(), lambda _: ranges.magnitudes)
        steps += [ranges, *_quantize(variant, chosen), half]
    return [*steps, *decompositions(partial(_parses, plan)), Cleanup(), *engine_spec.sparsity(variant)]


class InlineFunctions(Pass):
    """Inlines the calls of our domain's functions that are left: the graph has standard operators only after it."""

    name = "tensorrt-inline"

    def run(self, model: ir.Model) -> int:
        from onnx_ir.passes import common

        count = len(model.functions)
        common.InlinePass()(model)
        model.functions.clear()
        return count


def _as_run(variant: VariantBuild, model: ir.Model) -> ir.Model:
    """Returns the graph for a run of the sample's text on the CPU: with a cache for that text alone."""
    cached = variant.captured.interface.writes_text
    return with_capacity(model, len(cast("NextTokens", variant.sample).token_ids)) if cached else model


def _batches(variant: VariantBuild, model: ir.Model) -> list[Batch]:
    """Returns the sample's text as inputs of the float32 graph."""
    sample: Any = variant.sample
    if not variant.captured.interface.writes_text:
        return list(sample.batches())
    ids = sample.token_ids[: engine_spec.CHUNK]
    positions = range(len(ids) - 1, -1, -_EVERY)  # logits are large and alike, so that some suffice
    (part,) = variant.captured.parts.values()
    past = {buffer.input for buffer in part.buffers}
    batch: dict[str, np.ndarray[Any, Any]] = dict(decoder_inputs(part, ids, 0, positions))
    for value in model.graph.inputs:
        if value.name in past:
            batch[str(value.name)] = np.zeros([int(d) for d in value.shape or ()], np.float32)  # type: ignore[arg-type]
    return [batch]


def finish(model: ir.Model) -> None:
    """See `Backend.finish`: standard operators only, of the dialect's operator set or the one lowered to."""


def record(variant: VariantBuild, blobs: tuple[str, ...]) -> Variant:
    """See `Backend.record`."""
    plan = variant.plan
    left_out = engine_spec.capabilities(plan)[1]
    if left_out:
        unable = f"compute capabilities {', '.join(left_out)}: they cannot run {plan.scheme} weights"
        variant.report.left_out = unable
    engine = Engine(
        spec=engine_spec.spec_of(variant), cache_dtype="float32" if plan.scheme == "fp32" else "float16",
        cache_in_place=_in_place(plan),
    )  # fmt: skip
    graph = Graph(
        part=variant.part, file=variant.file, activations=plan.activations, added=added(variant.graph.graph),
        blobs=blobs, engine=engine,
    )  # fmt: skip
    return Variant(
        name=plan.name, target=plan.target.spec, backend=plan.target.backend, weights=variant.label, graphs=(graph,)
    )


def measure(
    variant: VariantBuild, writer: ArtifactWriter, manifest: Manifest, rounded: Mapping[str, Rounded]
) -> Comparison:
    """See `Backend.measure`: ONNX Runtime runs the lowered graph, in float arithmetic, before an engine is built."""
    comparison = variant.sample.compare(_LoweredGraph(variant, writer.path), rounded)
    comparison.fidelity.executed = "the lowered graph, by ONNX Runtime on the CPU"
    return comparison


class _LoweredGraph:
    """A variant's graph, run on the CPU."""

    gives_scores = False

    def __init__(self, variant: VariantBuild, folder: Path) -> None:
        self._variant, self._folder = variant, folder

    def logits(self, sample: NextTokens) -> Iterator[tuple[int, NDArray[np.float32]]]:
        variant = self._variant
        (part,) = variant.captured.parts.values()
        rows = max(1, min(engine_spec.CHUNK, _CHECK_BYTES // (4 * int(variant.captured.config.vocab_size))))
        short = self._folder / f"{variant.plan.name}.check.onnx"  # beside the blobs that it refers to
        ir.save(_as_run(variant, ir.load(self._folder / variant.file)), short)
        try:
            yield from logits_blocks(short, part, sample.token_ids, rows)
        finally:
            short.unlink()

    def rows(self, sample: Rows) -> NDArray[np.float32]:
        return encoder_rows(open_session(self._folder / self._variant.file), sample.batches())

    def values(self, sample: Values) -> list[NDArray[np.float32]]:
        raise ValueError("expected a model of one part")  # `preflight` refuses others


def compile(variant: VariantBuild, writer: ArtifactWriter, record: Variant) -> Variant:
    """See `Backend.compile`: a plan where it can be built, else a rehearsal of it."""
    give_back()  # the check's memory: TensorRT needs much itself
    model = variant.graph
    require_operators(model, variant.plan.target.backend, first_version(engine_spec.versions(variant.plan)))
    return build_engine(variant, writer, model, record)
