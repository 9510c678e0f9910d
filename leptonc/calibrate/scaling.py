"""Activation-aware scaling: weights of the largest input channels get finer codes. The graph computes the same.

Lin et al., AWQ (2023): a weight's input channel is multiplied by s before it is rounded, and the input is divided by s,
where the division can be folded into what makes the input. s = (root mean square of the channel)^strength. The strength
is searched for each value: the best one has the least error of the layers' outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.moments import Moments
from leptonc.calibrate.stage_session import Weights
from leptonc.calibrate.staged_run import walk
from leptonc.calibrate.stages import Stage
from leptonc.ir.ports import inputs_of
from leptonc.ir.structure import Linear, weight_of
from leptonc.passes.columns import energy
from leptonc.passes.quantize.blocks import Format, dequantize, round_to_nearest
from leptonc.passes.quantize.smooth import Place, places

STRENGTHS = tuple(float(round(s, 2)) for s in np.linspace(0, 1, 11))


@dataclass(frozen=True)
class Scaling:
    """How one value that linear layers read is divided.

    Attributes:
        path: Path of the first layer that reads the value.
        strength: From 0, which changes nothing, to 1.
        scales: What the value is divided by, float32 [width].
        error: Mean over the layers of their outputs' error, as a part of the outputs' energy.
        unscaled: The same without scaling.
    """

    path: str
    strength: float
    scales: NDArray[np.float32]
    error: float
    unscaled: float


def scaled_by(moments: NDArray[Any], strength: float) -> NDArray[np.float32]:
    """Returns (mean square)^(strength / 2) of each channel, normalized to a geometric mean of 1, float32 [width].

    Args:
        moments: Mean square of each channel [width]. A channel that is always zero gets a scale of 1.
        strength: From 0, which changes nothing, to 1.
    """
    used = moments > 0
    logs = np.zeros(len(moments))
    logs[used] = np.log(moments[used]) * strength / 2
    logs[used] -= logs[used].mean() if used.any() else 0
    scales: NDArray[np.float32] = np.exp(np.clip(logs, -9, 9)).astype(np.float32)
    return scales


def choose(
    place: Place, forms: Sequence[Format | None], hessian: NDArray[Any], strengths: Sequence[float] = STRENGTHS
) -> Scaling:  # fmt: skip
    """Chooses the strength with the least error of the layers' outputs, weights rounded to nearest.

    Args:
        place: The value, and the layers that read it.
        forms: Format of each layer's weights; None for weights that stay as they are.
        hessian: Second moments of the value, [width, width].
        strengths: Candidates, 0 among them. Default: `STRENGTHS`.
    """
    weights = [(weight_of(reader), form) for reader, form in zip(place.readers, forms, strict=True) if form is not None]
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
    """Runs a captured graph over a text, and chooses the scales of each value that can be divided.

    Args:
        model: A captured graph; values get their types, nothing else changes.
        windows: Token ids int64 [length] of each text.
        form: Returns the format of a layer's weights, or None where they stay as they are.
        folder: For temporary files.
        memory: Bytes of activations that are kept in memory. Others wait on disk. Default: 1 GiB.
        advance: Called with 1 after each stage. Default: nothing is called.

    Raises:
        InputError: An activation is not finite.
    """
    where = places(model)
    moments: dict[str, Moments] = {}
    chosen: list[Scaling] = []

    def observer(stage: Stage, name: str, x: NDArray[Any]) -> None:
        if name in where:
            moments.setdefault(name, Moments(stage.linears[name][0].path, x.shape[-1])).add(x)

    def solve(stage: Stage) -> Weights:
        for name in stage.linears:
            if name in where:
                place = where[name]
                chosen.append(choose(place, [form(reader) for reader in place.readers], moments.pop(name).hessian()))
        return {}

    texts = [inputs_of(model, window) for window in windows]
    walk(model, texts, observer, solve, folder, memory=memory, advance=advance)
    return [scaling for scaling in chosen if scaling.strength]
