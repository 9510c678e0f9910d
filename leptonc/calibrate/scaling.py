"""Activation-aware scaling: input channels that carry most get finer codes, and the graph computes the same.

Lin et al., AWQ (2023): a weight's input channel is multiplied by s before it is rounded, and what it reads is divided
by s, where that can be folded into what makes it. s = (root mean square of the channel)^strength, the strength searched
for each value by what its layers make of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.inputs import inputs_of
from leptonc.calibrate.moments import Moments
from leptonc.calibrate.stage_session import Weights
from leptonc.calibrate.staged_run import walk
from leptonc.calibrate.stages import Stage
from leptonc.ir.structure import Linear, weight_of
from leptonc.passes.columns import energy
from leptonc.passes.quantize.blocks import Format, dequantize, round_to_nearest
from leptonc.passes.quantize.smooth import Place, places

STRENGTHS = tuple(float(round(s, 2)) for s in np.linspace(0, 1, 11))


@dataclass(frozen=True)
class Scaling:
    """How one value that linear layers read is divided.

    Attributes:
        path: Of the first layer that reads it.
        strength: 0 for not at all.
        scales: float32 [width], which can be folded.
        error: Of the layers' outputs, as a part of them, the mean of the layers; unscaled: without it.
    """

    path: str
    strength: float
    scales: NDArray[np.float32]
    error: float
    unscaled: float


def scaled_by(moments: NDArray[Any], strength: float) -> NDArray[np.float32]:
    """Returns (mean square)^(strength / 2) of each channel, their geometric mean 1, float32 [width].

    Args:
        moments: Mean square of each channel [width]; one that is always zero has 1.
        strength: From 0, which changes nothing, to 1.
    """
    used = moments > 0
    logs = np.zeros(len(moments))
    logs[used] = np.log(moments[used]) * strength / 2
    logs[used] -= logs[used].mean() if used.any() else 0
    found: NDArray[np.float32] = np.exp(np.clip(logs, -9, 9)).astype(np.float32)
    return found


def choose(
    place: Place, forms: Sequence[Format | None], hessian: NDArray[Any], strengths: Sequence[float] = STRENGTHS
) -> Scaling:  # fmt: skip
    """Chooses the strength whose layers are off least with weights rounded to nearest; 0 is among those tried.

    Args:
        place: The value, and the layers that read it.
        forms: Format of each layer's weights; None for weights that stay as they are.
        hessian: Second moments of the value, [width, width].
        strengths: Those that are tried.
    """
    weights = [(weight_of(each), form) for each, form in zip(place.readers, forms, strict=True) if form is not None]
    wholes = [energy(weight, hessian) for weight, _ in weights]
    best: Scaling | None = None
    unscaled = 0.0
    for strength in strengths:
        scales = place.shared(scaled_by(np.diag(hessian), strength))
        errors = [
            energy(dequantize(round_to_nearest(weight * scales, form), form) / scales - weight, hessian) / whole
            for (weight, form), whole in zip(weights, wholes, strict=True)
            if whole > 0
        ]
        error = float(np.mean(errors)) if errors else 0.0
        unscaled = error if strength == 0 else unscaled
        if best is None or error < best.error:
            best = Scaling(place.readers[0].path, strength, scales, error, unscaled)
    assert best is not None
    return best


def scalings(
    model: ir.Model, windows: Sequence[NDArray[np.int64]], form: Callable[[Linear], Format | None], folder: Path, *,
    memory: int = 2**30, advance: Callable[[int], Any] = lambda _: None,
) -> list[Scaling]:  # fmt: skip
    """Runs a captured graph over a text and chooses, for each value that can be divided, by how much.

    Args:
        model: A captured graph; values get their types, nothing else changes.
        windows: Token ids int64 [length] of each text.
        form: Format of a layer's weights; None where they stay as they are.
        folder: For temporary files.
        memory: Bytes of activations kept in memory.
        advance: Called with 1 after each stage.

    Raises:
        InputError: An activation is not finite.
    """
    where = places(model)
    moments: dict[str, Moments] = {}
    found: list[Scaling] = []

    def see(stage: Stage, name: str, x: NDArray[Any]) -> None:
        if name in where:
            moments.setdefault(name, Moments(stage.linears[name][0].path, x.shape[-1])).add(x)

    def solve(stage: Stage) -> Weights:
        for name in stage.linears:
            if name in where:
                place = where[name]
                found.append(choose(place, [form(each) for each in place.readers], moments.pop(name).hessian()))
        return {}

    walk(model, [inputs_of(model, each) for each in windows], see, solve, folder, memory=memory, advance=advance)
    return [each for each in found if each.strength]
