"""Backends lower a graph to the form that their engine runs fastest.

A backend is a module with the functions of `Backend`, imported when a build needs it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import targets
from leptonc.backends.traits import TRAITS
from leptonc.errors import InputError
from leptonc.passes.quantize.methods import METHODS

if TYPE_CHECKING:
    import onnx_ir as ir

    from leptonc.artifact.writer import ArtifactWriter
    from leptonc.evaluate.measure import Comparison
    from leptonc.evaluate.noise import Rounded
    from leptonc.passes.base import Pass
    from leptonc.passes.quantize.weights import LayerFormat, QuantizeWeightsConfig
    from leptonc.report.examples import Examples
    from leptonc.variant import Choices, VariantBuild, VariantPlan
    from runtime_edge.manifest import Manifest, PassRecord, Variant

MODULES = {
    "onnxruntime": "leptonc.backends.onnxruntime",
    "tensorrt": "leptonc.backends.tensorrt",
    "tensorrt-rtx": "leptonc.backends.tensorrt",
}


class Backend(Protocol):
    """The functions of a backend's module."""

    def check_request(self, plan: VariantPlan) -> None:
        """Refuses options that cannot be built, before anything is opened (raises `LeptonError`)."""

    def preflight(self, variant: VariantBuild) -> tuple[LayerFormat, ...]:
        """Refuses a captured model that cannot run on the target (raises `LeptonError`).

        Returns the formats of the layers that a recipe names.
        """

    def config_of(self, plan: VariantPlan, choices: Choices | None = None) -> QuantizeWeightsConfig:
        """Returns the quantization of weights (raises `InputError` where the backend does not have it)."""

    def passes(self, variant: VariantBuild, scratch: Path) -> list[Pass]:
        """Returns the passes from the dialect to the backend's graph; `scratch` is for temporary files."""

    def lowerings(self) -> Sequence[Pass]:
        """Returns the passes that lower a graph of the dialect; called for backends whose graphs run here."""

    def finish(self, model: ir.Model) -> None:
        """Declares the operator sets that the lowered graph uses."""

    def record(self, variant: VariantBuild, blobs: tuple[str, ...]) -> Variant:
        """Returns the variant's record, once its graph and weights are written."""

    def measure(
        self, variant: VariantBuild, writer: ArtifactWriter, manifest: Manifest, rounded: Mapping[str, Rounded]
    ) -> Comparison:
        """Runs the written artifact, and compares it with the original.

        Args:
            variant: The variant.
            writer: The artifact's writer, which has the files.
            manifest: A manifest of this variant alone.
            rounded: Linear layers whose noise is measured too.
        """

    def examples(self, variant: VariantBuild, writer: ArtifactWriter, manifest: Manifest) -> Examples:
        """Has the written artifact and the original answer a few prompts; called for backends whose graphs run here."""

    def compile(self, variant: VariantBuild, writer: ArtifactWriter, record: Variant) -> Variant:
        """Builds the engine of a lowered graph, where the backend has engines; returns the variant's record with it."""

    def split_for_prompts(self, passes: Sequence[Pass]) -> int:
        """Returns the index of the pass at which a graph for prompts, which shares the weights, begins.

        This and the next three are called for variants with `prefill`, which `check_request` may refuse.
        """

    def prompt_passes(self, variant: VariantBuild, model: ir.Model) -> list[Pass]:
        """Returns the passes to the graph for prompts; `model` is the captured model, or the quantized one."""

    def described_bytes(self, model: ir.Model) -> int:
        """Returns the size in bytes of the description of a prompt graph's weights; computes none of them."""

    def prompt_graph(
        self, variant: VariantBuild, model: ir.Model, record: Variant, writer: ArtifactWriter
    ) -> tuple[Variant, list[PassRecord]]:
        """Lowers and writes the graph for prompts.

        Args:
            variant: The variant; its own graph is written.
            model: The captured model, or with shared weights the quantized one; it is changed.
            record: The variant's record.
            writer: The artifact's writer.

        Returns:
            The variant's record with the graph, and the passes that were run.
        """


def check_method(plan: VariantPlan) -> None:
    """Refuses a method that scales channels beside 8-bit activations, which do so too (raises `InputError`)."""
    if METHODS[plan.method].scales_channels and (plan.activations != "none" or plan.prefill is not None):
        able = [name for name, method in METHODS.items() if not method.scales_channels]
        raise InputError(
            f"expected method {' or '.join(able)} with 8-bit activations, whose smoothing scales the same channels, "
            f"found {plan.method}",
            hint="--method gptq",
        )


def host_backend() -> Backend:
    """Imports the backend whose graphs run on this machine's CPU."""
    name = next(name for name, traits in TRAITS.items() if traits.runs_here)
    return cast(Backend, importlib.import_module(MODULES[name]))


def backend_of(target: targets.Target) -> Backend:
    """Imports the backend of a target."""
    return cast(Backend, importlib.import_module(MODULES[target.backend]))
