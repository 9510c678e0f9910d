"""The pass that lets a compressed graph recover what compression lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx_ir as ir

from leptonc.passes.base import Config, Pass

Recover = Callable[[ir.Model], int]  # gives initializers of a graph other values; returns how many


@dataclasses.dataclass(frozen=True)
class HealConfig(Config):
    """How a graph recovers.

    Attributes:
        budget: How long it learned, as it was asked for: "10min", "200steps".
        seed: Of the order of the texts.
    """

    budget: str
    seed: int = 0


class Heal(Pass):
    """Gives scales of quantized weights, gains and biases the values with which the graph says what the original says.

    What learns them is given: it looks at texts, which no pass does. The graph's nodes stay as they are.
    """

    name = "heal"
    config: HealConfig

    def __init__(self, config: HealConfig, recover: Recover) -> None:
        super().__init__(config)
        self._recover = recover

    def run(self, model: ir.Model) -> int:
        return self._recover(model)
