"""Measures what is written against the original model, on the text of the check."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import ClassVar

from leptonc.artifact.matrices import rounded_of
from leptonc.backends import backend_of
from leptonc.backends.traits import traits_of
from leptonc.build.context import BuildContext
from leptonc.build.manifest import manifest_of
from leptonc.build.memory_bound import CHECKING, ModelSizes
from leptonc.build.plan import BuildPlan
from leptonc.build.step import Need, VariantStep
from leptonc.build.work import Work, checking, work
from leptonc.evaluate.measure import Comparison
from leptonc.evaluate.noise import Rounded
from leptonc.variant import VariantBuild, VariantPlan

# What was measured, with some room (docs/measured/build.md).
OPENED = 1.7  # times the bytes of an artifact: ONNX Runtime lays out weights as its kernels read them
LOGITS, READ = 4 * 10**8, 2  # of a graph for TensorRT, whose weights are made float a layer at a time


class Measure(VariantStep):
    """Adds `fidelity` to a variant's report, and learns how much each layer's rounding changes its output."""

    name: ClassVar[str] = "check"
    several_parts: ClassVar[bool] = True

    def applies(self, plan: VariantPlan) -> bool:
        return plan.check

    def needs(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Need]:
        ran = max((_ran(variant, sizes) for variant in plan.variants if variant.check), default=0)
        yield Need("the check", CHECKING + sizes.largest + max(ran, sizes.original))

    def work(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
        yield work("check", **checking(sizes))

    def run(self, context: BuildContext, variant: VariantBuild) -> VariantBuild:
        rounded = rounded_of(variant.passes)
        comparison = measure(context, variant, f"{variant.prefix}check", rounded)
        variant.report.fidelity, variant.report.examples = comparison.fidelity, comparison.examples
        return dataclasses.replace(variant, noise=comparison.noise)


class MeasurePrompts(VariantStep):
    """Adds `fidelity` of the graph for prompts to its section of a variant's report."""

    name: ClassVar[str] = "prompts check"

    def applies(self, plan: VariantPlan) -> bool:
        return plan.check and plan.prefill is not None

    def work(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
        yield work("prefill check", **checking(sizes))

    def run(self, context: BuildContext, variant: VariantBuild) -> VariantBuild:
        comparison = measure(context, variant, f"{variant.prefix}prefill check", {})
        variant.report.prompts().fidelity = comparison.fidelity
        return variant


def measure(context: BuildContext, variant: VariantBuild, stage: str, rounded: Mapping[str, Rounded]) -> Comparison:
    """Runs a variant as it is written, and compares it with the original.

    Args:
        context: The build.
        variant: What is measured.
        stage: What the user is shown.
        rounded: Linear layers whose noise is measured with it.
    """
    if variant.record is None:
        raise ValueError(f"variant {variant.plan.name} is not written yet")
    manifest = manifest_of(context, (variant.record,))
    context.writer.write_manifest(manifest)
    with context.clock.stage(stage):
        return backend_of(variant.plan.target).measure(variant, context.writer, manifest, rounded)


def _ran(plan: VariantPlan, sizes: ModelSizes) -> int:
    """What runs the artifact takes, beside what compares: ONNX Runtime, and for TensorRT many logits at once."""
    stored = sizes.stored(plan)
    return int(OPENED * stored) if traits_of(plan.target).runs_here else LOGITS + int(READ * stored)
