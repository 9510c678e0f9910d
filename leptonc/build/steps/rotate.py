"""Gives the residual stream a random basis: in it no feature is far larger than others, so that less is rounded off."""

from __future__ import annotations

from typing import ClassVar

from leptonc.build.context import BuildContext
from leptonc.build.plan import BuildPlan
from leptonc.build.step import ModelStep
from leptonc.ir.residual import residual
from leptonc.ir.weights import count_weights
from leptonc.passes.rotate import FoldNorms, Rotate, RotateConfig, random_basis


class RotateResidual(ModelStep):
    """Folds the gains of norms into what reads them, and a random rotation into all weights at the residual stream."""

    name: ClassVar[str] = "rotate"
    options: ClassVar[tuple[str, ...]] = ("rotate",)

    def wanted(self, plan: BuildPlan) -> bool:
        return plan.options.rotate

    def run(self, context: BuildContext) -> BuildContext:
        captured, seed = context.captured, context.plan.options.seed
        before = count_weights(captured.model)
        context.run_passes([FoldNorms()])
        basis = random_basis(residual(captured.model).size, seed)
        context.run_passes([Rotate(RotateConfig(f"random, seed {seed}"), basis)])
        captured.resized(count_weights(captured.model) - before)  # gains that could not be folded
        return context
