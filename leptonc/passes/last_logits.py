"""Computes logits only for the positions that are asked for: the last one when text is generated."""

from __future__ import annotations

import onnx_ir as ir

from leptonc.ir import edit
from leptonc.ir.structure import Linear, linear_of
from leptonc.passes.base import Pass

ELEMENTWISE = frozenset({"Div", "Mul", "Tanh", "Add", "Sub", "Clip", "Cast"})


def head_of(graph: ir.Graph) -> Linear | None:
    """Returns the linear layer behind `logits`; only elementwise ops on constants (a soft cap, a scale) lie between."""
    value: ir.Value | None = next((v for v in graph.outputs if v.name == "logits"), None)
    if value is None or not any(v.name == "past_length" for v in graph.inputs):
        return None
    node = value.producer()
    while node is not None and node.op_type in ELEMENTWISE and not node.domain:
        value = next((v for v in node.inputs if v is not None and not v.is_initializer()), None)
        node = value.producer() if value is not None else None
    return linear_of(node) if node is not None else None


def cut_head(linear: Linear, kept: ir.Value) -> None:
    """Puts `kept`, rows of the head's input, in that input's place."""
    kept.type = linear.x.type
    if linear.x.shape is not None:
        kept.shape = ir.Shape([linear.x.shape[0], "kept", linear.x.shape[2]])
    linear.node.replace_input_with(0, kept)


class LastLogits(Pass):
    """Adds the graph input `logits_to_keep` (int64 [1]) and cuts the head's input to its last so many positions."""

    name = "last-logits"

    def run(self, model: ir.Model) -> int:
        graph = model.graph
        linear = head_of(graph)
        if linear is None:
            return 0
        keep = ir.Value(name="logits_to_keep", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
        graph.inputs.append(keep)
        (start,) = edit.insert(linear.node, "Neg", [keep])
        last = [start, edit.ints(graph, [2**63 - 1]), edit.ints(graph, [1])]
        (kept,) = edit.insert(linear.node, "Slice", [linear.x, *last])
        cut_head(linear, kept)
        return 1
