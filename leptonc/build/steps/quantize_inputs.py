"""Chooses how the inputs of linear layers become 8-bit integers with scales that are known before the model runs."""

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
from leptonc.passes.quantize.methods import METHODS
from leptonc.variant import VariantBuild, VariantPlan


class QuantizeInputs(CalibratedStep):
    """Does what `--activations int8` asks for."""

    name: ClassVar[str] = "activations"
    options: ClassVar[tuple[str, ...]] = ("activations", "calibrator")
    text_option: ClassVar[str] = "--activations int8"

    def applies(self, plan: VariantPlan) -> bool:
        return plan.activations == "int8"

    def needs(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Need]:
        yield from super().needs(plan, sizes)
        yield Need("weighing layers", WEIGHING + sizes.largest, keeps_activations=True)

    def work(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
        return static_work(plan, sizes)

    def run(self, context: BuildContext, variant: VariantBuild) -> VariantBuild:
        about, solved = variant.report.choices(), METHODS[variant.plan.method].makes_up
        inputs = static_inputs(context.calibration, variant, about, "activations", solved=solved)
        return variant.choosing(inputs=inputs)
