"""Chooses the codes of weights by what layers make of a text, where they are not rounded to nearest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from leptonc.build.calibration_text import texts_for_codes
from leptonc.build.context import BuildContext
from leptonc.build.memory_bound import ModelSizes
from leptonc.build.plan import BuildPlan
from leptonc.build.step import CalibratedStep
from leptonc.build.work import Work, reading, work
from leptonc.calibrate.code_solver import Solver
from leptonc.errors import InputError
from leptonc.formats import FORMATS
from leptonc.passes.quantize.methods import METHODS, ROUNDING
from leptonc.variant import VariantBuild, VariantPlan

IN_EIGHT = 0.5  # of the time of fewer bits, whose damping is chosen too


class ChooseCodes(CalibratedStep):
    """Does what `--method` and `--fast` ask for.

    The codes themselves are chosen when the pass that quantizes weights asks.
    """

    name: ClassVar[str] = "codes"
    version: ClassVar[int] = 3
    options: ClassVar[tuple[str, ...]] = ("method", "fast")
    text_option: ClassVar[str] = "--method gptq"

    def applies(self, plan: VariantPlan) -> bool:
        return bool(METHODS[plan.method].module)

    def check(self, plan: BuildPlan) -> None:
        method = plan.options.method
        if plan.options.fast and method not in (None, ROUNDING):
            raise InputError(
                f"expected no method with --fast, which rounds to nearest, found {method}", hint="leave out --fast"
            )

    def work(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
        (variant,) = plan.variants
        few = FORMATS[variant.scheme].bits < 8
        # Where inputs differ from the exact model's, that runs beside, and moments have a second sum.
        beside = few or variant.activations != "none"
        read = reading(plan, sizes, texts_for_codes(variant), graphs=1 + beside, moments=1.5 if beside else 0.5)
        part = 1.0 if few else IN_EIGHT
        yield work("pass calibrate", **read, fits=sizes.cubes, codes=part * sizes.multiplications)

    def run(self, context: BuildContext, variant: VariantBuild) -> VariantBuild:
        plan, calibration = variant.plan, context.calibration
        solve = Solver(
            calibration.texts_for(texts_for_codes(plan)), calibration.scratch, calibration.memory,
            calibration.clock.stage, variant.report.choices(), plan.method, calibration.step_cache,
            f"codes-{plan.name}",
        )  # fmt: skip
        return variant.choosing(solve=solve)
