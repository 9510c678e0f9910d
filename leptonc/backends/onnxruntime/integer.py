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
from leptonc.passes.quantize.activations import INPUT_KEY, Input
from leptonc.passes.quantize.blocks import Format, Quantized, dequantize
from leptonc.passes.quantize.channels import MIDDLE, channel_codes, codes_of
from leptonc.passes.quantize.weights import quantized_of

DERIVED_KEY = "lepton.derived"  # of an initializer that the runtime makes: the quantized weight that it comes from


class LinearToInteger(Pass):
    """A linear layer between QuantizeLinear's codes and signed weights with one scale a channel is one integer product.

    1. Activations are quantized once a value, whoever reads them; scales of both sides and the bias are inside the op.
    2. Weights are stored [in, out], as the kernel takes them, and nowhere else.
    3. Activations are unsigned and weights signed, which x86 processors and Arm's have their fastest instructions for;
       see `leptonc.passes.quantize.channels` for those that would saturate.
    4. Weights that are quantized in blocks, for a graph that decodes with them, are not stored again: the runtime makes
       integers of them as it opens the graph, see `runtime_edge.derived`. What that rounding changes in the mean of the
       outputs goes into the bias (Nagel et al., Data-Free Quantization, 2019).
    """

    name = "ort-integer-linear"
    version = 2
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
        (_, scale, zero), bias = quantize.inputs, linear.bias
        if weight.form.paired:
            columns = _initializer(graph, weight, "columns", weight.shape[::-1], ir.DataType.INT8, _columns)
            scales = _initializer(graph, weight, "scales", weight.shape[:1], ir.DataType.FLOAT, _scales)
        else:
            name = f"{weight.key}.derived"
            columns = edit.initializer(graph, name, derived(name, weight.shape[::-1], ir.DataType.INT8))
            columns.meta[DERIVED_KEY] = weight
            integers = _Derived(weight, linear.x.meta.get(INPUT_KEY), linear.bias)
            scales = _initializer(graph, weight, "steps", weight.shape[:1], ir.DataType.FLOAT, integers.steps)
            if integers.corrects:
                bias = _initializer(graph, weight, "bias", weight.shape[:1], ir.DataType.FLOAT, integers.bias)
        inputs = [quantize.outputs[0], columns, scale, scales, zero, None, bias]
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


class _Derived:
    """Integers that the runtime makes of a weight.

    Args:
        weight: The weight [out, in], in blocks.
        read: What the layer reads, or None.
        bias: Its bias, or None.
    """

    def __init__(self, weight: Quantized, read: Input | None, bias: ir.Value | None) -> None:
        self._form = Format(8, weight.shape[1], True, positive=True, paired=True)
        self._read, self._bias, self._steps = read, bias, np.zeros(0, np.float32)

    @property
    def corrects(self) -> bool:
        """Whether there is a bias that takes back what rounding changes in the mean."""
        return self._read is not None and (self._bias is None or self._bias.const_value is not None)

    def steps(self, weight: Quantized) -> NDArray[np.float32]:
        """The step of each output channel that integers of the weight cost least with, float32 [out]."""
        if not self._steps.size:
            importance = self._read.importance if self._read is not None else None
            found = channel_codes(dequantize(weight.parts(), weight.form), self._form, importance)
            self._steps = np.ascontiguousarray(found.scales.reshape(-1))
        return self._steps

    def bias(self, weight: Quantized) -> NDArray[np.float32]:
        """The layer's bias and (W - W') E[x], float32 [out]; W' are the integers times their steps."""
        assert self._read is not None
        exact, steps = dequantize(weight.parts(), weight.form), self.steps(weight)
        off = exact - codes_of(exact, steps, self._form) * steps[:, None]
        found = off @ self._read.mean
        if self._bias is not None and self._bias.const_value is not None:
            found += self._bias.const_value.numpy()
        return found.astype(np.float32)


def _initializer(
    graph: ir.Graph, weight: Quantized, suffix: str, shape: tuple[int, ...], dtype: ir.DataType,
    read: Callable[[Quantized], NDArray[Any]],
) -> ir.Value:  # fmt: skip
    """Registers a part of a weight that is computed when it is written."""
    name = f"{weight.key}.int8.{suffix}"
    lazy = ir.LazyTensor(lambda: ir.tensor(read(weight)), dtype=dtype, shape=ir.Shape(shape), name=name, cache=False)
    return edit.initializer(graph, name, lazy)
