"""Reads an emitted graph as a build will, and compares it with the original."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from leptonc.build.context import BuildContext
from leptonc.build.memory_bound import CHECKING, ModelSizes
from leptonc.build.plan import BuildPlan
from leptonc.build.step import Need, VariantStep
from leptonc.build.work import Work, checking, work
from leptonc.evaluate.bounds import judge, require_same
from leptonc.evaluate.graph import emitted_graph
from leptonc.sources import open_source
from leptonc.variant import VariantBuild, VariantPlan

_HINT = "cut less, or let what is left learn: --heal 10min"


class CheckEmitted(VariantStep):
    """Adds `fidelity` to the report, and holds it against `--max-loss`.

    Raises:
        BoundError: The graph lost more.
        CaptureError: Nothing was done to the graph, and it is not the model.
    """

    name: ClassVar[str] = "check"

    def applies(self, plan: VariantPlan) -> bool:
        return plan.check

    def needs(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Need]:
        yield Need("the check", CHECKING + sizes.largest + sizes.original)

    def work(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
        yield work("check", **checking(sizes))

    def run(self, context: BuildContext, variant: VariantBuild) -> VariantBuild:
        options = context.plan.options
        with context.clock.stage("check"), open_source(str(context.writer.path)) as written:
            fidelity = context.sample.compare_graph(emitted_graph(written))
        context.report.fidelity = fidelity
        judge(fidelity, options.max_loss, "the emitted graph", _HINT)
        if options.prune is None and options.heal is None:
            require_same(fidelity, "the emitted graph")
        return variant
