"""Which numbers are float16 and which stay float32: decided from the ranges that real text gave, not by hope.

TensorRT builds what the graph says (strongly typed): every tensor's type is written down here, as Casts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from leptonc.backends.tensorrt.ranges import activations
from leptonc.ir import edit
from leptonc.ir.dialect import module_of
from leptonc.passes.base import Config, Pass

FLOAT = ir.DataType.FLOAT
HALVES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
# Largest magnitude seen on the calibration text that float16 is trusted with: other text may reach eight times more.
HEADROOM = 8
LIMITS = {"fp16": 65504 / HEADROOM, "bf16": float(np.finfo(np.float32).max) / HEADROOM}
# Sums of squares and exponentials lose digits in half precision whatever their range is.
ALWAYS_FLOAT32 = frozenset(
    {"RMSNormalization", "LayerNormalization", "Softmax", "ReduceMean", "ReduceSum", "ReduceL2", "Pow", "Sqrt", "Exp"}
)


@dataclasses.dataclass(frozen=True)
class HalfPrecisionConfig(Config):
    """`kind`: fp16 or bf16."""

    kind: str = "fp16"


class HalfPrecision(Pass):
    """Turns a float32 graph into one of half precision, with float32 where it is needed.

    1. A node computes in float32 when its op is one of ALWAYS_FLOAT32, or when one of its float inputs or outputs went
       beyond the limit of the half type; all others compute in half. Casts stand between them, one for each value.
    2. Weights of half nodes are stored in half, each cast when it is written; graph inputs (the cache) are half.
    3. Outputs of the graph that are no cache (logits, embeddings) are float32.

    Args:
        config: The half type.
        measure: Called with the float32 graph; returns the largest magnitude by value name, as `ranges.largest` does. A
            value that is missing was not seen and stays float32.
    """

    name = "tensorrt-half-precision"
    in_dialect = False
    config: HalfPrecisionConfig

    def __init__(self, config: HalfPrecisionConfig, measure: Callable[[ir.Model], Mapping[str, float]]) -> None:
        super().__init__(config)
        self.measure = measure
        self.wide: list[str] = []  # modules whose nodes stay float32 because of their range, for the report

    def run(self, model: ir.Model) -> int:
        graph, half = model.graph, HALVES[self.config.kind]
        self._active = set(activations(graph))
        self._ranges = self.measure(model)
        nodes = list(graph)
        decided = {node: FLOAT if self._is_wide(node) else half for node in nodes if _is_float(node)}
        self._casts: dict[tuple[str, ir.DataType], ir.Value] = {}
        outputs = [value for value in graph.outputs if not str(value.name).startswith("present.")]
        for value in graph.inputs:
            if value.dtype == FLOAT:
                value.type = ir.TensorType(half)
        for node, dtype in decided.items():
            for i, read in enumerate(node.inputs):
                if read is not None and read.dtype in (FLOAT, half):
                    node.replace_input_with(i, self._as(graph, read, dtype, node))
            if node.op_type == "Cast" and node.attributes["to"].value == FLOAT:
                node.attributes["to"] = ir.AttrInt64("to", int(dtype))
            for value in node.outputs:
                if value.dtype == FLOAT:
                    value.type = ir.TensorType(dtype)
        for value in outputs:
            if value.dtype == half:
                self._widen_output(graph, value)
        return len(decided)

    def _is_wide(self, node: ir.Node) -> bool:
        if node.op_type in ALWAYS_FLOAT32:
            return True
        values = [v for v in (*node.inputs, *node.outputs) if v is not None and v.dtype == FLOAT]
        # Weights, what is computed from them alone, and caches are not measured: a cache holds what was written to it,
        # and weights are checked when they are cast.
        seen = [self._ranges.get(str(v.name), np.inf) for v in values if v in self._active]
        beyond = any(not found <= LIMITS[self.config.kind] for found in seen)
        if beyond:
            self.wide.append(f"{module_of(node) or 'the graph'} ({node.op_type})")
        return beyond

    def _as(self, graph: ir.Graph, value: ir.Value, dtype: ir.DataType, before: ir.Node) -> ir.Value:
        """Returns `value` in `dtype`: itself, a weight stored so, or a Cast placed where the value is made."""
        if value.dtype == dtype:
            return value
        key = (str(value.name), dtype)
        if key not in self._casts:
            if value.is_initializer():
                self._casts[key] = stored_as(graph, value, dtype)
            else:
                # Nodes are visited in order: the first that reads it comes before the others.
                (cast,) = edit.insert(
                    before,
                    "Cast",
                    [value],
                    {"to": int(dtype)},
                    name=f"{value.name}/{dtype.name}",
                )
                cast.shape, cast.type = value.shape, ir.TensorType(dtype)
                self._casts[key] = cast
        return self._casts[key]

    def _widen_output(self, graph: ir.Graph, value: ir.Value) -> None:
        (wide,) = edit.insert_last(graph, "Cast", [value], {"to": int(FLOAT)}, name=f"{value.name}/FLOAT")
        wide.shape, wide.type = value.shape, ir.TensorType(FLOAT)
        index = list(graph.outputs).index(value)
        graph.outputs[index] = wide
        wide.name, value.name = value.name, f"{value.name}.half"


def _is_float(node: ir.Node) -> bool:
    """Whether the node computes with floats: masks and positions are none of our business."""
    return any(v is not None and v.dtype == FLOAT for v in (*node.inputs, *node.outputs))


def stored_as(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Returns an initializer with the same numbers in `dtype`, cast when it is read.

    Raises:
        OverflowError: A weight is beyond what `dtype` can hold.
    """
    tensor: Any = value.const_value
    name = f"{value.name}.{dtype.name.lower()}"

    def read() -> ir.TensorProtocol:
        array = np.asarray(tensor.numpy(), np.float32)
        limit = float(ml_dtypes.finfo(dtype.numpy()).max)  # type: ignore[no-untyped-call]
        if array.size and not np.abs(array).max() <= limit:
            raise OverflowError(f"{value.name}: a weight beyond {limit:g}")
        return ir.Tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)

    lazy = ir.LazyTensor(read, dtype=dtype, shape=tensor.shape, name=name, cache=False)
    return edit.initializer(graph, name, lazy)
