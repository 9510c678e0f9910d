"""ONNX Runtime on the CPU: checks of options, records, and runs of the built artifact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from leptonc.backends import check_method
from leptonc.backends.layers import Forms, resolve
from leptonc.backends.onnxruntime.lowering import BLOCK_SIZE, WEIGHTS, is_symmetric
from leptonc.backends.onnxruntime.lowering import config_of as config_of
from leptonc.backends.onnxruntime.lowering import finish as finish
from leptonc.backends.onnxruntime.lowering import lowerings as lowerings
from leptonc.backends.onnxruntime.lowering import passes as passes
from leptonc.backends.onnxruntime.lowering import prompt_passes as prompt_passes
from leptonc.backends.onnxruntime.lowering import split_for_prompts as split_for_prompts
from leptonc.backends.onnxruntime.prompts import described_bytes as described_bytes
from leptonc.backends.onnxruntime.prompts import prompt_graph as prompt_graph
from leptonc.errors import InputError
from leptonc.ir.ports import added
from leptonc.memory import give_back
from leptonc.options import LayerRule
from leptonc.passes.quantize.methods import ROUNDING
from leptonc.passes.quantize.weights import LayerFormat
from leptonc.report.examples import Examples
from leptonc.variant import VariantBuild, VariantPlan
from runtime_edge.manifest import Graph, Manifest, Variant

if TYPE_CHECKING:
    from leptonc.artifact.writer import ArtifactWriter
    from leptonc.evaluate.measure import Comparison, NextTokens, Rows, Values
    from leptonc.evaluate.noise import Rounded


def check_request(plan: VariantPlan) -> None:
    """See `Backend.check_request`."""
    if plan.scheme not in WEIGHTS:
        raise InputError(
            f"expected weights among {', '.join(WEIGHTS)} for target {plan.target.name}, found {plan.scheme}",
            hint="fp32 keeps the weights as they are",
        )
    if plan.activations == "int8" and (plan.scheme != "int8" or plan.symmetric is False):
        weights = "asymmetric ones" if plan.scheme == "int8" else f"weights {plan.scheme}"
        raise InputError(
            f"expected symmetric weights of 8 bits with activations int8, found {weights}",
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
    """See `Backend.preflight`. Memory is not checked: profiles of CPUs do not say how much there is."""
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
    if not plan.rules:
        return ()
    usual = LayerRule(weights=plan.scheme, block_size=plan.block_size, symmetric=is_symmetric(plan))
    forms = Forms("ONNX Runtime", WEIGHTS, usual, lambda _: BLOCK_SIZE)
    return resolve(plan.rules, variant.captured.model, forms)


def record(variant: VariantBuild, blobs: tuple[str, ...]) -> Variant:
    """See `Backend.record`."""
    plan = variant.plan
    graph = Graph(
        part=variant.part, file=variant.file, activations=plan.activations, added=added(variant.graph.graph),
        blobs=blobs,
    )  # fmt: skip
    return Variant(
        name=plan.name, target=plan.target.spec, backend="onnxruntime", weights=variant.label, graphs=(graph,)
    )


def compile(variant: VariantBuild, writer: ArtifactWriter, record: Variant) -> Variant:
    """See `Backend.compile`: ONNX Runtime runs the graph itself."""
    return record


def measure(
    variant: VariantBuild, writer: ArtifactWriter, manifest: Manifest, rounded: Mapping[str, Rounded]
) -> Comparison:
    """See `Backend.measure`: the runtime runs the artifact as it will on the device."""
    give_back()
    return variant.sample.compare(_Artifact(writer.path), rounded)


def examples(variant: VariantBuild, writer: ArtifactWriter, manifest: Manifest) -> Examples:
    """See `Backend.examples`."""
    from leptonc.backends.onnxruntime.writing import ArtifactWriting

    give_back()
    return variant.sample.answers(ArtifactWriting(writer.path, manifest))


class _Artifact:
    """An artifact as the runtime runs it. It is loaded for each measurement."""

    gives_scores = True

    def __init__(self, path: Path) -> None:
        self._path = path

    def logits(self, sample: NextTokens) -> Iterator[tuple[int, NDArray[np.float32]]]:
        import runtime_edge

        with runtime_edge.load(self._path) as model:
            yield from model.logits_blocks(sample.token_ids)

    def rows(self, sample: Rows) -> NDArray[np.float32]:
        import runtime_edge

        with runtime_edge.load(self._path) as model:
            if not sample.encoder.labels:
                return model.encode(sample.texts, truncate_dim=sample.encoder.dim)
            return np.array([result.probabilities for result in model.classify(sample.texts)], np.float32)

    def values(self, sample: Values) -> list[NDArray[np.float32]]:
        import runtime_edge

        with runtime_edge.load(self._path) as model:
            return [model.task.program.run(run) for run in sample.runs]
