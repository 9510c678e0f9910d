"""Times what pruning left beside the whole model, where a variant runs on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from leptonc.backends.traits import traits_of
from leptonc.build.context import BuildContext
from leptonc.build.latency import REPORTED, speed
from leptonc.build.memory_bound import ModelSizes
from leptonc.build.plan import BuildPlan
from leptonc.build.step import ModelStep
from leptonc.build.work import Work, work
from leptonc.variant import VariantPlan


class MeasureSpeed(ModelStep):
    """Adds to the report of pruning how long a token takes before and after. 2:4 weights make nothing smaller here."""

    name: ClassVar[str] = "prune speed"

    def wanted(self, plan: BuildPlan) -> bool:
        cuts = plan.prune is not None and not plan.prune.sparse
        return cuts and any(map(_runs_here, plan.variants))

    def work(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
        yield work("prune speed", seconds=2 * REPORTED, written=3 * sizes.whole)

    def run(self, context: BuildContext) -> BuildContext:
        if context.original is None or context.report.pruning is None:
            raise ValueError("the model before pruning was not kept, or nothing was pruned")
        variant = next(variant for variant in context.variants if _runs_here(variant.plan))
        whole, smaller = context.original.clone(), context.captured.model.clone()
        context.report.pruning.speed = speed(whole, smaller, variant, context.calibration)
        return context


def _runs_here(plan: VariantPlan) -> bool:
    return traits_of(plan.target).runs_here and plan.check
