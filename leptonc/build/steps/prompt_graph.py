"""Lowers and writes a second graph, which prompts go through."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

from leptonc.backends import backend_of
from leptonc.build.context import BuildContext
from leptonc.build.memory_bound import ModelSizes
from leptonc.build.plan import BuildPlan
from leptonc.build.step import VariantStep
from leptonc.build.work import Work, work
from leptonc.variant import VariantBuild, VariantPlan


class PromptGraph(VariantStep):
    """Does what `--prefill` asks for; the variant's record names the second graph then."""

    name: ClassVar[str] = "prompts"
    options: ClassVar[tuple[str, ...]] = ("prefill",)

    def applies(self, plan: VariantPlan) -> bool:
        return plan.prefill is not None

    def work(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
        yield work("prefill passes", captured=len(sizes.linears) / 60)
        yield work("prefill weights", written=1.25 * sizes.whole)

    def run(self, context: BuildContext, variant: VariantBuild) -> VariantBuild:
        if variant.prompts is None or variant.record is None:
            raise ValueError(f"variant {variant.plan.name} is not lowered and written yet")
        writer = context.writer
        before = sum(file.size for file in writer.listing())
        backend = backend_of(variant.plan.target)
        record, records = backend.prompt_graph(variant, variant.prompts, variant.record, writer)
        variant.report.prompts().bytes = sum(file.size for file in writer.listing()) - before
        context.record_once(records)
        return dataclasses.replace(variant, record=record)
