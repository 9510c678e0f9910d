"""Writes a graph and its weights, a layer at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

from leptonc.backends import backend_of
from leptonc.build.context import BuildContext
from leptonc.build.memory_bound import WRITING, ModelSizes, bytes_of
from leptonc.build.plan import BuildPlan
from leptonc.build.step import Need, VariantStep
from leptonc.build.work import Work, work
from leptonc.variant import VariantBuild


class WriteGraph(VariantStep):
    """Writes a variant's lowered graph, and makes its record for the manifest."""

    name: ClassVar[str] = "weights"
    several_parts: ClassVar[bool] = True
    is_of_parts: ClassVar[bool] = True

    def needs(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Need]:
        yield Need("writing a weight", WRITING + 2 * sizes.largest)

    def work(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
        (variant,) = plan.variants
        yield work("weights", written=sizes.whole + sizes.stored(variant))

    def run(self, context: BuildContext, variant: VariantBuild) -> VariantBuild:
        plan, model = variant.plan, variant.graph
        with context.clock.stage(f"{variant.prefix}weights", bytes_of(model)) as advance:
            blobs = context.writer.add_graph(variant.file, model, advance)
        return dataclasses.replace(variant, record=backend_of(plan.target).record(variant, blobs))
