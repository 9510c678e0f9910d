"""Cuts features out of the residual stream, in all layers the same, and fits the weights that read what is left."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import ClassVar

import numpy as np

from leptonc.backends.traits import traits_of
from leptonc.build.calibration_text import WINDOWS
from leptonc.build.context import BuildContext
from leptonc.build.memory_bound import ModelSizes
from leptonc.build.plan import BuildPlan
from leptonc.build.step import ModelStep, Need, layer_need
from leptonc.build.work import Work, reading, work
from leptonc.calibrate.input_moments import InputMoments
from leptonc.calibrate.stage_session import Weights
from leptonc.calibrate.width import by_value, fitted_width
from leptonc.errors import InputError
from leptonc.ir.groups import layer_weights
from leptonc.ir.residual import residual
from leptonc.ir.structure import multiplications
from leptonc.ir.weights import count_weights
from leptonc.passes.prune.importance import step_within
from leptonc.passes.prune.request import Request
from leptonc.passes.prune.width import SliceWidth, SliceWidthConfig, principal_axes
from leptonc.passes.rotate import FoldNorms, Rotate, RotateConfig
from leptonc.report.pruning import FittedLayer, Pruning
from leptonc.report.section import Change

METHOD = "principal-components"
COMPENSATIONS = ("none", "least-squares")


class PruneWidth(ModelStep):
    """Does what `--prune width:PCT` asks for: the residual stream loses its least principal components (SliceGPT,
    arXiv:2401.15024).

    Raises:
        InputError: The residual stream cannot be cut, or nothing would be left of it.
    """

    name: ClassVar[str] = "prune width"
    text_option: ClassVar[str] = "--prune"

    def wanted(self, plan: BuildPlan) -> bool:
        return plan.prune is not None and plan.prune.width > 0

    def texts(self, plan: BuildPlan) -> int:
        return WINDOWS if self.wanted(plan) else 0

    def check(self, plan: BuildPlan) -> None:
        if not self.wanted(plan):
            return
        options = plan.options
        for name, given in (("method", options.prune_method), ("allocation", options.prune_allocation)):
            if given is not None:
                raise InputError(
                    f"expected no --prune-{name} with --prune {options.prune}, found {given!r}",
                    hint="the residual stream loses its least principal components, in all layers the same",
                )
        if options.prune_compensation not in (None, *COMPENSATIONS):
            raise InputError(
                f"expected with --prune {options.prune} a compensation among {', '.join(COMPENSATIONS)}, found "
                f"{options.prune_compensation!r}"
            )

    def needs(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Need]:
        yield layer_need(sizes)

    def work(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
        yield work("prune moments", **reading(plan, sizes, self.texts(plan), moments=0.5))
        yield work("prune compensate", fits=sizes.cubes)

    def run(self, context: BuildContext) -> BuildContext:
        if context.plan.prune is not None:
            compensation = context.plan.options.prune_compensation or "least-squares"
            context.report.pruning = _cut(context, context.plan.prune, compensation)
        return context


def _cut(context: BuildContext, request: Request, compensation: str) -> Pruning:
    """Cuts the captured model in place; returns what to report."""
    asked, share = request.text, request.width
    multiple = max(traits_of(variant.plan.target).channel_multiple for variant in context.variants)
    captured, calibration = context.captured, context.calibration
    model, scratch = captured.model, calibration.scratch
    if not captured.interface.writes_text:
        raise InputError(
            f"expected a decoder with --prune {asked}, found a model for {captured.task.name}, which returns its "
            "residual stream",
            hint="--prune 20% cuts heads and channels of any architecture",
        )
    size = residual(model).size
    step = step_within(size, multiple)
    width = int((1 - share) * size + 1e-9) // step * step
    if width == 0:
        raise InputError(
            f"expected a width of which at least {step} features stay, found {asked} of {size}",
            hint="a smaller share",
        )
    windows = calibration.windows
    before, macs, stored = layer_weights(model), multiplications(model), count_weights(model)
    context.run_passes([FoldNorms()])
    firsts = [layer[0] for layer in by_value(residual(model).readers).values()]
    moments = InputMoments(
        model, firsts, windows, scratch, memory=calibration.memory, clock=calibration.clock.stage,
        step_cache=calibration.step_cache,
    )  # fmt: skip
    moments.gather()
    basis = principal_axes(moments[layer] for layer in firsts)
    context.run_passes([Rotate(RotateConfig(METHOD), basis)])
    weights: Weights = {}
    fitted: list[FittedLayer] | None = None
    if compensation != "none":
        weights, fitted = fitted_width(model, residual(model), moments, basis, width, scratch)
    moments.drop()
    config = SliceWidthConfig(width, size, compensation)
    context.run_passes([SliceWidth(config, {name: partial(np.asarray, layer) for name, layer in weights.items()})])
    captured.resized(count_weights(model) - stored)
    after = layer_weights(model)
    return Pruning(
        asked=asked, method=METHOD, compensation=compensation, calibration=calibration.describe(),
        width=Change(before=size, after=width), fitted=fitted, weights=Change(before=before, after=after),
        removed_percent=round(100 * (1 - after / before), 2),
        multiplications_a_token=Change(before=macs, after=multiplications(model)),
    )  # fmt: skip
