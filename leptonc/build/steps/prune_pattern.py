"""What `--prune 2:4` asks of a build: targets that gain by it, the weights, and what the report says of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leptonc.calibrate.sparse import sparse_weights
from leptonc.calibrate.stages import stages
from leptonc.errors import InputError
from leptonc.ir.structure import Linear
from leptonc.passes.base import Manager
from leptonc.passes.prune.sparse import (
    METHODS,
    PATTERN,
    Sparsify,
    SparsifyConfig,
    candidates,
    dense_layers,
    magnitude,
    nonzero,
)
from leptonc.variant import ROUNDING, VariantPlan

if TYPE_CHECKING:
    from leptonc.build.calibration_text import Calibration


def check(method: str | None, compensation: str | None, allocation: str | None) -> None:
    """Refuses options of pruning that the pattern has no use for (raises `InputError`)."""
    if method is not None and method not in METHODS:
        raise InputError(
            f"expected with --prune {PATTERN} a pruning method among {', '.join(METHODS)}, found {method!r}",
            hint="--prune 25% cuts by the others",
        )
    for name, given in (("compensation", compensation), ("allocation", allocation)):
        if given is not None:
            raise InputError(
                f"expected no --prune-{name} with --prune {PATTERN}, found {given!r}",
                hint="sparsegpt makes up for what goes, magnitude does not; every layer loses the same share",
            )


def check_plan(plan: VariantPlan) -> None:
    """Refuses a variant that would gain nothing by 2:4 weights, or fill their zeros, before anything is opened.

    Raises:
        InputError: The target has no sparse tensor cores, or codes are chosen by a method that moves zeros.
    """
    if not plan.sparse:
        return
    if not plan.target.sparse_capabilities:
        raise InputError(
            f"expected a target with sparse tensor cores (NVIDIA's from Ampere on) for --prune {PATTERN}, found "
            f"{plan.target.spec}",
            hint="--target jetson-orin, jetson-thor, rtx or rtx-30 and up; --prune 25% makes a model smaller anywhere",
        )
    if plan.method != ROUNDING:
        raise InputError(
            f"expected method rtn with --prune {PATTERN}, found {plan.method}, which gives zeros other values",
            hint="leave out --method: rounding keeps zeros",
        )


def sparsify(method: str | None, calibration: Calibration, manager: Manager) -> dict[str, Any]:
    """Gives a build's captured model 2:4 weights in place, before its variants part.

    Args:
        method: Of `METHODS`; None for the first.
        calibration: The text, which magnitude does not look at.
        manager: Runs the pass.

    Returns:
        What the report says of it.

    Raises:
        InputError: No linear layer can have the pattern, or activations are not finite.
    """
    model, method = calibration.captured.model, method or METHODS[0]
    found = {str(linear.weight.name): linear for linear in candidates(model)}
    about: dict[str, Any] = {"asked": PATTERN, "method": method, "left_dense": dense_layers(model)}
    weights: Mapping[str, Callable[[], NDArray[np.float32]]]
    if method == "magnitude":
        # What a layer has now is what it reads then: the pass gives its initializer another tensor.
        weights = {name: partial(_largest, linear, linear.weight.const_value) for name, linear in found.items()}
    else:
        windows = calibration.windows
        about["calibration"] = {
            "text": calibration.name, "samples": len(windows), "tokens": sum(map(len, windows)),
        }  # fmt: skip
        with calibration.clock.stage("prune calibrate", len(stages(model))) as advance:
            made, about["linears"] = sparse_weights(
                model, windows, calibration.scratch, memory=calibration.memory, advance=advance,
                kept=calibration.kept,
            )  # fmt: skip
        weights = {name: partial(np.asarray, array) for name, array in made.items()}
    with calibration.clock.stage("prune"):
        before = nonzero(model)
        manager.run(model, [Sparsify(SparsifyConfig(method), weights)])
        after = nonzero(model)
    about["weights"] = {"before": before, "after": after}
    about["removed_percent"] = round(100 * (1 - after / max(1, before)), 2)
    return about


def _largest(linear: Linear, tensor: Any) -> NDArray[np.float32]:
    array = np.asarray(tensor.numpy(), np.float32)
    return magnitude(array) if linear.transposed else magnitude(array.T).T
