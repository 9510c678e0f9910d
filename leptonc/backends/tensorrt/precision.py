"""Chooses which values are float16 and which stay float32, from the ranges that real text gave.

TensorRT builds a strongly typed graph: Casts, inserted here, give every tensor its type.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from leptonc.backends.tensorrt.ranges import activations
from leptonc.errors import InputError
from leptonc.ir import edit
from leptonc.ir.dialect import module_of
from leptonc.ir.types import fill_types
from leptonc.passes.base import Config, Pass

FLOAT = ir.DataType.FLOAT
HALF = ir.DataType.FLOAT16
LARGEST, SMALLEST = 65504.0, 2.0**-14  # of float16: its largest number, its smallest with all digits (IEEE 754)
_SMALL = 16  # elements of a constant that counts as a parameter of its op, not as a weight
# Sums of squares and exponentials lose digits in half precision whatever their range is.
ALWAYS_FLOAT32 = frozenset(
    {"RMSNormalization", "LayerNormalization", "Softmax", "ReduceMean", "ReduceSum", "ReduceL2", "Pow", "Sqrt", "Exp"}
)


@dataclasses.dataclass(frozen=True)
class HalfPrecisionConfig(Config):
    """`headroom`: factor by which an activation may exceed its range on the calibration text without overflow."""

    headroom: float = 8

    @property
    def limit(self) -> float:
        """The largest magnitude on the calibration text that float16 is trusted with."""
        return LARGEST / self.headroom


class HalfPrecision(Pass):
    """Turns a float32 graph into one of half precision, with float32 where it is needed.

    1. A node computes in float32 when its op is one of ALWAYS_FLOAT32, when one of its float inputs or outputs went
       beyond the limit of float16, or when it reads a constant that is too small or too large for it (the 1e-12
       that keeps a division from zero); all others compute in half. Casts stand between them, one for each value.
    2. A matrix product whose result alone is beyond the limit is computed in half, from inputs divided by a power of
       two, and multiplied back in float32: exact, and a float32 product is refused by some GPUs (SM75).
    3. Weights of half nodes are stored in half, each cast when it is written; graph inputs (the cache) are half.
    4. Outputs of the graph that are no cache (logits, embeddings) are float32.

    Args:
        config: The headroom.
        measure: Called with the float32 graph; returns the largest magnitude by value name, as `ranges.largest` does. A
            missing value was not measured and stays float32.
    """

    name = "tensorrt-half-precision"
    in_dialect = False
    config: HalfPrecisionConfig

    def __init__(self, config: HalfPrecisionConfig, measure: Callable[[ir.Model], Mapping[str, float]]) -> None:
        super().__init__(config)
        self.measure = measure
        self.wide: list[str] = []  # modules whose nodes stay float32 because of their range

    def report(self) -> Mapping[str, Any]:
        return {"float32_for_their_range": self.wide}

    def run(self, model: ir.Model) -> int:
        graph, half = model.graph, HALF
        fill_types(graph)
        self._active = set(activations(graph))
        self._ranges = dict(self.measure(model))
        for node in [node for node in graph if node.op_type == "MatMul"]:
            self._scale_down(node)
        nodes = list(graph)
        decided = {node: FLOAT if self._is_wide(node) else half for node in nodes if _is_float(node)}
        self._casts: dict[tuple[str, ir.DataType], ir.Value] = {}
        outputs = [value for value in graph.outputs if not str(value.name).startswith("present.")]
        for value in graph.inputs:
            if value.dtype == FLOAT:
                value.type = ir.TensorType(half)
        for node, dtype in decided.items():
            for i, operand in enumerate(node.inputs):
                if operand is not None and operand.dtype in (FLOAT, half):
                    node.replace_input_with(i, self._as(graph, operand, dtype, node))
            if node.op_type == "Cast" and node.attributes["to"].value == FLOAT:
                node.attributes["to"] = ir.AttrInt64("to", int(dtype))
            for value in node.outputs:
                if value.dtype == FLOAT:
                    value.type = ir.TensorType(dtype)
        for value in outputs:
            if value.dtype == half:
                self._widen_output(graph, value)
        return len(decided)

    def _scale_down(self, node: ir.Node) -> None:
        """Applies rule 2: x W becomes (x 2^-k) W 2^k, where the result is too large and the input is not."""
        limit, result = self.config.limit, node.outputs[0]
        x, magnitude = node.inputs[0], self._ranges.get(str(result.name), 0.0)
        if x not in self._active or node.inputs[1] in self._active or not limit < magnitude < np.inf:
            return
        if x is None or self._ranges.get(str(x.name), np.inf) > limit:
            return
        graph = node.graph
        factor = 2.0 ** np.ceil(np.log2(magnitude / limit))
        small, large = (
            edit.initializer(graph, name, ir.tensor(np.float32(value), name=name))  # type: ignore[arg-type]
            for name, value in ((f"one_over_{factor:g}", 1 / factor), (f"times_{factor:g}", factor))
        )
        (scaled,) = edit.insert(node, "Mul", [x, small], name=f"{node.name}/down")
        (product,) = edit.insert(node, "MatMul", [scaled, node.inputs[1]], name=f"{node.name}/scaled")
        (restored,) = edit.insert(node, "Mul", [product, large], name=f"{node.name}/up")
        for value, like, size in ((scaled, x, 1 / factor), (product, result, 1 / factor), (restored, result, 1.0)):
            value.shape, value.type = like.shape, ir.TensorType(FLOAT)
            self._ranges[str(value.name)] = self._ranges[str(like.name)] * size
            self._active.add(value)
        edit.replace(result, restored)
        graph.remove(node, safe=True)  # type: ignore[union-attr]

    def _is_wide(self, node: ir.Node) -> bool:
        if node.op_type in ALWAYS_FLOAT32:
            return True
        values = [v for v in (*node.inputs, *node.outputs) if v is not None and v.dtype == FLOAT]
        # Weights, values of weights alone, and caches are not measured: a cache holds values that were measured, and
        # weights are checked when they are cast.
        magnitudes = [self._ranges.get(str(v.name), np.inf) for v in values if v in self._active]
        if node.op_type == "TensorScatter":  # the cache has one type, whatever a layer's keys are
            if any(not magnitude <= LARGEST for magnitude in magnitudes):
                raise InputError(
                    f"expected keys and values within the {LARGEST:g} that a float16 cache holds, "
                    f"found {max(magnitudes):g} in {module_of(node) or 'the graph'}",
                    hint="--weights fp32 keeps the cache in float32",
                )
            return False
        beyond = any(not magnitude <= self.config.limit for magnitude in magnitudes) or any(map(self._loses, values))
        if beyond:
            self.wide.append(f"{module_of(node) or 'the graph'} ({node.op_type})")
        return beyond

    def _loses(self, value: ir.Value) -> bool:
        """Whether float16 loses a small constant: rounded to zero or to few digits, or beyond its largest number."""
        constant = edit.constant(value) if value.is_initializer() else None
        if constant is None or constant.size > _SMALL or not constant.size:
            return False
        size = np.abs(constant[constant != 0])
        return bool(size.size and (size.min() < SMALLEST or size.max() > LARGEST))

    def _as(self, graph: ir.Graph, value: ir.Value, dtype: ir.DataType, before: ir.Node) -> ir.Value:
        """Returns `value` in `dtype`: itself, a weight stored in it, or a Cast before the first node that reads it."""
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
    """Whether the node computes with floats; masks and positions keep their types."""
    return any(v is not None and v.dtype == FLOAT for v in (*node.inputs, *node.outputs))


def stored_as(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Returns an initializer with the same numbers in `dtype`, cast when it is read.

    Raises:
        InputError: When it is read: a weight is beyond what `dtype` can hold.
    """
    tensor: Any = value.const_value
    name = f"{value.name}.{dtype.name.lower()}"

    def read() -> ir.TensorProtocol:
        array = np.asarray(tensor.numpy(), np.float32)
        if array.size and not np.abs(array).max() <= LARGEST:
            raise InputError(
                f"expected weights within the {LARGEST:g} that {dtype.name} holds, found larger ones in `{value.name}`",
                hint="--weights fp32 keeps them",
            )
        return ir.Tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)

    lazy = ir.LazyTensor(read, dtype=dtype, shape=tensor.shape, name=name, cache=False)
    return edit.initializer(graph, name, lazy)
