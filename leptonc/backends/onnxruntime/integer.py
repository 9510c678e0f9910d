"""Linear layers of 8-bit activations and weights for ONNX Runtime: MatMulIntegerToFloat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.backends.onnxruntime.attention import MS
from leptonc.ir import edit
from leptonc.ir.structure import Linear, linears
from leptonc.passes.base import Pass
from leptonc.passes.quantize.blocks import Quantized
from leptonc.passes.quantize.channels import MIDDLE
from leptonc.passes.quantize.weights import quantized_of


class LinearToInteger(Pass):
    """A linear layer between QuantizeLinear's codes and signed weights with one scale a channel is one integer product.

    1. Activations are quantized once a value, whoever reads them; scales of both sides and the bias are inside the op.
    2. Weights are stored [in, out], as the kernel takes them, and nowhere else.
    3. Activations are unsigned and weights signed, which x86 processors and Arm's have their fastest instructions for;
       see `leptonc.passes.quantize.channels` for those that would saturate.
    """

    name = "ort-integer-linear"
    in_dialect = False

    def run(self, model: ir.Model) -> int:
        return sum(self._lower(model.graph, linear) for linear in linears(model))

    @staticmethod
    def _lower(graph: ir.Graph, linear: Linear) -> int:
        rounded = edit.producer(linear.x, "DequantizeLinear")
        quantize = edit.producer(rounded.inputs[0], "QuantizeLinear") if rounded is not None else None
        weight = quantized_of(linear.weight)
        if quantize is None or weight is None or not weight.form.paired:
            return 0
        _, scale, zero = quantize.inputs
        columns = _initializer(graph, weight, "columns", weight.shape[::-1], ir.DataType.INT8, _columns)
        scales = _initializer(graph, weight, "scales", weight.shape[:1], ir.DataType.FLOAT, _scales)
        inputs = [quantize.outputs[0], columns, scale, scales, zero, None, linear.bias]
        while inputs[-1] is None:
            inputs.pop()
        (y,) = edit.insert(linear.node, "MatMulIntegerToFloat", inputs, domain=MS)
        edit.replace(linear.y, y)
        return 1


def _columns(weight: Quantized) -> NDArray[np.int8]:
    signed = weight.parts().codes.astype(np.int16) - MIDDLE
    return np.ascontiguousarray(signed.astype(np.int8).T)


def _scales(weight: Quantized) -> NDArray[np.float32]:
    return np.ascontiguousarray(weight.parts().scales.reshape(-1))


def _initializer(
    graph: ir.Graph, weight: Quantized, suffix: str, shape: tuple[int, ...], dtype: ir.DataType,
    read: Callable[[Quantized], NDArray[Any]],
) -> ir.Value:  # fmt: skip
    """Registers a part of a weight that is computed when it is written."""
    name = f"{weight.key}.int8.{suffix}"
    lazy = ir.LazyTensor(lambda: ir.tensor(read(weight)), dtype=dtype, shape=ir.Shape(shape), name=name, cache=False)
    return edit.initializer(graph, name, lazy)
