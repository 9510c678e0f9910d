"""What a build chooses by its calibration text: formats, scales and codes, for each variant before it is lowered."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.backends import backend_of
from leptonc.backends.traits import traits_of
from leptonc.build.steps.spend_budget import spend
from leptonc.calibrate.activations import (
    ROUNDED,
    SOLVED,
    choices,
    describe,
    divergences,
    kept_higher,
    static_of,
    widened,
    with_layers,
    without_layers,
)
from leptonc.calibrate.caches import cache_scales
from leptonc.calibrate.choice import Choice
from leptonc.calibrate.scaling import Scaling, scalings
from leptonc.calibrate.code_solver import Solver
from leptonc.calibrate.stages import linear_stages
from leptonc.build.calibration_text import LOOKS, WINDOWS, Calibration
from leptonc.passes.quantize.smooth import SmoothLinears, SmoothLinearsConfig
from leptonc.passes.quantize.static import StaticActivations
from leptonc.variant import ROUNDING, Choices, VariantBuild, VariantPlan


def looks(plan: VariantPlan) -> int:
    """Returns how many texts a variant's codes come from: eight bits leave so little error that fewer tell as much."""
    return LOOKS if plan.scheme == "int8" and plan.budget is None else WINDOWS


def choose(calibration: Calibration, variant: VariantBuild, model: ir.Model) -> Choices:
    """Returns what the text chooses for a variant: what has more bits, and what finds codes. Its report gets both."""
    plan = variant.plan
    if not plan.calibrated:
        return variant.choices
    windows = calibration.windows
    about: dict[str, Any] = {
        "method": plan.method,
        "calibration": {"text": calibration.name, "samples": len(windows), "tokens": sum(map(len, windows))},
    }
    variant.report["quantization"] = about
    if plan.kv_cache is not None:
        caches = [name for each in model.graph.inputs if (name := str(each.name)).startswith("past_key_values.")]
        scales = calibration.walked(
            f"cache-{plan.name}", "cache ranges", model, dict[str, NDArray[np.float32]],
            partial(cache_scales, model, calibration.texts_for(LOOKS)),
            lambda found: {name: found[name] for name in caches},
        )  # fmt: skip
        variant = variant.choosing(cache_scales=scales)
    if plan.prefill is not None:
        variant.report["prefill"] = prefill = {"weights": plan.prefill, "calibration": about["calibration"]}
        inputs = _activations(calibration, variant, model, prefill, "prefill", solved=False)
        layers = variant.choices.layers  # without those that the budget raises
        variant = variant.choosing(prompt_inputs=inputs, prompt_layers=layers)
    if plan.budget is not None:
        variant = dataclasses.replace(variant, choices=spend(calibration, variant, model, plan.budget, about))
    if plan.activations == "int8":
        inputs = _activations(calibration, variant, model, about, "activations", solved=plan.method == "gptq")
        variant = variant.choosing(inputs=inputs)
    if plan.method == "awq":
        variant = variant.choosing(scaling=_scaling(calibration, variant, model, about))
    if plan.method != ROUNDING:
        texts = calibration.texts_for(looks(plan))
        solve = Solver(
            texts, calibration.scratch, calibration.memory, calibration.clock.stage, about, plan.method,
            calibration.kept, f"codes-{plan.name}",
        )  # fmt: skip
        variant = variant.choosing(solve=solve)
    return variant.choices


def _scaling(calibration: Calibration, variant: VariantBuild, model: ir.Model, about: dict[str, Any]) -> SmoothLinears:
    """Chooses which channels of weights get finer codes; `about` is told."""
    form_of = backend_of(variant.plan.target).config_of(variant.plan, variant.choices).form_of
    found = calibration.walked(
        f"scaling-{variant.plan.name}", "scaling", model, list[Scaling],
        partial(scalings, model, calibration.texts_for(LOOKS), form_of), cut=linear_stages,
    )  # fmt: skip
    about["scaling"] = [
        {"path": each.path, "strength": each.strength, "error": round(each.error, 6),
         "unscaled": round(each.unscaled, 6)}
        for each in found
    ]  # fmt: skip
    strengths = tuple((each.path, each.strength) for each in found)
    return SmoothLinears(SmoothLinearsConfig(strengths), {each.path: each.scales for each in found})


def _activations(
    calibration: Calibration, variant: VariantBuild, model: ir.Model, about: dict[str, Any], name: str, *, solved: bool
) -> StaticActivations:  # fmt: skip
    """Chooses how the inputs of linear layers become integers, and which stay as they are; `about` is told.

    `name` tells the graph's steps from another's; `solved` says that GPTQ will choose the codes of the weights.
    """
    symmetric = traits_of(variant.plan.target).symmetric_inputs
    weights = SOLVED if solved else ROUNDED

    def look(folder: Path, **more: Any) -> list[Choice]:
        texts = calibration.texts_for(LOOKS)
        found = choices(model, texts, variant.plan.calibrator, folder, symmetric=symmetric, weights=weights, **more)
        return without_layers(found)

    found = calibration.walked(
        f"{name}-{variant.plan.name}", "activations", model, list[Choice], look, lambda bare: with_layers(bare, model),
        cut=linear_stages,
    )  # fmt: skip
    errors = calibration.walked(
        f"{name}-divergences-{variant.plan.name}", "sensitivity", model, dict[str, float],
        partial(divergences, model, calibration.trials(), found, paired=None if solved else not symmetric),
        lambda errors: {each.path: errors[each.path] for each in found},
    )  # fmt: skip
    fixed = {path for each in variant.choices.layers for path in each.paths}
    kept = {each.path for each in found if any(linear.path in fixed for linear in each.linears)}
    wide: set[str] = set()
    if symmetric:  # TensorRT has integers of 8 bits alone
        kept |= kept_higher(found, errors)
    else:
        wide = widened(found, errors) - kept
    about["activations"] = describe(found, errors, kept, variant.plan.calibrator, wide)
    return static_of(found, kept, symmetric=symmetric, wide=wide)
