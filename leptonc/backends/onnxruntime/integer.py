"""Linear layers of 8-bit activations and weights for ONNX Runtime: MatMulIntegerToFloat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.artifact.writer import derived
from leptonc.backends.onnxruntime.attention import MS
from leptonc.ir import edit
from leptonc.ir.structure import Linear, linears
from leptonc.passes.base import Pass
from leptonc.passes.quantize.blocks import Format, Quantized, dequantize
from leptonc.passes.quantize.channels import MIDDLE, channel_codes
from leptonc.passes.quantize.weights import quantized_of

DERIVED_KEY = "lepton.derived"  # of an initializer that the runtime makes: the quantized weight that it comes from


class LinearToInteger(Pass):
    """A linear layer between QuantizeLinear's codes and signed weights with one scale a channel is one integer product.

    1. Activations are quantized once a value, whoever reads them; scales of both sides and the bias are inside the op.
    2. Weights are stored [in, out], as the kernel takes them, and nowhere else.
    3. Activations are unsigned and weights signed, which x86 processors and Arm's have their fastest instructions for;
       see `leptonc.passes.quantize.channels` for those that would saturate.
    4. Weights that are quantized in blocks, for a graph that decodes with them, are not stored again: the runtime makes
       integers of them as it opens the graph, see `runtime_edge.derived`.
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
        if quantize is None or weight is None:
            return 0
        _, scale, zero = quantize.inputs
        if weight.form.paired:
            columns = _initializer(graph, weight, "columns", weight.shape[::-1], ir.DataType.INT8, _columns)
            scales = _initializer(graph, weight, "scales", weight.shape[:1], ir.DataType.FLOAT, _scales)
        else:
            name = f"{weight.key}.derived"
            columns = edit.initializer(graph, name, derived(name, weight.shape[::-1], ir.DataType.INT8))
            columns.meta[DERIVED_KEY] = weight
            scales = _initializer(graph, weight, "steps", weight.shape[:1], ir.DataType.FLOAT, _steps)
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


def _steps(weight: Quantized) -> NDArray[np.float32]:
    """The step of each output channel that integers of the weight cost least with."""
    form = Format(8, weight.shape[1], True, positive=True, paired=True)
    return np.ascontiguousarray(channel_codes(dequantize(weight.parts(), weight.form), form).scales.reshape(-1))


def _initializer(
    graph: ir.Graph, weight: Quantized, suffix: str, shape: tuple[int, ...], dtype: ir.DataType,
    read: Callable[[Quantized], NDArray[Any]],
) -> ir.Value:  # fmt: skip
    """Registers a part of a weight that is computed when it is written."""
    name = f"{weight.key}.int8.{suffix}"
    lazy = ir.LazyTensor(lambda: ir.tensor(read(weight)), dtype=dtype, shape=ir.Shape(shape), name=name, cache=False)
    return edit.initializer(graph, name, lazy)
