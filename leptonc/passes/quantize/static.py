"""What calibration decided about activations, and the passes that carry it out."""

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
        rounding: The layers, with the scale and the zero point of what they read.
        smoothing: The strengths of what is smoothed.
        scales: float32 [width] that inputs are divided by, by the path of the first layer that reads them.
        inputs: What each layer of `rounding` reads, by path.
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
        return {path: each.square for path, each in self.inputs.items()}

    def passes(self) -> list[Pass]:
        """The passes that come before those that quantize weights."""
        return [SmoothLinears(self.smoothing, self.scales), QuantizeActivations(self.rounding, self.inputs)]
