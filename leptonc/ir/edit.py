"""Small edits of a graph that passes and lowerings share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from leptonc.ir.dialect import MODULE_KEY, module_of


def producer(value: ir.Value | None, op: str = "", domain: str = "") -> ir.Node | None:
    """Returns the node that makes `value`. None: there is no such node, or it has another operator."""
    node = value.producer() if value is not None else None
    return node if node is not None and (not op or (node.op_type == op and node.domain == domain)) else None


def only_user(value: ir.Value) -> ir.Node | None:
    """Returns the one node that reads `value`, or None when several do, none does, or it is a graph output."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def behind(node: ir.Node) -> set[ir.Node]:
    """Returns a node and all nodes that depend on it."""
    nodes, unread = {node}, [node]
    while unread:
        new = {use.node for value in unread.pop().outputs for use in value.uses()} - nodes
        nodes |= new
        unread += new
    return nodes


def constant(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """Returns the data of a small constant, or None when `value` is not one. Weights are not read by this."""
    if value is None or value.const_value is None or isinstance(value.const_value, ir.LazyTensor):
        return None
    array: np.ndarray[Any, Any] = value.const_value.numpy()
    return array


def insert(
    before: ir.Node, op: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any] | None = None, *,
    domain: str = "", outputs: int = 1, name: str = "", module: str | None = None,
) -> list[ir.Value]:  # fmt: skip
    """Inserts a node before another, and returns its outputs. It gets the other's module, or `module`."""
    node = ir.node(op, inputs, attributes or {}, domain=domain, num_outputs=outputs)
    node.name = name or f"{before.name}/{op}"
    for i, value in enumerate(node.outputs):
        value.name = f"{node.name}_{i}" if i else node.name
    path = module_of(before) if module is None else module
    if path:
        node.metadata_props[MODULE_KEY] = path
    graph = before.graph
    if graph is None:
        raise ValueError("the node to insert before is in no graph")
    graph.insert_before(before, node)
    return list(node.outputs)


def append(
    after: ir.Node, op: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any] | None = None, *, name: str
) -> ir.Value:  # fmt: skip
    """Inserts a node after another, and returns its output. All readers of the other's output read the new node's."""
    node = ir.node(op, inputs, attributes or {})
    node.name = node.outputs[0].name = name
    if path := module_of(after):
        node.metadata_props[MODULE_KEY] = path
    if after.graph is None:
        raise ValueError("the node to insert after is in no graph")
    replace(after.outputs[0], node.outputs[0])
    # Last, because it reads what it replaces.
    node.replace_input_with(list(node.inputs).index(node.outputs[0]), after.outputs[0])
    after.graph.insert_after(after, node)
    return node.outputs[0]


def insert_last(
    graph: ir.Graph, op: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any] | None = None, *,
    name: str,
) -> list[ir.Value]:  # fmt: skip
    """Appends a node to the graph, and returns its outputs. It gets the module of its first input's producer."""
    node = ir.node(op, inputs, attributes or {})
    node.name = name
    for i, value in enumerate(node.outputs):
        value.name = f"{name}_{i}" if i else name
    made = producer(inputs[0])
    if made is not None and module_of(made):
        node.metadata_props[MODULE_KEY] = module_of(made)
    graph.append(node)
    return list(node.outputs)


def replace(old: ir.Value, new: ir.Value) -> None:
    """Lets all readers of `old` read `new`. A graph output keeps its name."""
    if new.shape is None:
        new.shape = old.shape
    if new.type is None:
        new.type = old.type
    graph = old.graph
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    if graph is not None and new.is_graph_output():
        new.name, old.name = old.name, f"{old.name}.replaced"


def initializer(graph: ir.Graph, name: str, tensor: Any) -> ir.Value:
    """Registers `tensor` under `name`, or returns the initializer that has the name already."""
    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def ints(graph: ir.Graph, values: Sequence[int] | int) -> ir.Value:
    """Returns an int64 constant; equal ones are one initializer."""
    array = np.asarray(values, dtype=np.int64)
    name = "ints_" + ("_".join(str(v) for v in array.reshape(-1)) or "none") + ("" if array.ndim else "_scalar")
    return initializer(graph, name, ir.tensor(array, name=name))


def cleanup(model: ir.Model) -> None:
    """Removes, in place, duplicates of nodes, and nodes and initializers that nothing reads.

    Graph inputs stay, because the task names them.
    """
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
