"""Linear layers of 8-bit activations and weights for ONNX Runtime: MatMulIntegerToFloat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.artifact.writer import derived
from leptonc.backends.onnxruntime.attention import MS
from leptonc.ir import edit
from leptonc.ir.structure import Linear, linears
from leptonc.passes.base import Pass
from leptonc.passes.feature import Feature
from leptonc.passes.quantize.activations import FEATURE_KEY, WIDE_ZERO
from leptonc.passes.quantize.blocks import Format, Quantized
from leptonc.passes.quantize.channels import MIDDLE, channel_codes, codes_of
from leptonc.passes.quantize.weights import quantized_of
from runtime_edge.derived import SUFFIX

DERIVED_KEY = "lepton.derived"  # where an initializer that the runtime makes has its quantized weight


class LinearToInteger(Pass):
    """Makes a linear layer of QuantizeLinear's codes and signed weights, one scale a channel, one integer product.

    1. A value is quantized once for all its readers; scales of both sides and the bias are inside the op.
    2. Weights are stored [in, out], as the kernel takes them, and nowhere else.
    3. Activations are unsigned and weights signed, which x86 processors and Arm's have their fastest instructions for;
       see `leptonc.passes.quantize.channels` for those that would saturate.
    4. Weights that are quantized in blocks, for a graph that decodes with them, are not stored again: the runtime makes
       integers of them as it opens the graph, see `runtime_edge.derived`. The bias takes back the change of that
       rounding in the mean of the outputs (Nagel et al., Data-Free Quantization, 2019).
    5. Activations of 16 bits become high and low ones of 8 bits: two products with the same weights, and a sum.
    """

    name = "ort-integer-linear"
    version = 3  # 16 bits
    in_dialect = False

    def run(self, model: ir.Model) -> int:
        self._halves: dict[ir.Node, list[list[ir.Value]]] = {}
        return sum(self._lower(model.graph, linear) for linear in linears(model))

    def _lower(self, graph: ir.Graph, linear: Linear) -> int:
        rounded = edit.producer(linear.x, "DequantizeLinear")
        quantize = edit.producer(rounded.inputs[0], "QuantizeLinear") if rounded is not None else None
        weight = quantized_of(linear.weight)
        if quantize is None or weight is None:
            return 0
        bias = linear.bias
        rows, turned = weight.shape[:1], weight.shape[::-1]
        if weight.form.paired:
            columns = _initializer(graph, weight, "columns", turned, ir.DataType.INT8, partial(_columns, weight))
            scales = _initializer(graph, weight, "scales", rows, ir.DataType.FLOAT, partial(_scales, weight))
        else:
            name = f"{weight.key}{SUFFIX}"
            columns = edit.initializer(graph, name, derived(name, turned, ir.DataType.INT8))
            columns.meta[DERIVED_KEY] = weight
            integers = _Derived(weight, linear.x.meta.get(FEATURE_KEY), linear.bias)
            scales = _initializer(graph, weight, "steps", rows, ir.DataType.FLOAT, lambda: integers.steps)
            if integers.corrects:
                bias = _initializer(graph, weight, "bias", rows, ir.DataType.FLOAT, integers.corrected)
        products: list[ir.Value] = []
        for at, (codes, step, zero) in enumerate(self._parts(graph, quantize)):
            inputs = [codes, columns, step, scales, zero, None, None if at else bias]
            while inputs[-1] is None:
                inputs.pop()
            name = f"{linear.node.name}/MatMulIntegerToFloat{at or ''}"
            products += edit.insert(linear.node, "MatMulIntegerToFloat", inputs, domain=MS, name=name)
        y = products[0]
        for other in products[1:]:
            other.shape, other.type = linear.y.shape, linear.y.type
            (y,) = edit.insert(linear.node, "Add", [y, other], name=f"{linear.node.name}/halves")
        y.shape, y.type = linear.y.shape, linear.y.type
        edit.replace(linear.y, y)
        return 1

    def _parts(self, graph: ir.Graph, quantize: ir.Node) -> list[list[ir.Value]]:
        """Returns unsigned codes of 8 bits, their scale and zero point, of the quantized value or of its two halves."""
        x, scale, zero = (value for value in quantize.inputs if value is not None)
        if zero.dtype != ir.DataType.UINT16:
            return [[quantize.outputs[0], scale, zero]]
        if quantize not in self._halves:
            step = edit.constant(scale)
            assert step is not None
            half = ir.tensor(np.uint8(WIDE_ZERO >> 8), name="zero_of_half")
            middle = edit.initializer(graph, "zero_of_half", half)
            coarse = edit.initializer(
                graph, f"{scale.name}.high", ir.tensor(np.float32(256) * step, name=f"{scale.name}.high")
            )
            stem = quantize.name
            (high,) = edit.insert(quantize, "QuantizeLinear", [x, coarse, middle], name=f"{stem}/high")
            (whole,) = edit.insert(quantize, "DequantizeLinear", [high, coarse, middle], name=f"{stem}/whole")
            (rest,) = edit.insert(quantize, "Sub", [x, whole], name=f"{stem}/rest")
            (low,) = edit.insert(quantize, "QuantizeLinear", [rest, scale, middle], name=f"{stem}/low")
            self._halves[quantize] = [[high, coarse, middle], [low, scale, middle]]
        return self._halves[quantize]


def _columns(weight: Quantized) -> NDArray[np.int8]:
    signed = weight.parts().codes.astype(np.int16) - MIDDLE
    return np.ascontiguousarray(signed.astype(np.int8).T)


def _scales(weight: Quantized) -> NDArray[np.float32]:
    return np.ascontiguousarray(weight.parts().scales.reshape(-1))


def derived_of(model: ir.Model) -> dict[str, Quantized]:
    """Returns the weights that the runtime makes for a graph, by the names of their initializers."""
    values = model.graph.initializers.values()
    return {str(value.name): value.meta[DERIVED_KEY] for value in values if DERIVED_KEY in value.meta}


@dataclass
class _Derived:
    """Integers that the runtime makes from a weight.

    Attributes:
        weight: The weight [out, in], in blocks.
        read: Statistics of the layer's input, or None.
        bias: The layer's bias, or None.
    """

    weight: Quantized
    read: Feature | None
    bias: ir.Value | None

    @property
    def corrects(self) -> bool:
        """Whether there is a bias that takes back the change of rounding in the mean."""
        return self.read is not None and (self.bias is None or self.bias.const_value is not None)

    @property
    def _form(self) -> Format:
        return Format(8, self.weight.shape[1], True, positive=True, paired=True)

    @cached_property
    def steps(self) -> NDArray[np.float32]:
        """The steps of the output channels with the least error of the integers, float32 [out]."""
        codes = channel_codes(self.weight.exact(), self._form, None if self.read is None else self.read.square)
        return np.ascontiguousarray(codes.scales.reshape(-1))

    def corrected(self) -> NDArray[np.float32]:
        """Returns the layer's bias plus (W - W') E[x], float32 [out]; W' are the integers times their steps."""
        assert self.read is not None
        exact = self.weight.exact()
        off = exact - codes_of(exact, self.steps, self._form) * self.steps[:, None]
        bias = off @ self.read.mean
        if self.bias is not None and self.bias.const_value is not None:
            bias += self.bias.const_value.numpy()
        return bias.astype(np.float32)


def _initializer(
    graph: ir.Graph, weight: Quantized, suffix: str, shape: tuple[int, ...], dtype: ir.DataType,
    read: Callable[[], NDArray[Any]],
) -> ir.Value:  # fmt: skip
    """Registers a part of a weight that is computed when it is written."""
    name = f"{weight.key}.int8.{suffix}"
    lazy = ir.LazyTensor(lambda: ir.tensor(read()), dtype=dtype, shape=ir.Shape(shape), name=name, cache=False)
    return edit.initializer(graph, name, lazy)
