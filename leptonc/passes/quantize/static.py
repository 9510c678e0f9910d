"""Calibration's decisions on activations, and the passes that carry them out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from leptonc.passes.base import Pass
from leptonc.passes.feature import Feature
from leptonc.passes.quantize.activations import QuantizeActivations, QuantizeActivationsConfig
from leptonc.passes.quantize.smooth import SmoothLinears, SmoothLinearsConfig


@dataclass(frozen=True)
class StaticActivations:
    """How the inputs of linear layers become integers.

    Attributes:
        rounding: The layers, with scale and zero point of their inputs.
        smoothing: Strengths of smoothing.
        scales: Scales float32 [width] that inputs are divided by, by path of the first layer that reads them.
        inputs: Statistics of the inputs of each layer of `rounding`, by path.
    """

    rounding: QuantizeActivationsConfig
    smoothing: SmoothLinearsConfig
    scales: Mapping[str, NDArray[Any]]
    inputs: Mapping[str, Feature]

    @property
    def layers(self) -> tuple[str, ...]:
        """Module paths of the layers whose inputs are integers."""
        return tuple(path for path, _, _ in self.rounding.layers)

    @property
    def importance(self) -> dict[str, NDArray[Any]]:
        """Mean square of each input of each layer, by path."""
        return {path: feature.square for path, feature in self.inputs.items()}

    def passes(self) -> list[Pass]:
        """Returns the passes, which come before those that quantize weights."""
        return [SmoothLinears(self.smoothing, self.scales), QuantizeActivations(self.rounding, self.inputs)]
