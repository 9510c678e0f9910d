"""Sections on what calibration chose: codes, scales, and what has more bits."""

from __future__ import annotations

import msgspec

from leptonc.report.quality import Recovery
from leptonc.report.section import CalibrationText, Section


class Budget(Section, kw_only=True):
    """What became of a bound on size.

    Attributes:
        bytes: Bytes of graph and weights that were asked for.
        least: Bytes with all weights in 4 bits.
        spent: Bytes spent on weights of 8 bits.
        embeddings: The number format of the embedding that was chosen; null where it stays as it is.
    """

    bytes: int
    least: int
    spent: int
    embeddings: str | msgspec.UnsetType | None = msgspec.UNSET


class LayerSensitivity(Section, kw_only=True):
    """What 4 bits in one layer do to the model's output.

    Attributes:
        path: Its module path.
        bits: Bits of its weights under the budget.
        error: Mean divergence of the output with this layer alone in 4 bits, nats.
    """

    path: str
    bits: int
    error: float


class SolvedLayer(Section, kw_only=True):
    """A linear layer whose codes were chosen by what it makes of the text.

    Attributes:
        path: Its module path.
        error: Error of its outputs, as a part of their energy.
        damping: What was added to the hessian's diagonal, as a part of its mean.
    """

    path: str
    error: float
    damping: float | None = None


class ScaledInput(Section, kw_only=True):
    """A value whose features were divided by scales, so that the weights of some have finer codes.

    Attributes:
        path: Module path of the first linear layer that reads it.
        strength: Exponent of the scales, 0 to 1; with 0 nothing is scaled.
        error: Error of its layers' outputs with these scales, as a part of their energy.
        unscaled: The same error without scales.
    """

    path: str
    strength: float
    error: float
    unscaled: float


class QuantizedInput(Section, kw_only=True):
    """A value that linear layers read, and its integers.

    Attributes:
        layers: Module paths of the layers that read it.
        bits: 8 or 16; 32 where it stays as it is.
        range: Least and largest value on the text.
        scale: What a step of the integers is worth.
        zero: The integer of zero.
        outliers: Features that are computed apart, in float.
        smoothing: How much of the difficulty goes to the weights, 0 to 1.
        error: Error of the layers' outputs, as a part of their energy.
        error_unsmoothed: The same error without smoothing.
        divergence: What rounding it alone does to the model's output, nats.
    """

    layers: list[str]
    bits: int
    range: tuple[float, float]
    scale: float
    zero: int
    outliers: list[int]
    smoothing: float
    error: float
    error_unsmoothed: float
    divergence: float


class Activations(Section, kw_only=True):
    """How the inputs of linear layers became integers.

    Attributes:
        calibrator: What chose their ranges.
        int8_share: Part of the work that reads 8-bit integers.
        int16_share: Part of the work that reads 16-bit integers.
        int8_share_of: What that work is.
        inputs: The values, in the order of the model.
    """

    calibrator: str
    int8_share: float
    int16_share: float
    int8_share_of: str
    inputs: list[QuantizedInput]


class Quantization(Section, kw_only=True):
    """What a calibration text chose for a variant.

    Attributes:
        method: How codes were chosen: rtn, gptq or awq.
        calibration: The text.
        budget: What became of a bound on size.
        sensitivity: Layers by what 4 bits cost, where the budget had to choose.
        activations: How inputs became integers.
        scaling: Values whose features were divided by scales.
        linears: Layers whose codes were solved for.
        recovery: What healing did, with its losses.
    """

    method: str | None = None
    calibration: CalibrationText | None = None
    budget: Budget | None = None
    sensitivity: list[LayerSensitivity] | None = None
    activations: Activations | None = None
    scaling: list[ScaledInput] | None = None
    linears: list[SolvedLayer] | None = None
    recovery: Recovery | None = None
