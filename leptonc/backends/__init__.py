"""Backends: what can run an artifact, each lowering the graph to its fastest form.

A backend is a module with the functions of `Backend`, imported when a build needs it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import targets
from leptonc.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from leptonc.artifact.writer import ArtifactWriter
    from leptonc.evaluate.measure import Sample
    from leptonc.frontend.capture import Captured
    from leptonc.options import LayerRule
    from leptonc.passes.base import Pass
    from leptonc.passes.heal import Heal
    from leptonc.passes.quantize.smooth import SmoothLinears
    from leptonc.passes.quantize.static import StaticActivations
    from leptonc.passes.quantize.weights import LayerFormat, QuantizeWeightsConfig, Solve
    from leptonc.progress import Progress
    from runtime_edge.manifest import Manifest, Variant

MODULES = {
    "onnxruntime": "leptonc.backends.onnxruntime",
    "tensorrt": "leptonc.backends.tensorrt",
    "tensorrt-rtx": "leptonc.backends.tensorrt",
}


@dataclass
class Job:
    """One variant to build.

    Attributes:
        name: Of the variant, and of its files.
        target: What it is for.
        scheme: Number format of the weights.
        block_size: Weights that share a scale; None for the backend's own choice.
        symmetric: Whether weights are quantized without zero points; None for what suits the scheme.
        budget: Bytes of graph and weights to stay within, in which case what hurts most is kept in 8 bits; or None.
        method: How codes are chosen: rtn, gptq or awq.
        embeddings: Number format of the embedding and a head tied to it; None for that of the weights.
        check: Whether the lowered graph is compared with the original.
        clock: Times stages.
        rules: What a recipe says of single layers.
        layers: Formats of layers that differ: what the rules come to, once the model is captured, and what is kept in
            8 bits, once the budget is spent.
        activations: Number format that activations are quantized to: none or int8.
        calibrator: What chooses their ranges.
        kv_cache: Number format of the cache's keys and values: int8; None for float.
        prefill: Of a second graph, for prefill, with 8-bit weights and activations: int8 for weights of its own, shared
            for those of the other graph, of which the runtime makes its own; or None.
        sparse: Whether weights are 2:4 sparse.
        cache_scales: Steps of the channels of each cache, by the graph's input, once they are known.
        static: How activations are quantized, once the model is captured and calibrated.
        prefill_static: The same in the graph for prefill.
        prefill_layers: What `layers` is in the graph for prefill.
        scaling: The pass that method awq comes after, once the model is captured.
        solve: What another method than rtn chooses codes with, likewise.
        recovery: The pass that it recovers what it lost by, where that is asked for, once the model is captured.
        captured: The model, once it is captured.
        sample: The text that it is measured on, likewise.
        report: What the backend has to say about this variant.
    """

    name: str
    target: targets.Target
    scheme: str
    block_size: int | None
    symmetric: bool | None
    budget: int | None
    method: str
    embeddings: str | None
    check: bool
    clock: Progress
    captured: Captured = field(init=False)
    sample: Sample = field(init=False)
    rules: tuple[LayerRule, ...] = ()
    layers: tuple[LayerFormat, ...] = ()
    activations: str = "none"
    calibrator: str = "search"
    kv_cache: str | None = None
    prefill: str | None = None
    sparse: bool = False
    scaling: SmoothLinears | None = None
    solve: Solve | None = None
    cache_scales: Mapping[str, NDArray[Any]] | None = None
    static: StaticActivations | None = None
    prefill_static: StaticActivations | None = None
    prefill_layers: tuple[LayerFormat, ...] = ()
    recovery: Heal | None = None
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def calibrated(self) -> bool:
        """Whether it takes a text to choose its numbers."""
        wanted = (self.budget, self.prefill, self.kv_cache)
        return self.method != "rtn" or self.activations != "none" or any(each is not None for each in wanted)

    @property
    def label(self) -> str:
        """What the variant's record calls the weights."""
        counts: dict[str, int] = {}
        for each in self.layers:
            name = f"int{each.bits}" if each.bits <= 8 else "float"
            counts[name] = counts.get(name, 0) + len(each.paths) * (name != self.scheme)
        return ", ".join([self.scheme, *(f"{count} layers {name}" for name, count in sorted(counts.items()) if count)])

    @property
    def graph(self) -> str:
        """Name of the graph's file."""
        return f"{self.name}.onnx"

    @property
    def prefill_graph(self) -> str:
        """Name of the file of the graph for prefill."""
        return f"{self.name}.prefill.onnx"

    @property
    def derived(self) -> str:
        """Name of the file that says how the runtime makes weights of the graph for prefill."""
        return f"{self.name}.prefill.json"


class Backend(Protocol):
    """What a backend's module offers."""

    def check_request(self, job: Job) -> None:
        """Refuses what cannot be built, before anything is opened (raises `LeptonError`)."""

    def preflight(self, job: Job) -> None:
        """Refuses what cannot run on the target, once the model is captured (raises `LeptonError`)."""

    def config_of(self, job: Job) -> QuantizeWeightsConfig:
        """Returns how the job's weights are quantized (raises `InputError` where that is not to be had)."""

    def passes(self, job: Job, scratch: Path) -> list[Pass]:
        """Returns the passes from the dialect to what the backend runs; `scratch` is for temporary files."""

    def finish(self, model: ir.Model) -> None:
        """Declares the operator sets that the lowered graph uses."""

    def variant(self, job: Job, blobs: tuple[str, ...]) -> Variant:
        """Returns the variant's record, its graph and weights being written."""

    def measure(self, job: Job, writer: ArtifactWriter, manifest: Manifest) -> dict[str, Any]:
        """Runs what is written, `manifest` having this variant alone, and compares it with the original."""

    def compile(self, job: Job, writer: ArtifactWriter, model: ir.Model, variant: Variant) -> Variant:
        """Builds what comes after the graph (an engine); returns the variant's record with it."""


def check_method(job: Job) -> None:
    """Refuses a method that 8-bit activations leave nothing for (raises `InputError`)."""
    if job.method == "awq" and (job.activations != "none" or job.prefill is not None):
        raise InputError(
            "expected method rtn or gptq with 8-bit activations, whose smoothing scales the same channels, found awq",
            hint="--method gptq",
        )


def backend_of(target: targets.Target) -> Backend:
    """Imports the backend of a target."""
    return cast(Backend, importlib.import_module(MODULES[target.backend]))
