"""A variant of a build: what is asked for it, what is chosen for it, and what it is made of.

`VariantPlan` is made once, before anything is opened. `Choices` begin empty, and a step that chooses something returns
others. Neither is ever changed in place: a trial takes a variant with other choices and leaves this one alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

import targets
from leptonc.options import LayerRule
from leptonc.passes.base import Manager, Pass
from leptonc.passes.quantize.methods import ROUNDING
from leptonc.report.variant import VariantReport

SHARED = "shared"  # a graph for prompts whose weights are made from those of the other, as it is opened

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from leptonc.evaluate.measure import Sample
    from leptonc.frontend.captured import Captured
    from leptonc.passes.heal import Heal
    from leptonc.passes.quantize.smooth import SmoothLinears
    from leptonc.passes.quantize.static import StaticActivations
    from leptonc.passes.quantize.weights import LayerFormat, Solve
    from leptonc.progress import Timed
    from runtime_edge.manifest import Variant


@dataclass(frozen=True)
class VariantPlan:
    """What is asked for one variant.

    Attributes:
        name: Of the variant, and of its files.
        target: What it is for.
        scheme: Number format of the weights.
        block_size: Weights that share a scale. Default: the backend's own choice.
        symmetric: Whether weights are quantized without zero points. Default: what suits the scheme.
        budget: Bytes of graph and weights to stay within: 8 bits go where 4 hurt most. Default: no bound.
        method: How codes are chosen: rtn, gptq or awq.
        embeddings: Number format of the embedding and a head tied to it. Default: that of the weights.
        check: Whether the lowered graph is compared with the original.
        rules: What a recipe says of single layers.
        activations: Number format that activations are quantized to: none or int8.
        calibrator: What chooses their ranges.
        kv_cache: Number format of the cache's keys and values: int8. Default: float.
        prefill: Weights of a second graph, which prompts go through with 8-bit activations: int8 for weights of its
            own, shared for those of the first graph. Default: no second graph.
        sparse: Whether weights are 2:4 sparse.
    """

    name: str
    target: targets.Target
    scheme: str
    block_size: int | None = None
    symmetric: bool | None = None
    budget: int | None = None
    method: str = ROUNDING
    embeddings: str | None = None
    check: bool = True
    rules: tuple[LayerRule, ...] = ()
    activations: str = "none"
    calibrator: str = "search"
    kv_cache: str | None = None
    prefill: str | None = None
    sparse: bool = False

    @property
    def prefill_graph(self) -> str:
        """Name of the file of the graph for prefill."""
        return f"{self.name}.prefill.onnx"

    @property
    def derived(self) -> str:
        """Name of the file that says how the runtime makes weights of the graph for prefill."""
        return f"{self.name}.prefill.json"


@dataclass(frozen=True)
class Choices:
    """What is chosen for one variant, by a recipe's rules or by what a text shows.

    Attributes:
        layers: Formats of the layers that differ from the others.
        embeddings: Number format of the embedding that a budget chose. Default: what the plan says.
        cache_scales: Steps of the channels of each cache, by the graph's input.
        inputs: How the inputs of linear layers are quantized.
        prompt_inputs: The same in the graph for prefill.
        prompt_layers: What `layers` is in the graph for prefill.
        scaling: The pass that method awq comes after.
        solve: What another method than rtn chooses codes with. Default: they are rounded to nearest.
        recovery: The pass that it recovers by what it lost.
    """

    layers: tuple[LayerFormat, ...] = ()
    embeddings: str | None = None
    cache_scales: Mapping[str, NDArray[Any]] | None = None
    inputs: StaticActivations | None = None
    prompt_inputs: StaticActivations | None = None
    prompt_layers: tuple[LayerFormat, ...] = ()
    scaling: SmoothLinears | None = None
    solve: Solve | None = None
    recovery: Heal | None = None


@dataclass(frozen=True)
class VariantBuild:
    """One variant while it is built.

    Attributes:
        plan: What is asked for.
        captured: The model.
        sample: The text that it is measured on.
        clock: Times stages.
        choices: What is chosen so far.
        report: What there is to report of it so far; steps add to it.
        part: The part whose graph is built. Default: the model's first.
        prefix: What names of its stages begin with. Default: nothing, where it is the only variant.
        model: Its graph while it is built. Default: none yet.
        prompts: The graph for prompts while it is built. Default: none.
        manager: Runs passes on these graphs.
        passes: Passes that lowered its graph.
        noise: Signal-to-noise ratio of its rounded layers, in decibels. Default: not measured.
        record: What the manifest says of it. Default: nothing is written yet.
    """

    plan: VariantPlan
    captured: Captured
    sample: Sample
    clock: Timed
    choices: Choices = field(default_factory=Choices)
    report: VariantReport = field(default_factory=VariantReport)
    part: str = ""
    prefix: str = ""
    model: ir.Model | None = None
    prompts: ir.Model | None = None
    manager: Manager = field(default_factory=Manager)
    passes: tuple[Pass, ...] = ()
    noise: Mapping[str, float] = field(default_factory=dict)
    record: Variant | None = None

    @property
    def graph(self) -> ir.Model:
        """The graph that is built."""
        if self.model is None:
            raise ValueError(f"variant {self.plan.name} has no graph yet")
        return self.model

    @property
    def file(self) -> str:
        """Name of the graph's file."""
        return f"{self.plan.name}.onnx" if len(self.captured.graphs) == 1 else f"{self.plan.name}.{self.part}.onnx"

    def written(self) -> VariantBuild:
        """Returns the variant without its graphs, when they are written."""
        return dataclasses.replace(self, model=None, prompts=None, passes=(), manager=Manager())

    def choosing(self, **changes: Any) -> VariantBuild:
        """Returns the variant with other choices; fields are those of `Choices`."""
        return dataclasses.replace(self, choices=dataclasses.replace(self.choices, **changes))

    def rounded(self) -> VariantBuild:
        """Returns a variant of the same size and speed whose codes are rounded, for a trial: its report is its own."""
        plan = dataclasses.replace(self.plan, method=ROUNDING)
        choices = dataclasses.replace(self.choices, solve=None)
        return dataclasses.replace(self, plan=plan, choices=choices, report=VariantReport())

    @property
    def label(self) -> str:
        """What the variant's record calls the weights."""
        scheme = self.plan.scheme
        counts: dict[str, int] = {}
        for form in self.choices.layers:
            name = f"int{form.bits}" if form.bits <= 8 else "float"
            counts[name] = counts.get(name, 0) + len(form.paths) * (name != scheme)
        return ", ".join(
            [
                scheme,
                *(
                    f"{count} {'layer' if count == 1 else 'layers'} {name}"
                    for name, count in sorted(counts.items())
                    if count
                ),
            ]
        )


def joined(parts: Sequence[VariantBuild]) -> VariantBuild:
    """Returns a variant of its parts: all their passes, and a record of all their graphs; it has no graph itself."""
    if len(parts) == 1:
        return parts[0]
    records = [part.record for part in parts if part.record is not None]
    record = None
    if records:
        graphs = tuple(graph for each in records for graph in each.graphs)
        record = msgspec.structs.replace(records[0], graphs=graphs)
    passes = tuple(step for part in parts for step in part.passes)
    prefix = parts[0].prefix.removesuffix(f"{parts[0].part}: ")
    return dataclasses.replace(parts[0], part="", prefix=prefix, model=None, passes=passes, record=record)
