"""The ordered lowerings from the IR dialect to ONNX Runtime's kernels, and the weights' forms before them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

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
from leptonc.formats import FORMATS
from leptonc.ir.dialect import MODULE_KEY
from leptonc.ir.structure import layer_of, linears
from leptonc.passes.base import Pass
from leptonc.passes.cleanup import Cleanup
from leptonc.passes.fuse_linears import FuseLinears
from leptonc.passes.last_logits import LastLogits
from leptonc.passes.quantize.methods import METHODS, ROUNDING
from leptonc.passes.quantize.numbers import CodesToNumbers, CodesToNumbersConfig
from leptonc.passes.quantize.weights import QuantizeWeights, QuantizeWeightsConfig
from leptonc.variant import SHARED, Choices, VariantBuild, VariantPlan
from runtime_edge.backends.onnxruntime import PREFILL_CHUNK, PREFILL_LEAST

WEIGHTS = ("fp32", "int8", "int4", "int2")
BLOCK_SIZE = 32


def is_symmetric(plan: VariantPlan) -> bool:
    """Whether weights have no zero points.

    Default: those of fewer than 8 bits whose codes a text chooses have, and all under a budget of bytes.
    """
    if plan.symmetric is not None:
        return plan.symmetric
    solved = FORMATS[plan.scheme].bits < 8 and bool(METHODS[plan.method].module)
    return plan.budget is None and not solved


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
        bits=int(plan.scheme.removeprefix("int")), block_size=block_size, symmetric=is_symmetric(plan),
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
    """Returns the lowerings of a variant's graph; `tokens` is the most that a run has."""
    whole = WholeScores(WholeScoresConfig(tokens, variant.captured.max_seq_len))
    return [*lowerings(variant.choices.cache_scales), whole]


def prompt_passes(variant: VariantBuild, model: ir.Model) -> list[Pass]:
    """Returns the passes to a graph for prefill: 8-bit activations, and 8-bit weights in layers without them.

    The embedding has the variant's format: both graphs read its bytes. Where they share all weights, `model` has those
    of the graph that decodes, quantized.
    """
    choices = variant.choices
    static, config = choices.prompt_inputs, config_of(variant.plan, variant.choices)
    if static is None:
        raise ValueError("a graph for prefill needs ranges of its activations")
    if variant.plan.prefill == SHARED:
        numbers = CodesToNumbers(CodesToNumbersConfig(static.layers))
        return [numbers, *static.passes(), *_lowered(variant, PREFILL_CHUNK)]
    chosen = {*static.layers, *(path for formats in choices.prompt_layers for path in formats.paths)}
    rest = [linear for linear in linears(model) if linear.path not in chosen and layer_of(linear.path)]
    raised = config.raised_layers({linear.path: linear.shape[1] for linear in rest}) if config.bits < 8 else ()
    config = dataclasses.replace(
        config, method=ROUNDING, channels=static.layers, layers=(*choices.prompt_layers, *raised)
    )
    quantize = QuantizeWeights(config, importance=static.importance)
    return [*static.passes(), quantize, *_lowered(variant, PREFILL_CHUNK)]


def lowerings(cache_scales: Mapping[str, NDArray[Any]] | None = None) -> tuple[Pass, ...]:
    """Returns the passes that lower a graph of the dialect, in order.

    `cache_scales` makes caches 8-bit integers: see `CachedAttentionToGroupQuery`. Default: float caches.
    """
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


def split_for_prompts(passes: Sequence[Pass]) -> int:
    """See `Backend.split_for_prompts`: where the lowering begins."""
    return next((at for at, step in enumerate(passes) if isinstance(step, LastLogits)), 0)


def finish(model: ir.Model) -> None:
    """Declares the operator sets that the lowered graph uses; removes what ONNX Runtime infers as it loads.

    Types and shapes of inner values, names of nodes (their outputs have the same) and the modules that they come from
    are a third of the file.
    """
    model.graph.opset_imports[MS] = 1
    declare(model)  # it reads types, which are removed below
    inside = [value for node in model.graph for value in node.outputs if not value.is_graph_output()]
    for value in (*inside, *model.graph.initializers.values()):
        value.type = value.shape = None
    for node in model.graph:
        node.name = None
        node.metadata_props.pop(MODULE_KEY, None)
