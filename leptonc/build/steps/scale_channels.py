"""Chooses which channels of weights get finer codes, by what a text sends through them (AWQ, arXiv:2306.00978)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import ClassVar

from leptonc.backends import backend_of
from leptonc.build.calibration_text import LOOKS
from leptonc.build.context import BuildContext
from leptonc.build.memory_bound import ModelSizes
from leptonc.build.plan import BuildPlan
from leptonc.build.step import CalibratedStep
from leptonc.build.work import Work, reading, work
from leptonc.calibrate.scaling import STRENGTHS, Scaling, scalings
from leptonc.calibrate.stages import linear_stages
from leptonc.passes.quantize.methods import METHODS
from leptonc.passes.quantize.smooth import SmoothLinears, SmoothLinearsConfig
from leptonc.report.quantization import ScaledInput
from leptonc.variant import VariantBuild, VariantPlan


class ScaleChannels(CalibratedStep):
    """Comes before the codes of a method that scales channels, which `--method awq` asks for."""

    name: ClassVar[str] = "scaling"

    def applies(self, plan: VariantPlan) -> bool:
        return METHODS[plan.method].scales_channels

    def work(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
        yield work("scaling", **reading(plan, sizes, LOOKS, moments=0.5), fits=len(STRENGTHS) * sizes.solved)

    def run(self, context: BuildContext, variant: VariantBuild) -> VariantBuild:
        model, plan, calibration = variant.graph, variant.plan, context.calibration
        form_of = backend_of(plan.target).config_of(plan, variant.choices).form_of
        chosen = calibration.cached_walk(
            f"scaling-{plan.name}", "scaling", model, list[Scaling],
            partial(scalings, model, calibration.texts_for(LOOKS), form_of), cut=linear_stages,
        )  # fmt: skip
        variant.report.choices().scaling = [
            ScaledInput(
                path=scaling.path, strength=scaling.strength, error=round(scaling.error, 6),
                unscaled=round(scaling.unscaled, 6),
            )
            for scaling in chosen
        ]  # fmt: skip
        strengths = tuple((scaling.path, scaling.strength) for scaling in chosen)
        scales = {scaling.path: scaling.scales for scaling in chosen}
        return variant.choosing(scaling=SmoothLinears(SmoothLinearsConfig(strengths), scales))
