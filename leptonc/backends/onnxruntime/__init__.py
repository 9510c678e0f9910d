"""ONNX Runtime on the CPU: the ordered lowerings from the IR dialect to its kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.backends import check_method
from leptonc.backends.layers import Forms, resolve
from leptonc.backends.onnxruntime.attention import (
    MS,
    AttentionOfMerged,
    CachedAttentionToGroupQuery,
    PackQueryKeyValue,
    WholeScores,
    WholeScoresConfig,
)
from leptonc.backends.onnxruntime.fusions import SkipNorms, SwishToQuickGelu
from leptonc.backends.onnxruntime.integer import LinearToInteger
from leptonc.backends.onnxruntime.linear import EmbeddingToKernels, LinearToKernels
from leptonc.backends.onnxruntime.opset import declare
from leptonc.errors import InputError
from leptonc.ir.dialect import MODULE_KEY
from leptonc.ir.ports import added
from leptonc.ir.structure import layer_of, linears
from leptonc.memory import give_back
from leptonc.options import LayerRule
from leptonc.passes.base import Pass
from leptonc.passes.cleanup import Cleanup
from leptonc.passes.fuse_linears import FuseLinears
from leptonc.passes.last_logits import LastLogits
from leptonc.passes.quantize.methods import ROUNDING
from leptonc.passes.quantize.numbers import CodesToNumbers, CodesToNumbersConfig
from leptonc.passes.quantize.weights import LayerFormat, QuantizeWeights, QuantizeWeightsConfig
from leptonc.report.quality import Fidelity
from leptonc.variant import Choices, VariantBuild, VariantPlan
from runtime_edge.backends.onnxruntime import PREFILL_CHUNK, PREFILL_LEAST
from runtime_edge.manifest import Graph, Manifest, Variant

if TYPE_CHECKING:
    from leptonc.artifact.writer import ArtifactWriter

WEIGHTS = ("fp32", "int8", "int4", "int2")
SHARED = "shared"  # a graph for prefill whose weights are made from those of the other, as it is opened
BLOCK_SIZE = 32


def check_request(plan: VariantPlan) -> None:
    """See `Backend.check_request`."""
    if plan.scheme not in WEIGHTS:
        raise InputError(
            f"expected weights among {', '.join(WEIGHTS)} for target {plan.target.name}, found {plan.scheme}",
            hint="fp32 keeps the weights as they are",
        )
    if plan.activations == "int8" and (plan.scheme != "int8" or plan.symmetric is False):
        found = "asymmetric ones" if plan.scheme == "int8" else f"weights {plan.scheme}"
        raise InputError(
            f"expected symmetric weights of 8 bits with activations int8, found {found}",
            hint="--weights int8 --activations int8",
        )
    check_method(plan)
    if plan.prefill is not None and (plan.scheme == "fp32" or plan.activations != "none"):
        raise InputError(
            f"expected weights of integers without activations int8 beside a graph for prefill, found weights "
            f"{plan.scheme} and activations {plan.activations}",
            hint="--weights int4 --prefill int8",
        )
    if plan.scheme != "fp32" or plan.method != ROUNDING or plan.embeddings or plan.rules:
        config_of(plan)


def preflight(variant: VariantBuild) -> tuple[LayerFormat, ...]:
    """See `Backend.preflight`: the recipe's layers; a CPU's memory is not the profile's to know."""
    if variant.plan.prefill is not None and not variant.captured.interface.writes_text:
        raise InputError(
            f"expected a model that generates text for --prefill, found one for {variant.captured.task.name}",
            hint="--weights int8 --activations int8 is the same for an encoder",
        )
    if variant.plan.kv_cache is not None and not variant.captured.interface.writes_text:
        raise InputError(
            f"expected a model that generates text for --kv-cache, found one for {variant.captured.task.name}",
            hint="an encoder has no cache",
        )
    plan = variant.plan
    usual = LayerRule(weights=plan.scheme, block_size=plan.block_size, symmetric=_symmetric(plan))
    forms = Forms("ONNX Runtime", WEIGHTS, usual, lambda _: BLOCK_SIZE)
    return resolve(plan.rules, variant.captured.model, forms)


def _symmetric(plan: VariantPlan) -> bool:
    """Whether weights have no zero points: unless they are asked for, or 4 bits have to serve under a budget."""
    return plan.budget is None if plan.symmetric is None else plan.symmetric


def config_of(plan: VariantPlan, choices: Choices | None = None) -> QuantizeWeightsConfig:
    """See `Backend.config_of`."""
    choices = choices or Choices()
    if plan.scheme == "fp32":
        raise InputError(
            "expected weights of integers with --method gptq, --embeddings and layers of a recipe, found fp32",
            hint="--weights int4",
        )
    block_size = BLOCK_SIZE if plan.block_size is None else plan.block_size
    if block_size == 0:
        raise InputError("expected a block size of 16 or more for ONNX Runtime, found 0")
    embeddings = choices.embeddings or plan.embeddings or "int0"
    return QuantizeWeightsConfig(
        bits=int(plan.scheme.removeprefix("int")), block_size=block_size, symmetric=_symmetric(plan),
        method=plan.method, embedding_bits=int(embeddings.removeprefix("int")), layers=choices.layers,
        half_scales=True, channels=choices.inputs.layers if choices.inputs is not None else (),
    )  # fmt: skip


def _quantize(variant: VariantBuild) -> list[Pass]:
    if variant.plan.scheme == "fp32":
        return []
    choices = variant.choices
    static = choices.inputs
    before: list[Pass] = static.passes() if static is not None else []
    before += [choices.scaling] if choices.scaling is not None else []
    importance = static.importance if static is not None else None
    return [*before, QuantizeWeights(config_of(variant.plan, choices), choices.solve, importance)]


def passes(variant: VariantBuild, scratch: Path) -> list[Pass]:
    """See `Backend.passes`."""
    recovery = [variant.choices.recovery] if variant.choices.recovery is not None else []
    # Beside a graph for prefill this one runs on few tokens at a time.
    tokens = PREFILL_CHUNK if variant.plan.prefill is None else PREFILL_LEAST
    return [*_quantize(variant), *recovery, *_lowered(variant, tokens)]


def _lowered(variant: VariantBuild, tokens: int) -> list[Pass]:
    """The lowerings of a variant's graph that runs on so many tokens at most."""
    whole = WholeScores(WholeScoresConfig(tokens, variant.captured.max_seq_len))
    return [*lowerings(variant.choices.cache_scales), whole]


def prefill_passes(variant: VariantBuild, model: ir.Model) -> list[Pass]:
    """Returns the passes to a graph for prefill: 8-bit activations, and 8-bit weights where these are not to be had.

    The embedding has the format that the variant gives it: both graphs read the same bytes of it. Where they share all
    weights, `model` has those of the graph that decodes, quantized.
    """
    choices = variant.choices
    static, config = choices.prompt_inputs, config_of(variant.plan, variant.choices)
    if static is None:
        raise ValueError("a graph for prefill needs ranges of its activations")
    if variant.plan.prefill == SHARED:
        numbers = CodesToNumbers(CodesToNumbersConfig(static.layers))
        return [numbers, *static.passes(), *_lowered(variant, PREFILL_CHUNK)]
    known = {*static.layers, *(path for each in choices.prompt_layers for path in each.paths)}
    rest = [each for each in linears(model) if each.path not in known and layer_of(each.path)]
    raised = config.raised_layers({each.path: each.shape[1] for each in rest}) if config.bits < 8 else ()
    config = dataclasses.replace(
        config, method=ROUNDING, channels=static.layers, layers=(*choices.prompt_layers, *raised)
    )
    quantize = QuantizeWeights(config, importance=static.importance)
    return [*static.passes(), quantize, *_lowered(variant, PREFILL_CHUNK)]


def lowerings(cache_scales: Mapping[str, NDArray[Any]] | None = None) -> tuple[Pass, ...]:
    """Returns the passes that lower a graph of the dialect, in order; with scales, to caches of 8-bit integers."""
    return (
        LastLogits(),
        FuseLinears(),
        CachedAttentionToGroupQuery(cache_scales),
        PackQueryKeyValue(),
        AttentionOfMerged(),
        EmbeddingToKernels(),
        LinearToInteger(),
        LinearToKernels(),
        SkipNorms(),
        SwishToQuickGelu(),
        Cleanup(),
    )


def lowering_of(passes: Sequence[Pass]) -> int:
    """Returns at which of a build's passes the lowering begins: graphs that share weights part there."""
    return next((at for at, each in enumerate(passes) if isinstance(each, LastLogits)), 0)


def finish(model: ir.Model) -> None:
    """Declares the operator sets that the lowered graph uses; leaves out what ONNX Runtime finds by itself as it loads.

    Types and shapes of values inside, names of nodes (their outputs have the same) and the modules that they come from
    are a third of the file.
    """
    model.graph.opset_imports[MS] = 1
    declare(model)  # by types, which go below
    inside = [value for node in model.graph for value in node.outputs if not value.is_graph_output()]
    for value in (*inside, *model.graph.initializers.values()):
        value.type = value.shape = None
    for node in model.graph:
        node.name = None
        node.metadata_props.pop(MODULE_KEY, None)


def record(variant: VariantBuild, blobs: tuple[str, ...]) -> Variant:
    """See `Backend.variant`."""
    plan = variant.plan
    graph = Graph(
        part=variant.part, file=variant.file, activations=plan.activations, added=added(variant.graph.graph),
        blobs=blobs,
    )  # fmt: skip
    return Variant(
        name=plan.name, target=plan.target.spec, backend="onnxruntime", weights=variant.label, graphs=(graph,)
    )


def compile(variant: VariantBuild, writer: ArtifactWriter, model: ir.Model, record: Variant) -> Variant:
    """See `Backend.compile`: ONNX Runtime runs the graph itself."""
    return record


def measure(variant: VariantBuild, writer: ArtifactWriter, manifest: Manifest) -> Fidelity:
    """See `Backend.measure`: the runtime runs the artifact as it will on the device."""
    import runtime_edge

    sample = variant.sample
    give_back()
    if variant.captured.interface.writes_text:
        return sample.compare_decoder(_logits(writer.path, sample.token_ids))
    # The reference runs first: its weights have left the memory when the artifact is loaded.
    rows = sample.reference_rows()
    with runtime_edge.load(writer.path) as model:
        encoder = model.manifest.encoder
        if encoder is None or encoder.output != "logits":
            found = model.encode(sample.texts, truncate_dim=sample.encoder.dim)
        else:
            found = np.array([each.probabilities for each in model.classify(sample.texts)], np.float32)
        return sample.compare_encoder(rows, found, logits=False)


def _logits(artifact: Path, token_ids: list[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yields blocks of an artifact's logits; it is loaded when the first one is asked for."""
    import runtime_edge

    with runtime_edge.load(artifact) as model:
        yield from model.logits_blocks(token_ids)
