"""Chooses how the inputs of linear layers become 8-bit integers in a graph that prompts go through."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from leptonc.build.calibration_text import WEIGHING
from leptonc.build.context import BuildContext
from leptonc.build.memory_bound import ModelSizes
from leptonc.build.plan import BuildPlan
from leptonc.build.static_inputs import static_inputs, static_work
from leptonc.build.step import CalibratedStep, Need
from leptonc.build.work import Work
from leptonc.report.variant import Prefill
from leptonc.variant import VariantBuild, VariantPlan


class QuantizePromptInputs(CalibratedStep):
    """Chooses for `--prefill`; it comes before a budget, whose raised layers are not the second graph's."""

    name: ClassVar[str] = "prompt activations"
    text_option: ClassVar[str] = "--prefill"

    def applies(self, plan: VariantPlan) -> bool:
        return plan.prefill is not None

    def needs(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Need]:
        yield from super().needs(plan, sizes)
        yield Need("weighing layers", WEIGHING + sizes.largest, keeps_activations=True)

    def work(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
        return static_work(plan, sizes)

    def run(self, context: BuildContext, variant: VariantBuild) -> VariantBuild:
        variant.report.prefill = about = Prefill(
            weights=variant.plan.prefill or "", calibration=context.calibration.describe()
        )  # fmt: skip
        inputs = static_inputs(context.calibration, variant, about, "prefill", solved=False)
        return variant.choosing(prompt_inputs=inputs, prompt_layers=variant.choices.layers)
