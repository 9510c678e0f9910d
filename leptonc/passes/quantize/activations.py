"""The pass that quantizes what linear layers read: one scale a value, known before the model runs."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from leptonc.errors import InputError
from leptonc.ir import edit
from leptonc.ir.structure import linears
from leptonc.passes.base import Config, Pass


@dataclasses.dataclass(frozen=True)
class QuantizeActivationsConfig(Config):
    """Which linear layers read 8-bit integers.

    Attributes:
        symmetric: Whether codes are signed with zero in the middle, as TensorRT takes them; else they are unsigned.
        layers: Module path of each linear layer, with the scale and the zero point of its input.
    """

    symmetric: bool = False
    layers: tuple[tuple[str, float, int], ...] = ()

    def __post_init__(self) -> None:
        low, high = (0, 0) if self.symmetric else (0, 255)
        for path, scale, zero in self.layers:
            if not (np.isfinite(scale) and scale > 0 and low <= zero <= high):
                raise InputError(
                    f"expected a scale above zero and a zero point from {low} to {high} for {path}, "
                    f"found {scale:g} and {zero}"
                )


class QuantizeActivations(Pass):
    """Puts QuantizeLinear and DequantizeLinear before linear layers, one pair for all that read a value alike.

    The graph stays in the dialect: it computes with the rounded activations.
    """

    name = "quantize-activations"
    config: QuantizeActivationsConfig

    def run(self, model: ir.Model) -> int:
        wanted = {path: (scale, zero) for path, scale, zero in self.config.layers}
        made: dict[tuple[str, float, int], ir.Value] = {}
        done: set[str] = set()
        for linear in linears(model):
            if linear.path not in wanted:
                continue
            scale, zero = wanted[linear.path]
            key = (str(linear.x.name), scale, zero)
            if key not in made:
                made[key] = round_value(linear.node, linear.x, scale, zero, symmetric=self.config.symmetric)
            linear.node.replace_input_with(0, made[key])
            done.add(linear.path)
        if missing := sorted(wanted.keys() - done):
            raise InputError(f"expected linear layers with these paths, found none: {', '.join(missing[:3])}")
        return len(made)


def round_value(before: ir.Node, x: ir.Value, scale: float, zero: int, *, symmetric: bool) -> ir.Value:
    """Inserts QuantizeLinear and DequantizeLinear of `x` before a node that reads it; returns the rounded value."""
    graph = before.graph
    if graph is None:
        raise ValueError("the node to insert before is in no graph")
    kind = ir.DataType.INT8 if symmetric else ir.DataType.UINT8
    name = f"{x.name}/int8"
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
