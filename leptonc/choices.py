"""What a build chooses by its calibration text: formats, scales and codes, for each variant before it is lowered."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.backends import MODULES, Job, backend_of
from leptonc.budget import spend
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
from leptonc.calibrate.solve import Solver
from leptonc.calibrate.walk import linear_stages
from leptonc.calibration import LOOKS, WINDOWS, Calibration
from leptonc.passes.quantize.smooth import SmoothLinears, SmoothLinearsConfig
from leptonc.passes.quantize.static import StaticActivations


def looks(job: Job) -> int:
    """Returns how many texts a job's codes come from: eight bits leave so little error that fewer tell as much."""
    return LOOKS if job.scheme == "int8" and job.budget is None else WINDOWS


def choose(calibration: Calibration, job: Job, model: ir.Model) -> None:
    """Gives a job what it needs: what is kept in more bits, and what chooses codes; its report says both."""
    if not job.calibrated:
        return
    windows = calibration.windows
    about: dict[str, Any] = {
        "method": job.method,
        "calibration": {"text": calibration.name, "samples": len(windows), "tokens": sum(map(len, windows))},
    }
    job.report["quantization"] = about
    if job.kv_cache is not None:
        caches = [name for each in model.graph.inputs if (name := str(each.name)).startswith("past_key_values.")]
        job.cache_scales = calibration.walked(
            f"cache-{job.name}", "cache ranges", model, dict[str, NDArray[np.float32]],
            partial(cache_scales, model, calibration.texts_for(LOOKS)),
            lambda found: {name: found[name] for name in caches},
        )  # fmt: skip
    if job.prefill is not None:
        job.report["prefill"] = prefill = {"weights": job.prefill, "calibration": about["calibration"]}
        job.prefill_static = _activations(calibration, job, model, prefill, "prefill", solved=False)
        job.prefill_layers = job.layers  # without those that the budget raises
    if job.budget is not None:
        spend(calibration, job, model, job.budget, about)
    if job.activations == "int8":
        job.static = _activations(calibration, job, model, about, "activations", solved=job.method == "gptq")
    if job.method == "awq":
        job.scaling = _scaling(calibration, job, model, about)
    if job.method != "rtn":
        texts = calibration.texts_for(looks(job))
        job.solve = Solver(
            texts, calibration.scratch, calibration.memory, calibration.clock.stage, about, job.method,
            calibration.kept, f"codes-{job.name}",
        )  # fmt: skip


def _scaling(calibration: Calibration, job: Job, model: ir.Model, about: dict[str, Any]) -> SmoothLinears:
    """Chooses which channels of weights get finer codes; `about` is told."""
    form_of = backend_of(job.target).config_of(job).form_of
    found = calibration.walked(
        f"scaling-{job.name}", "scaling", model, list[Scaling],
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
    calibration: Calibration, job: Job, model: ir.Model, about: dict[str, Any], name: str, *, solved: bool
) -> StaticActivations:  # fmt: skip
    """Chooses how the inputs of linear layers become integers, and which stay as they are; `about` is told.

    `name` tells the graph's steps from another's; `solved` says that GPTQ will choose the codes of the weights.
    """
    symmetric = MODULES[job.target.backend] == MODULES["tensorrt"]
    weights = SOLVED if solved else ROUNDED

    def look(folder: Path, **more: Any) -> list[Choice]:
        texts = calibration.texts_for(LOOKS)
        found = choices(model, texts, job.calibrator, folder, symmetric=symmetric, weights=weights, **more)
        return without_layers(found)

    found = calibration.walked(
        f"{name}-{job.name}", "activations", model, list[Choice], look, lambda bare: with_layers(bare, model),
        cut=linear_stages,
    )  # fmt: skip
    errors = calibration.walked(
        f"{name}-divergences-{job.name}", "sensitivity", model, dict[str, float],
        partial(divergences, model, calibration.trials(), found, paired=None if solved else not symmetric),
        lambda errors: {each.path: errors[each.path] for each in found},
    )  # fmt: skip
    fixed = {path for each in job.layers for path in each.paths}
    kept = {each.path for each in found if any(linear.path in fixed for linear in each.linears)}
    wide: set[str] = set()
    if symmetric:  # TensorRT has integers of 8 bits alone
        kept |= kept_higher(found, errors)
    else:
        wide = widened(found, errors) - kept
    about["activations"] = describe(found, errors, kept, job.calibrator, wide)
    return static_of(found, kept, symmetric=symmetric, wide=wide)
