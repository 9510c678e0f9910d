"""Lowers a variant's graph to what its target runs, quantized as it was chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

from leptonc.backends import backend_of
from leptonc.backends.traits import traits_of
from leptonc.build.context import BuildContext
from leptonc.build.memory_bound import CALIBRATING, ModelSizes
from leptonc.build.plan import BuildPlan
from leptonc.build.step import Need, VariantStep
from leptonc.build.work import Work, work
from leptonc.ir.dialect import count_ops
from leptonc.variant import SHARED, VariantBuild


class Lower(VariantStep):
    """Runs the backend's passes. The graph for prompts parts here, where a variant has one."""

    name: ClassVar[str] = "passes"
    several_parts: ClassVar[bool] = True
    is_of_parts: ClassVar[bool] = True

    def check(self, plan: BuildPlan) -> None:
        for variant in plan.variants:
            backend_of(variant.target).check_request(variant)

    def needs(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Need]:
        if not all(traits_of(variant.target).runs_here for variant in plan.variants):
            yield Need("measuring ranges", CALIBRATING + 2 * sizes.largest)

    def work(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
        yield work("passes", captured=len(sizes.linears) / 60)

    def run(self, context: BuildContext, variant: VariantBuild) -> VariantBuild:
        plan, model, manager, clock = variant.plan, variant.graph, variant.manager, context.clock
        backend = backend_of(plan.target)
        passes = backend.passes(variant, context.writer.scratch)
        # A graph for prompts begins with the captured weights, or with those that it shares.
        first = backend.split_for_prompts(passes) if plan.prefill == SHARED else 0
        with clock.stage(f"{variant.prefix}passes", len(passes)) as advance:
            manager.run(model, passes[:first], advance)
            prompts = model.clone() if plan.prefill is not None else None
            manager.run(model, passes[first:], advance)
        backend.finish(model)
        clock.seconds.update({f"pass {variant.prefix}{name}": taken for name, taken in manager.seconds.items()})
        context.record_once(manager.records)
        for section, found in ((each, what) for ran in passes for each, what in ran.report().items()):
            setattr(variant.report, section, found)
        counts = context.report.operations.setdefault(plan.name, {})
        counts.update({op: counts.get(op, 0) + count for op, count in count_ops(model).items()})
        return dataclasses.replace(variant, prompts=prompts, passes=tuple(passes))
