"""Builds what comes after a variant's graph: an engine, where its backend has one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

from leptonc.backends import backend_of
from leptonc.backends.traits import traits_of
from leptonc.build.context import BuildContext
from leptonc.build.memory_bound import ModelSizes
from leptonc.build.plan import BuildPlan
from leptonc.build.step import Need, VariantStep
from leptonc.build.work import Work, work
from leptonc.variant import VariantBuild

ENGINE, PLANNED = 7 * 10**8, 5  # bytes of TensorRT, which has the graph's weights, a plan's and a copy of that


class CompileEngine(VariantStep):
    """Lets the backend compile the graph that was written."""

    name: ClassVar[str] = "engine"
    several_parts: ClassVar[bool] = True

    def needs(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Need]:
        engines = [variant for variant in plan.variants if not traits_of(variant.target).runs_here]
        if engines:
            yield Need("building an engine", ENGINE + int(PLANNED * max(map(sizes.stored, engines))))

    def work(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
        (variant,) = plan.variants
        if stage := traits_of(variant.target).compiles:
            yield work(stage, compiled=sizes.stored(variant))

    def run(self, context: BuildContext, variant: VariantBuild) -> VariantBuild:
        if variant.record is None:
            raise ValueError(f"variant {variant.plan.name} is not written yet")
        record = backend_of(variant.plan.target).compile(variant, context.writer, variant.record)
        return dataclasses.replace(variant, record=record)
