"""Holds what was measured against the bound on quality that is asked for."""

from __future__ import annotations

from typing import ClassVar

from leptonc.build.advice import advice, prompts_advice
from leptonc.build.context import BuildContext
from leptonc.build.plan import BuildPlan
from leptonc.build.step import VariantStep
from leptonc.evaluate.bounds import judge, measured, require_same
from leptonc.variant import VariantBuild, VariantPlan

_FEWER = "more bits (--weights int8), smaller blocks (--block-size 16), --asymmetric or no --prune lose less"


class Judge(VariantStep):
    """Refuses a variant that lost more than `--max-loss`, and one in float32 that is not the model itself.

    Raises:
        BoundError: It lost more.
        CaptureError: It is not the model.
    """

    name: ClassVar[str] = "judge"
    several_parts: ClassVar[bool] = True

    def applies(self, plan: VariantPlan) -> bool:
        return plan.check

    def run(self, context: BuildContext, variant: VariantBuild) -> VariantBuild:
        plan, fidelity = variant.plan, measured(variant.report.fidelity)
        judge(fidelity, context.plan.options.max_loss, plan.target.spec, advice(variant) or _FEWER)
        if _is_exact(context.plan, plan):
            require_same(fidelity, plan.target.spec)
        return variant


class JudgePrompts(VariantStep):
    """Does the same for a graph that prompts go through, which always loses something."""

    name: ClassVar[str] = "judge prompts"

    def applies(self, plan: VariantPlan) -> bool:
        return plan.check and plan.prefill is not None

    def run(self, context: BuildContext, variant: VariantBuild) -> VariantBuild:
        where = f"{variant.plan.target.spec} in prompts"
        fidelity = measured(variant.report.prompts().fidelity)
        judge(fidelity, context.plan.options.max_loss, where, prompts_advice(variant))
        return variant


def _is_exact(plan: BuildPlan, variant: VariantPlan) -> bool:
    """Returns whether a variant is the model itself: float32 throughout, nothing cut and nothing learnt."""
    options = plan.options
    changed = (options.prune, options.heal, options.prefill, options.kv_cache, variant.embeddings, variant.budget)
    return variant.scheme == "fp32" and options.activations == "none" and not options.layers and not any(changed)
