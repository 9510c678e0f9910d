"""Chooses codes on the captured graph, for backends whose weights are quantized after lowerings of other parts."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from leptonc.ir.structure import Linear, lookups
from leptonc.passes.base import Pass
from leptonc.passes.quantize.blocks import Codes, Format
from leptonc.passes.quantize.weights import QuantizeWeightsConfig, Solve


class ChooseCodes(Pass):
    """Chooses codes while the graph can still run over a text, and keeps them. The graph stays as it is.

    Args:
        config: How the weights will be stored.
        solve: Chooses the codes.

    Attributes:
        codes: Codes by the name of the weight.
    """

    name = "choose-codes"
    version = 3  # for what earlier layers made
    config: QuantizeWeightsConfig

    def __init__(self, config: QuantizeWeightsConfig, solve: Solve) -> None:
        super().__init__(config)
        self._solve = solve
        self.codes: Mapping[str, Codes] = {}

    def run(self, model: ir.Model) -> int:
        config = self.config
        tables = lookups(model)

        def form_of(linear: Linear) -> Format | None:
            return None if config.ragged(linear.path, linear.shape[1]) else config.form_of(linear, tables)

        self.codes = self._solve(model, form_of)
        return 0
