"""Has the written artifact and the original answer the same few prompts, for people to read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from leptonc.backends import backend_of
from leptonc.backends.traits import traits_of
from leptonc.build.context import BuildContext
from leptonc.build.manifest import manifest_of
from leptonc.build.memory_bound import ModelSizes
from leptonc.build.plan import BuildPlan
from leptonc.build.step import VariantStep
from leptonc.build.work import Work, work
from leptonc.evaluate.examples import QUESTIONS, ROUNDS, TOKENS
from leptonc.variant import VariantBuild, VariantPlan

_STAGE = "examples"
_PROMPT = 30  # tokens, about
_READ = 0.4  # of the most that the original can have to read, about


class ShowExamples(VariantStep):
    """Adds `examples` to the report of a variant that writes text and runs here; a build with `--fast` has none."""

    name: ClassVar[str] = "examples"
    several_parts: ClassVar[bool] = True

    def applies(self, plan: VariantPlan) -> bool:
        return plan.check and traits_of(plan.target).runs_here

    def wanted(self, plan: BuildPlan) -> bool:
        return not plan.options.fast and super().wanted(plan)

    def work(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
        if sizes.captured.interface.writes_text:
            read, runs = len(QUESTIONS) * (_PROMPT + TOKENS), _READ * ROUNDS
            yield work(_STAGE, compared=runs * read * sizes.multiplications, runs=runs * sizes.layers)

    def run(self, context: BuildContext, variant: VariantBuild) -> VariantBuild:
        if variant.record is None:
            raise ValueError(f"variant {variant.plan.name} is not written yet")
        if not context.captured.interface.writes_text:
            return variant
        manifest = manifest_of(context, (variant.record,))
        context.writer.write_manifest(manifest)
        with context.clock.stage(f"{variant.prefix}{_STAGE}"):
            backend = backend_of(variant.plan.target)
            variant.report.examples = backend.examples(variant, context.writer, manifest)
        return variant
