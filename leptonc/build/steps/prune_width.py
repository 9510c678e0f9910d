"""What `--prune width:PCT` asks of a build: a narrower residual stream, and what makes up for it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from leptonc.calibrate.input_moments import InputMoments
from leptonc.calibrate.stage_session import Weights
from leptonc.calibrate.width import by_value, fitted_width
from leptonc.build.calibration_text import Calibration
from leptonc.errors import InputError
from leptonc.ir.groups import layer_weights
from leptonc.ir.residual import residual
from leptonc.ir.structure import multiplications
from leptonc.ir.weights import count_weights
from leptonc.passes.base import Manager
from leptonc.passes.prune.importance import step_within
from leptonc.passes.prune.width import SliceWidth, SliceWidthConfig, principal_axes
from leptonc.passes.rotate import FoldNorms, Rotate, RotateConfig

METHOD = "principal-components"
COMPENSATIONS = ("none", "least-squares")


def check(text: str, method: str | None, compensation: str | None, allocation: str | None) -> None:
    """Refuses options that slicing the width has no use for (raises `InputError`)."""
    for name, given in (("method", method), ("allocation", allocation)):
        if given is not None:
            raise InputError(
                f"expected no --prune-{name} with --prune {text}, found {given!r}",
                hint="the residual stream loses its least principal components, in all layers the same",
            )
    if compensation is not None and compensation not in COMPENSATIONS:
        raise InputError(
            f"expected with --prune {text} a compensation among {', '.join(COMPENSATIONS)}, found {compensation!r}"
        )


def slice_width(
    asked: str, share: float, compensation: str, calibration: Calibration, multiple: int, manager: Manager
) -> dict[str, Any]:  # fmt: skip
    """Cuts a share of the residual stream's features out of the captured model, in place; returns what to report.

    Args:
        asked: As the user wrote it.
        share: Of the features, above 0 and below 1.
        compensation: One of `COMPENSATIONS`.
        calibration: The model, and the text.
        multiple: What the targets' kernels like the width to be a multiple of.
        manager: Runs the passes.

    Raises:
        InputError: The residual stream cannot be cut, or nothing would be left of it.
    """
    captured, scratch = calibration.captured, calibration.scratch
    model = captured.model
    if not captured.task.cached:
        raise InputError(
            f"expected a decoder with --prune {asked}, found a model for {captured.task.name}, which returns its "
            "residual stream",
            hint="--prune 20% cuts heads and channels of any architecture",
        )
    size = residual(model).size
    step = step_within(size, multiple)
    kept = int((1 - share) * size + 1e-9) // step * step
    if kept == 0:
        raise InputError(
            f"expected a width of which at least {step} features stay, found {asked} of {size}",
            hint="a smaller share",
        )
    windows = calibration.windows
    before, macs, stored = layer_weights(model), multiplications(model), count_weights(model)
    manager.run(model, [FoldNorms()])
    firsts = [each[0] for each in by_value(residual(model).readers).values()]
    seen = InputMoments(
        model, firsts, windows, scratch, memory=calibration.memory, clock=calibration.clock.stage,
        kept=calibration.kept,
    )  # fmt: skip
    seen.gather()
    basis = principal_axes(seen[each] for each in firsts)
    manager.run(model, [Rotate(RotateConfig(METHOD), basis)])
    about: dict[str, Any] = {
        "asked": asked, "method": METHOD, "compensation": compensation,
        "calibration": {"text": calibration.name, "samples": len(windows), "tokens": sum(map(len, windows))},
        "width": {"before": size, "after": kept},
    }  # fmt: skip
    weights: Weights = {}
    if compensation != "none":
        weights, about["fitted"] = fitted_width(model, residual(model), seen, basis, kept, scratch)
    seen.drop()
    config = SliceWidthConfig(kept, size, compensation)
    manager.run(model, [SliceWidth(config, {name: partial(np.asarray, each) for name, each in weights.items()})])
    captured.parameters -= stored - count_weights(model)
    after = layer_weights(model)
    about["weights"] = {"before": before, "after": after}
    about["removed_percent"] = round(100 * (1 - after / before), 2)
    about["multiplications_a_token"] = {"before": macs, "after": multiplications(model)}
    return about
