"""The pass that quantizes the inputs of linear layers, with one scale a value, known before the model runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.errors import InputError
from leptonc.ir import edit
from leptonc.ir.structure import Linear, linears
from leptonc.passes.base import Config, Pass
from leptonc.passes.feature import Feature
from leptonc.passes.quantize.weights import quantized_of

FEATURE_KEY = "lepton.feature"  # key of a rounded value's statistics on the calibration text
WIDE_ZERO = 2**15  # the zero point of 16-bit codes


@dataclasses.dataclass(frozen=True)
class QuantizeActivationsConfig(Config):
    """Which linear layers read integers.

    Attributes:
        symmetric: Whether codes are signed with zero in the middle, as TensorRT takes them. Default: they are unsigned.
        layers: Module path of each linear layer, with scale and zero point of its input.
        outliers: Module path of some of these layers, with the features of the input that stay float.
        wide: Module paths of layers that read integers of 16 bits, with zero in the middle. Others read 8 bits.
    """

    symmetric: bool = False
    layers: tuple[tuple[str, float, int], ...] = ()
    outliers: tuple[tuple[str, tuple[int, ...]], ...] = ()
    wide: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wide = set(self.wide)
        for path, scale, zero in self.layers:
            low, high = (WIDE_ZERO, WIDE_ZERO) if path in wide else (0, 0) if self.symmetric else (0, 255)
            if not (np.isfinite(scale) and scale > 0 and low <= zero <= high):
                raise InputError(
                    f"expected a scale above zero and a zero point from {low} to {high} for {path}, "
                    f"found {scale:g} and {zero}"
                )


class QuantizeActivations(Pass):
    """Puts QuantizeLinear and DequantizeLinear before linear layers, one pair for all layers that read a value alike.

    Outliers are features whose range is far beyond the others'. Their product is computed in float and added, and the
    layer itself has zeros for them, so that they may saturate (the decomposition of Dettmers et al., LLM.int8(), 2022,
    with features known before the model runs). The graph stays in the dialect: it computes with rounded activations.

    Args:
        config: The layers.
        inputs: Statistics of the layers' inputs without outliers, by path. Rounded values have them in their meta, for
            later passes. Default: none.
    """

    name = "quantize-activations"
    version = 2  # `wide`
    config: QuantizeActivationsConfig

    def __init__(self, config: QuantizeActivationsConfig, inputs: Mapping[str, Feature] | None = None) -> None:
        super().__init__(config)
        self._inputs = inputs or {}

    def run(self, model: ir.Model) -> int:
        wanted = {path: (scale, zero) for path, scale, zero in self.config.layers}
        made: dict[tuple[str, float, int], ir.Value] = {}
        outliers, wide = dict(self.config.outliers), set(self.config.wide)
        narrow = ir.DataType.INT8 if self.config.symmetric else ir.DataType.UINT8
        done: set[str] = set()
        for linear in linears(model):
            if linear.path not in wanted:
                continue
            scale, zero = wanted[linear.path]
            key, x = (str(linear.x.name), scale, zero), linear.x
            if linear.path in outliers:
                x = go_past(linear, np.asarray(outliers[linear.path], np.int64))
            if key not in made:
                made[key] = round_value(
                    linear.node, x, scale, zero, ir.DataType.UINT16 if linear.path in wide else narrow
                )
                if linear.path in self._inputs:
                    made[key].meta[FEATURE_KEY] = self._inputs[linear.path]
            linear.node.replace_input_with(0, made[key])
            done.add(linear.path)
        if missing := sorted(wanted.keys() - done):
            raise InputError(f"expected linear layers with these paths, found none: {', '.join(missing[:3])}")
        return len(made)


def round_value(before: ir.Node, x: ir.Value, scale: float, zero: int, kind: ir.DataType) -> ir.Value:
    """Inserts QuantizeLinear and DequantizeLinear of `x` before a node, and returns the rounded value.

    The codes have the type `kind`.
    """
    graph = before.graph
    if graph is None:
        raise ValueError("the node to insert before is in no graph")
    name = f"{x.name}/{kind.name.lower().removeprefix('u')}"
    parts = [
        edit.initializer(graph, f"{name}.scale", ir.tensor(np.float32(scale), name=f"{name}.scale")),
        edit.initializer(
            graph, f"{name}.zero", ir.tensor(np.asarray(zero, kind.numpy()), dtype=kind, name=f"{name}.zero")
        ),
    ]
    (codes,) = edit.insert(before, "QuantizeLinear", [x, *parts], name=f"{name}/QuantizeLinear")
    (rounded,) = edit.insert(before, "DequantizeLinear", [codes, *parts], name=f"{name}/DequantizeLinear")
    codes.shape, codes.type = x.shape, ir.TensorType(kind)
    rounded.shape, rounded.type = x.shape, ir.TensorType(ir.DataType.FLOAT)
    return rounded


def go_past(linear: Linear, features: NDArray[np.int64]) -> ir.Value:
    """Adds the product of some features of a linear layer's input to its output. The layer itself has zeros for them.

    The zeros are in the layer's weight. Where that is quantized already and shared with other graphs, they are in the
    layer's input.

    Returns:
        The layer's input without these features.
    """
    graph, tensor = linear.node.graph, linear.weight.const_value
    if graph is None or tensor is None:
        raise ValueError(f"{linear.path} is in no graph")
    name, by_rows, rows = f"{linear.weight.name}.outliers", linear.transposed, linear.shape[0]
    stored, quantized = ir.Shape(linear.shape if by_rows else linear.shape[::-1]), quantized_of(linear.weight)

    def whole() -> NDArray[np.float32]:
        if quantized is not None:
            return quantized.exact()
        return np.asarray(tensor.numpy(), np.float32)

    def few() -> ir.TensorProtocol:
        values = whole()
        # It has three axes, because a product with a matrix of two would count as a linear layer.
        picked_rows = values[:, features].T if by_rows else values[features]
        return ir.tensor(np.ascontiguousarray(picked_rows)[None], name=name)

    def rest() -> ir.TensorProtocol:
        values = whole().copy()
        values[(slice(None), features) if by_rows else features] = 0
        return ir.tensor(values, name=linear.weight.name)

    shape, x = ir.Shape((1, len(features), rows)), linear.x
    weight = edit.initializer(
        graph, name, ir.LazyTensor(few, dtype=ir.DataType.FLOAT, shape=shape, name=name, cache=False)
    )
    if quantized is None:
        linear.weight.const_value = ir.LazyTensor(
            rest, dtype=ir.DataType.FLOAT, shape=stored, name=linear.weight.name, cache=False
        )
    else:
        others = np.isin(np.arange(linear.shape[1]), features, invert=True).astype(np.float32)
        mask = edit.initializer(graph, f"{name}.others", ir.tensor(others, name=f"{name}.others"))
        (x,) = edit.insert(linear.node, "Mul", [linear.x, mask], name=f"{name}/Mul")
        x.shape, x.type = linear.x.shape, ir.TensorType(ir.DataType.FLOAT)
    picked, last = edit.ints(graph, features.tolist()), linear.y.producer()
    if last is None:
        raise ValueError(f"{linear.path} has no output")
    (outliers_only,) = edit.insert(linear.node, "Gather", [linear.x, picked], {"axis": -1}, name=f"{name}/Gather")
    (past,) = edit.insert(linear.node, "MatMul", [outliers_only, weight], name=f"{name}/MatMul")
    total = edit.append(last, "Add", [linear.y, past], name=f"{name}/Add")
    lead = list(linear.x.shape)[:-1] if linear.x.shape is not None else []
    outliers_only.shape, past.shape = ir.Shape([*lead, len(features)]), linear.y.shape
    outliers_only.type = past.type = ir.TensorType(ir.DataType.FLOAT)
    total.shape, total.type = linear.y.shape, linear.y.type
    return x
