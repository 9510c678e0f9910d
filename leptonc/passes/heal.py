"""The pass that lets a compressed graph recover what compression lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx_ir as ir

from leptonc.passes.base import Config, Pass

Recover = Callable[[ir.Model], int]  # gives initializers of a graph other values, and returns their number


@dataclasses.dataclass(frozen=True)
class HealConfig(Config):
    """How a graph recovers.

    Attributes:
        budget: The budget of learning, as it was asked for: "10min", "200steps".
        seed: Seed of the order of the texts. Default: 0.
    """

    budget: str
    seed: int = 0


class Heal(Pass):
    """Gives scales of quantized weights, gains and biases values that bring the outputs near the original's.

    `recover` learns the values from texts, which no pass reads. The graph's nodes stay as they are.
    """

    name = "heal"
    config: HealConfig

    def __init__(self, config: HealConfig, recover: Recover) -> None:
        super().__init__(config)
        self._recover = recover

    def run(self, model: ir.Model) -> int:
        return self._recover(model)
