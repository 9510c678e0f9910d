"""The pass that replaces codes by the numbers that they stand for."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from leptonc.ir import edit
from leptonc.ir.structure import linears
from leptonc.passes.base import Config, Pass
from leptonc.passes.quantize.weights import KEY, quantized_of


@dataclasses.dataclass(frozen=True)
class CodesToNumbersConfig(Config):
    """`layers`: module paths of the linear layers."""

    layers: tuple[str, ...] = ()


class CodesToNumbers(Pass):
    """Replaces DequantizeLinear and codes of linear layers by the dequantized numbers.

    Smoothing can multiply numbers, but not codes that another graph shares. The meta of the numbers has the codes.
    Weights with other readers, such as a tied head's, stay as they are.
    """

    name = "codes-to-numbers"
    config: CodesToNumbersConfig

    def run(self, model: ir.Model) -> int:
        count, wanted = 0, set(self.config.layers)
        for linear in linears(model):
            weight, turned = quantized_of(linear.weight), edit.producer(linear.node.inputs[1], "Transpose")
            if linear.path not in wanted or linear.dequantize is None or weight is None or turned is None:
                continue
            if len(list(linear.weight.uses())) > 1 or edit.only_user(linear.dequantize.outputs[0]) is not turned:
                continue
            name = f"{weight.key}.numbers"
            numbers = ir.LazyTensor(
                lambda weight=weight, name=name: ir.tensor(weight.exact(), name=name),  # type: ignore[misc]
                dtype=ir.DataType.FLOAT, shape=ir.Shape(weight.shape), name=name, cache=False,
            )  # fmt: skip
            value = edit.initializer(model.graph, name, numbers)
            value.meta[KEY] = weight
            turned.replace_input_with(0, value)
            count += 1
        return count
