"""Chooses the codes of weights by what layers make of a text, where they are not rounded to nearest."""

from __future__ import annotations

from typing import ClassVar

from leptonc.build.calibration_text import texts_for_codes
from leptonc.build.context import BuildContext
from leptonc.build.step import CalibratedStep
from leptonc.calibrate.code_solver import Solver
from leptonc.passes.quantize.methods import METHODS
from leptonc.variant import VariantBuild, VariantPlan


class ChooseCodes(CalibratedStep):
    """Does what `--method` asks for. The codes themselves are chosen when the pass that quantizes weights asks."""

    name: ClassVar[str] = "codes"
    options: ClassVar[tuple[str, ...]] = ("method",)
    text_option: ClassVar[str] = "--method gptq"

    def applies(self, plan: VariantPlan) -> bool:
        return bool(METHODS[plan.method].module)

    def run(self, context: BuildContext, variant: VariantBuild) -> VariantBuild:
        plan, calibration = variant.plan, context.calibration
        solve = Solver(
            calibration.texts_for(texts_for_codes(plan)), calibration.scratch, calibration.memory,
            calibration.clock.stage, variant.report.choices(), plan.method, calibration.step_cache,
            f"codes-{plan.name}",
        )  # fmt: skip
        return variant.choosing(solve=solve)
