"""Joins linear layers that read the same input into one with the rows of all, followed by a Split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from leptonc.ir import edit
from leptonc.ir.dialect import MODULE_KEY
from leptonc.ir.structure import Linear, linears
from leptonc.passes.base import Pass
from leptonc.passes.quantize.blocks import Quantized
from leptonc.passes.quantize.weights import KEY, dequantized, quantized_of


def joinable(group: Sequence[Linear]) -> bool:
    """Whether the linear layers can be one: same input, same form of weight, all with a bias or none."""
    first = group[0]
    if len(group) < 2 or any(g.x is not first.x or not g.transposed for g in group):
        return False
    if len({_kind(g) for g in group}) != 1 or len({id(g.weight) for g in group}) != len(group):
        return False
    return first.dequantize is None or quantized_of(first.weight) is not None


def _kind(linear: Linear) -> tuple[Any, ...]:
    """Returns what layers that can be joined have in common, besides their input."""
    weight = quantized_of(linear.weight)
    columns = None if weight is None or weight.columns is None else weight.columns.tobytes()
    return linear.bias is None, linear.dequantize is None, None if weight is None else weight.form, columns


def join(graph: ir.Graph, group: Sequence[Linear]) -> ir.Value:
    """Builds the joined layer before the first of `group`; returns its output [..., sum of out]."""
    first = group[0].node
    parts = [g.path for g in group]
    stem = parts[0].rpartition(".")[0]
    path = f"{stem}.{'+'.join(p.rpartition('.')[2] for p in parts)}"
    name = f"{path}.weight"
    rows, columns = sum(g.shape[0] for g in group), group[0].shape[1]
    quantized = [q for g in group if (q := quantized_of(g.weight)) is not None]
    if group[0].dequantize is not None:
        weight = dequantized(graph, Quantized.stack(quantized), name, first)
    else:
        tensors = [g.weight.const_value for g in group]
        sources = "+".join(str(t.metadata_props.get("lepton.source", "")) for t in tensors if t is not None)
        weight = edit.initializer(
            graph, name,
            ir.LazyTensor(
                lambda: ir.tensor(np.concatenate([t.numpy() for t in tensors if t is not None])),
                dtype=ir.DataType.FLOAT, shape=ir.Shape([rows, columns]), name=name, cache=False,
                metadata_props={"lepton.source": sources},
            ),
        )  # fmt: skip
        if quantized:  # numbers of codes
            weight.meta[KEY] = Quantized.stack(quantized)
    (turned,) = edit.insert(
        first, "Transpose", [weight], {"perm": [1, 0]}, name=f"{first.name}/joined/Transpose", module=path
    )
    (y,) = edit.insert(first, "MatMul", [group[0].x, turned], name=f"{first.name}/joined", module=path)
    if group[0].bias is not None:
        biases = [g.bias.const_value for g in group if g.bias is not None]
        bias = edit.initializer(
            graph, f"{path}.bias",
            ir.LazyTensor(
                lambda: ir.tensor(np.concatenate([t.numpy() for t in biases if t is not None])),
                dtype=ir.DataType.FLOAT, shape=ir.Shape([rows]), name=f"{path}.bias", cache=False,
            ),
        )  # fmt: skip
        (y,) = edit.insert(first, "Add", [y, bias], name=f"{first.name}/joined/Add", module=path)
    y.type = ir.TensorType(ir.DataType.FLOAT)
    if group[0].y.shape is not None:
        y.shape = ir.Shape([*group[0].y.shape[:-1], rows])
    return y


# What lies between a linear layer and the attention that reads it.
BETWEEN = {"Reshape", "Transpose", "RMSNormalization", "LayerNormalization", "RotaryEmbedding"}


def attention_of(value: ir.Value) -> ir.Node | None:
    """Returns the cached attention that is the only reader of a value, maybe normalized or rotated, or None."""
    at: ir.Value = value
    while (user := edit.only_user(at)) is not None:
        if user.op_type == "CachedAttention":
            return user
        if user.op_type not in BETWEEN:
            return None
        at = user.outputs[0]
    return None


class FuseLinears(Pass):
    """Joins the linear layers that a cached attention's queries, keys and values come from, where all read one input.

    One wide matrix product reads its input once, and wakes the threads once. A Split gives the old outputs; a lowering
    leaves it out where its attention takes all three in one value. Other layers stay apart (gate and up, an encoder's
    attention), because their Split takes more time than the joined product saves.
    """

    name = "fuse-linears"
    version = 3  # queries, keys and values that are cached

    def run(self, model: ir.Model) -> int:
        groups: dict[int, list[Linear]] = {}
        for linear in linears(model):
            if (attention := attention_of(linear.y)) is not None:
                groups.setdefault(id(attention), []).append(linear)
        count = 0
        for group in groups.values():
            if len(group) != 3 or not joinable(group):
                continue
            joined = join(model.graph, group)
            sizes = edit.ints(model.graph, [g.shape[0] for g in group])
            after = joined.producer()
            path = after.metadata_props[MODULE_KEY]  # type: ignore[union-attr]
            split = ir.node("Split", [joined, sizes], {"axis": -1}, num_outputs=len(group), name=f"{joined.name}/Split")
            split.metadata_props[MODULE_KEY] = path
            model.graph.insert_after(after, split)  # type: ignore[arg-type]
            for i, (old, new) in enumerate(zip(group, split.outputs, strict=True)):
                new.name, new.shape, new.type = f"{split.name}_{i}", old.y.shape, old.y.type
                edit.replace(old.y, new)
            count += 1
        return count
