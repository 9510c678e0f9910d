"""Computes logits only for the positions that are asked for: the last one when text is generated."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from leptonc.ir import edit
from leptonc.ir.dialect import attribute
from leptonc.ir.ports import add_input, input_of, output_of
from leptonc.ir.spread import ELEMENTWISE
from leptonc.ir.structure import Linear, linear_of
from leptonc.passes.base import Pass
from runtime_edge.part_record import LAST_POSITIONS, NEXT_TOKEN_LOGITS, PAST_LENGTH, Port

KEEP = Port(name="logits_to_keep", role=LAST_POSITIONS, dtype="int64", dims=(1,))
CAPS = frozenset({"Div", "Mul", "Tanh", "Add", "Sub", "Clip", "Cast"})
POINTWISE = ELEMENTWISE | {"QuantizeLinear", "DequantizeLinear"}
AXES = {"RMSNormalization": -1, "LayerNormalization": -1, "Gather": 0, "Split": 0}  # the default axis
WIDTH = (-1, 2)  # the last axis of [batch, seq, width]


def head_of(graph: ir.Graph) -> Linear | None:
    """Returns the linear layer that makes the next token's logits in a graph with a cache, or None.

    Elementwise nodes on constants (a soft cap, a scale) may follow it.
    """
    logits = output_of(graph, NEXT_TOKEN_LOGITS)
    value: ir.Value | None = next((v for v in graph.outputs if v.name == logits), None)
    if value is None or input_of(graph, PAST_LENGTH) is None:
        return None
    node = value.producer()
    while node is not None and node.op_type in CAPS and not node.domain:
        value = next((v for v in node.inputs if v is not None and not v.is_initializer()), None)
        node = value.producer() if value is not None else None
    return linear_of(node) if node is not None else None


def keep_rows(graph: ir.Graph, head: Linear, select: Callable[[ir.Value, ir.Node], ir.Value]) -> int:
    """Computes for selected positions only what the head alone depends on: the last layer after its attention.

    Args:
        graph: The graph, whose values of positions are [batch, seq, width].
        head: The graph's head.
        select: Takes a value and a node, and returns the selected rows of the value. It inserts nodes before the node.

    Returns:
        Number of values that were cut.
    """
    length = None if head.x.shape is None else head.x.shape[1]

    def of_rows(value: ir.Value | None) -> bool:
        return value is not None and value.shape is not None and len(value.shape) == 3 and value.shape[1] == length

    region = {head.node}
    for node in reversed(graph):
        uses = [use.node for value in node.outputs for use in value.uses()]
        last = bool(uses) and region.issuperset(uses) and not any(value.is_graph_output() for value in node.outputs)
        if last and all(map(of_rows, node.outputs)) and _by_rows(node, [v for v in node.inputs if not of_rows(v)]):
            region.add(node)
    cut: dict[ir.Value, ir.Value] = {}
    for node in [node for node in graph if node in region]:
        for at, value in enumerate(node.inputs):
            if value is None or not (value is head.x or of_rows(value)) or value.producer() in region:
                continue
            if value not in cut:
                cut[value] = select(value, node)
                cut[value].type, cut[value].shape = value.type, _kept(value)
            node.replace_input_with(at, cut[value])
    for node in region | edit.behind(head.node):  # a soft cap or a scale is behind it
        for value in node.outputs:
            value.shape = _kept(value)
    return len(cut)


def _kept(value: ir.Value) -> ir.Shape | None:
    return None if value.shape is None else ir.Shape([value.shape[0], "kept", *value.shape[2:]])


def _by_rows(node: ir.Node, others: list[ir.Value | None]) -> bool:
    """Whether a node computes each row from that row alone; `others` are its inputs that are not rows."""
    if node.domain or any(producer not in (None, "Transpose", "DequantizeLinear") for producer in _origins(others)):
        return False
    if node.op_type in POINTWISE:
        return all(v is None or (v.shape is not None and all(d == 1 for d in v.shape[:-1])) for v in others)
    if node.op_type in AXES:
        return attribute(node, "axis", AXES[node.op_type]) in WIDTH and node.inputs[0] not in others
    if node.op_type == "Slice":
        axes = edit.constant(node.inputs[3]) if len(node.inputs) > 3 else None
        return axes is not None and all(axis in WIDTH for axis in axes) and node.inputs[0] not in others
    return linear_of(node) is not None


def _origins(values: list[ir.Value | None]) -> Iterator[str | None]:
    """Yields the operators that values come from; None for stored values."""
    for value in values:
        if value is not None and not value.is_initializer():
            node = value.producer()
            yield "input" if node is None else node.op_type
            yield from _origins(list(node.inputs)) if node is not None else ()


class LastLogits(Pass):
    """Adds the graph input `logits_to_keep` (int64 [1]): only the last so many positions get logits, none for 0.

    The last layer runs for these positions alone, except for the keys and values that go to the cache.
    """

    name = "last-logits"
    version = 3  # the last layer too, no position at all, and logits say of how many positions they are

    def run(self, model: ir.Model) -> int:
        graph = model.graph
        head = head_of(graph)
        if head is None:
            return 0
        keep = add_input(graph, KEEP)
        last: list[ir.Value] = []

        def select(value: ir.Value, before: ir.Node) -> ir.Value:
            if not last:
                length = edit.insert(before, "Shape", [graph.inputs[0]], {"start": 1, "end": 2})
                last.extend(edit.insert(before, "Sub", [*length, keep]))
                last.extend((edit.ints(graph, [2**63 - 1]), edit.ints(graph, [1])))
            (rows,) = edit.insert(before, "Slice", [value, *last], name=f"{value.name}/kept")
            return rows

        return keep_rows(graph, head, select)
