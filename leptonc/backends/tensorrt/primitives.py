"""Replaces operators that a version of TensorRT lacks by operators that it has.

TensorRT 10.3 (JetPack 6) has none of TensorScatter, Attention, RotaryEmbedding and RMSNormalization; no version's
Attention has a soft cap. Each pass replaces one operator as the ONNX specification defines it (opset 24).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from leptonc.backends.tensorrt.decoder import ROWS
from leptonc.ir import edit
from leptonc.ir.dialect import attribute
from leptonc.ir.types import fill_types
from leptonc.passes.base import Pass

FLOAT = ir.DataType.FLOAT
# Lower than any score, and finite: softmax of a row that is all masked stays finite.
MASKED = float(np.finfo(np.float32).min / 2)
OPSET, OPSET_WITH_BLOCKS = 20, 21  # 10.x documents up to 20; int4 and its blocks are in ONNX since 21


def decompositions(parses: Callable[[str], bool]) -> list[Pass]:
    """Returns the passes for a version of TensorRT: `parses` says whether it has an operator."""
    old = not parses("TensorScatter")
    passes: list[Pass] = [AttentionToPrimitives() if not parses("Attention") else SoftCapToPrimitives()]
    passes += [kind() for kind in (ScatterToWhere, RotaryToPrimitives, NormToPrimitives) if not parses(kind.op)]
    passes += [SwishToSigmoid()] if not parses(SwishToSigmoid.op) else []
    return [*passes, LowerOpset()] if old else passes


class _Decompose(Pass):
    """Base: replaces every node of one operator by what `make` returns in its place."""

    op: str
    in_dialect = False

    def run(self, model: ir.Model) -> int:
        fill_types(model.graph)
        nodes = [node for node in model.graph if node.op_type == self.op and not node.domain and self.wants(node)]
        self._shared: dict[Any, ir.Value] = {}
        for node in nodes:
            result = self.make(model.graph, node, _Maker(model.graph, node))
            result.type = node.outputs[0].type
            edit.replace(node.outputs[0], result)
            model.graph.remove(node, safe=True)
        return len(nodes)

    def wants(self, node: ir.Node) -> bool:
        return True

    def make(self, graph: ir.Graph, node: ir.Node, new: _Maker) -> ir.Value:
        raise NotImplementedError  # abstract


class _Maker:
    """Inserts nodes before one that is being replaced; names count up."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node, self.count = graph, node, 0

    def __call__(self, op: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        self.count += 1
        (value,) = edit.insert(self.node, op, inputs, attributes, name=f"{self.node.name}/{self.count}.{op}")
        return value

    def ints(self, *values: int) -> ir.Value:
        return edit.ints(self.graph, list(values))

    def number(self, value: float, dtype: ir.DataType) -> ir.Value:
        name = f"{dtype.name.lower()}_{value!r}"
        return edit.initializer(self.graph, name, ir.tensor(np.asarray(value, dtype.numpy()), name=name))

    def cast(self, value: ir.Value, dtype: ir.DataType, source: ir.DataType | None) -> ir.Value:
        return value if source == dtype else self("Cast", value, to=int(dtype))


class AttentionToPrimitives(_Decompose):
    """Replaces `Attention` by matrix products around a softmax in float32.

    Queries of grouped heads get an axis for the group, against which their key's and value's axis is 1: the product
    repeats them without copying them.
    """

    name = "tensorrt-attention-primitives"
    op = "Attention"

    def make(self, graph: ir.Graph, node: ir.Node, new: _Maker) -> ir.Value:
        query, key, value = node.inputs[:3]
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        dtype = query.dtype or FLOAT  # type: ignore[union-attr]
        heads, dim = int(query.shape[1]), int(query.shape[3])  # type: ignore[union-attr, index, arg-type]
        kv_heads, width = int(key.shape[1]), int(value.shape[3])  # type: ignore[union-attr, index, arg-type]
        grouped = heads != kv_heads
        scale = float(attribute(node, "scale", dim**-0.5))
        cap = float(attribute(node, "softcap", 0.0))
        query = new("Mul", query, new.number(scale, dtype))
        turned = new("Transpose", key, perm=[0, 1, 3, 2])
        if grouped:
            query = new("Reshape", query, new.ints(0, kv_heads, heads // kv_heads, -1, dim))
            turned, value = new("Unsqueeze", turned, new.ints(2)), new("Unsqueeze", value, new.ints(2))
        scores = new.cast(new("MatMul", query, turned), FLOAT, dtype)
        if cap:
            size = new.number(cap, FLOAT)
            scores = new("Mul", new("Tanh", new("Div", scores, size)), size)
        if mask is not None:
            many = grouped and mask.shape is not None and mask.shape[0] != 1
            scores = self._masked(new, scores, new("Unsqueeze", mask, new.ints(1)) if many else mask, mask.dtype)
        weights = new.cast(new("Softmax", scores, axis=-1), dtype, FLOAT)
        out = new("MatMul", weights, value)
        return new("Reshape", out, new.ints(0, heads, -1, width)) if grouped else out

    def _masked(self, new: _Maker, scores: ir.Value, mask: ir.Value, dtype: ir.DataType | None) -> ir.Value:
        if dtype == ir.DataType.BOOL:
            return new("Where", mask, scores, new.number(MASKED, FLOAT))
        return new("Add", scores, new.cast(mask, FLOAT, dtype))


class SoftCapToPrimitives(AttentionToPrimitives):
    """Replaces attention that has a soft cap: TensorRT's own has none."""

    name = "tensorrt-soft-cap-primitives"

    def wants(self, node: ir.Node) -> bool:
        return bool(attribute(node, "softcap", 0.0))


class ScatterToWhere(_Decompose):
    """Replaces `TensorScatter` of one sequence by a choice, for each row of the cache, of the old or a new one.

    Rows w to w + n - 1 of the cache come from the n new ones; all layers share the choice. The result is another tensor
    than the cache: the runtime binds two buffers, in turn.
    """

    name = "tensorrt-scatter-primitives"
    op = "TensorScatter"

    def make(self, graph: ir.Graph, node: ir.Node, new: _Maker) -> ir.Value:
        past, update, at = node.inputs
        capacity = int(past.shape[2])  # type: ignore[union-attr, index, arg-type]
        if ("rows", capacity) not in self._shared:
            positions = ir.tensor(np.arange(capacity, dtype=np.int64).reshape(ROWS["cache_rows"]), name="cache_rows")
            rows = edit.initializer(graph, "cache_rows", positions)
            count = new("Shape", update, start=2, end=3)
            offset = new("Sub", rows, at)
            last = new("Sub", count, new.ints(1))
            inside = new("And", new("GreaterOrEqual", offset, new.ints(0)), new("LessOrEqual", offset, last))
            self._shared["inside", capacity] = new("Reshape", inside, new.ints(1, 1, -1, 1))
            self._shared["rows", capacity] = new("Min", new("Max", offset, new.ints(0)), last)
        chosen = new("Gather", update, self._shared["rows", capacity], axis=2)
        return new("Where", self._shared["inside", capacity], chosen, past)


class RotaryToPrimitives(_Decompose):
    """Replaces `RotaryEmbedding` [batch, heads, length, dim] by products with rows of the tables (arXiv 2104.09864)."""

    name = "tensorrt-rotary-primitives"
    op = "RotaryEmbedding"

    def make(self, graph: ir.Graph, node: ir.Node, new: _Maker) -> ir.Value:
        x, *tables = node.inputs[:3]
        positions = node.inputs[3] if len(node.inputs) > 3 else None
        dim = int(x.shape[3])  # type: ignore[union-attr, index, arg-type]
        width = int(attribute(node, "rotary_embedding_dim", 0)) or dim
        cos, sin = (self._rows(new, table, positions) for table in tables)
        if attribute(node, "interleaved", 0):
            first = self._slice(new, x, 0, width, 2)
            second = self._slice(new, x, 1, width, 2)
        else:
            first = self._slice(new, x, 0, width // 2, 1)
            second = self._slice(new, x, width // 2, width, 1)
        real = new("Sub", new("Mul", cos, first), new("Mul", sin, second))
        imaginary = new("Add", new("Mul", sin, first), new("Mul", cos, second))
        if attribute(node, "interleaved", 0):
            pair = [new("Unsqueeze", part, new.ints(4)) for part in (real, imaginary)]
            rotated = new("Reshape", new("Concat", *pair, axis=4), new.ints(0, 0, -1, width))
        else:
            rotated = new("Concat", real, imaginary, axis=3)
        return rotated if width == dim else new("Concat", rotated, self._slice(new, x, width, dim, 1), axis=3)

    def _rows(self, new: _Maker, table: ir.Value | None, positions: ir.Value | None) -> ir.Value:
        """Returns rows [batch, 1, length, width / 2] of a table, made once for all readers of the same rows."""
        key = (table, positions)
        if key not in self._shared:
            rows = new("Gather", table, positions, axis=0) if positions is not None else table
            self._shared[key] = new("Unsqueeze", rows, new.ints(1))
        return self._shared[key]

    def _slice(self, new: _Maker, x: ir.Value | None, start: int, end: int, step: int) -> ir.Value:
        return new("Slice", x, new.ints(start), new.ints(end), new.ints(3), new.ints(step))


class NormToPrimitives(_Decompose):
    """Replaces `RMSNormalization` of the last axis by x / sqrt(mean(x^2) + epsilon) * scale (arXiv 1910.07467)."""

    name = "tensorrt-norm-primitives"
    op = "RMSNormalization"

    def make(self, graph: ir.Graph, node: ir.Node, new: _Maker) -> ir.Value:
        x, scale = node.inputs
        dtype = x.dtype or FLOAT  # type: ignore[union-attr]
        wide = new.cast(x, FLOAT, dtype)  # type: ignore[arg-type]
        mean = new("ReduceMean", new("Mul", wide, wide), new.ints(-1), keepdims=1)
        size = new("Sqrt", new("Add", mean, new.number(float(attribute(node, "epsilon", 1e-5)), FLOAT)))
        return new("Mul", new.cast(new("Div", wide, size), dtype, FLOAT), scale)


class SwishToSigmoid(_Decompose):
    """Replaces `Swish` by x * Sigmoid(alpha x)."""

    name = "tensorrt-swish-primitives"
    op = "Swish"

    def make(self, graph: ir.Graph, node: ir.Node, new: _Maker) -> ir.Value:
        (x,) = node.inputs
        alpha = float(attribute(node, "alpha", 1.0))
        dtype = x.dtype or FLOAT  # type: ignore[union-attr]
        inner = new("Mul", x, new.number(alpha, dtype)) if alpha != 1 else x
        return new("Mul", x, new("Sigmoid", inner))


class LowerOpset(Pass):
    """Declares the operator set that TensorRT 10.3 parses: it has the operators that are left, in the same form.

    Int4 weights and blocks came with opset 21; the parser takes them in DequantizeLinear all the same.
    """

    name = "tensorrt-opset"
    in_dialect = False

    def run(self, model: ir.Model) -> int:
        blocks = any(value.dtype == ir.DataType.INT4 for value in model.graph.initializers.values())
        model.graph.opset_imports[""] = OPSET_WITH_BLOCKS if blocks else OPSET
        model.ir_version = min(model.ir_version, 10)
        return 1
