"""Chooses how the inputs of linear layers become 8-bit integers, for a graph and for one that prompts go through."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from leptonc.backends.traits import traits_of
from leptonc.build.calibration_text import LOOKS, TRIAL, TRIALS, Calibration
from leptonc.build.memory_bound import ModelSizes
from leptonc.build.plan import BuildPlan
from leptonc.build.work import Work, changing, reading, work
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
from leptonc.calibrate.choice import Choice
from leptonc.calibrate.stages import linear_stages
from leptonc.passes.quantize.static import StaticActivations
from leptonc.report.quantization import Quantization
from leptonc.report.variant import Prefill
from leptonc.variant import VariantBuild


def static_work(plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
    """Returns what `static_inputs` does; see `Step.work`."""
    yield work("activations", **reading(plan, sizes, LOOKS, "ranges", moments=0.5))
    yield work("sensitivity", **changing(sizes, len(sizes.inputs), TRIALS, TRIAL // 2))


def static_inputs(
    calibration: Calibration, variant: VariantBuild, about: Quantization | Prefill, name: str, *, solved: bool
) -> StaticActivations:  # fmt: skip
    """Chooses which inputs become integers and which stay as they are.

    Args:
        calibration: Has the text.
        variant: Its graph is not changed.
        about: Gets `activations`, what the report says of them.
        name: Tells the graph's results in the cache of steps from another's.
        solved: Whether GPTQ will choose the codes of the weights.
    """
    model, plan = variant.graph, variant.plan
    symmetric = traits_of(plan.target).symmetric_inputs
    weights = SOLVED if solved else ROUNDED

    def gather(folder: Path, **more: Any) -> list[Choice]:
        texts = calibration.texts_for(LOOKS)
        return without_layers(
            choices(model, texts, plan.calibrator, folder, symmetric=symmetric, weights=weights, **more)
        )  # fmt: skip

    chosen = calibration.cached_walk(
        f"{name}-{plan.name}", "activations", model, list[Choice], gather, lambda bare: with_layers(bare, model),
        cut=linear_stages,
    )  # fmt: skip
    errors = calibration.cached_walk(
        f"{name}-divergences-{plan.name}", "sensitivity", model, dict[str, float],
        partial(divergences, model, calibration.trials(), chosen, paired=None if solved else not symmetric),
        lambda errors: {choice.path: errors[choice.path] for choice in chosen},
    )  # fmt: skip
    fixed = {path for form in variant.choices.layers for path in form.paths}
    unquantized = {choice.path for choice in chosen if any(linear.path in fixed for linear in choice.linears)}
    wide: set[str] = set()
    if symmetric:  # TensorRT has integers of 8 bits alone
        unquantized |= kept_higher(chosen, errors)
    else:
        wide = widened(chosen, errors) - unquantized
    about.activations = describe(chosen, errors, unquantized, plan.calibrator, wide)
    return static_of(chosen, unquantized, symmetric=symmetric, wide=wide)
