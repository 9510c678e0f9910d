"""Cuts a graph of the dialect into stages: nodes that run together, one layer after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import onnx_ir as ir

from leptonc.ir import edit
from leptonc.ir.dialect import module_of
from leptonc.ir.structure import Linear, layer_of, linear_of


@dataclass
class Stage:
    """Nodes that run together: what comes before the layers, each layer, and what comes after.

    Attributes:
        path: The layer's module path; "" before the first.
        inputs: Values from outside that the nodes read, by name.
        outputs: Values that later stages read, by name.
        linears: Linear layers among the nodes, by the name of the value that they read.
    """

    path: str
    nodes: list[ir.Node] = field(default_factory=list)
    inputs: dict[str, ir.Value] = field(default_factory=dict)
    outputs: dict[str, ir.Value] = field(default_factory=dict)
    linears: dict[str, list[Linear]] = field(default_factory=dict)

    @property
    def made(self) -> set[str]:
        """Names of all values that the nodes make."""
        return {str(value.name) for node in self.nodes for value in node.outputs}


def _layer(node: ir.Node) -> str:
    return layer_of(module_of(node))


def stages(
    model: ir.Model, stage_of: Callable[[ir.Node], str] = _layer, *, outside: bool = False
) -> list[Stage]:  # fmt: skip
    """Cuts a graph into stages; a node runs as early as its inputs and its layer allow.

    A node that depends on no input (the transpose of a head's weight) belongs to the nodes that read it. It is in no
    stage.

    Args:
        model: The graph.
        stage_of: Names the earliest stage that a node may be in, "" for any. Default: the node's layer.
        outside: Whether `linears` has the linear layers that are in no layer, such as a head. Default: it does not.
    """
    cut = [Stage("")]
    index: dict[str, int] = {}
    stage_at: dict[ir.Value, int] = dict.fromkeys(model.graph.inputs, -1)  # where each value is made
    for node in model.graph:
        path = stage_of(node)
        if path and path not in index:
            index[path] = len(cut)
            cut.append(Stage(path))
        sources = [stage_at[v] for v in node.inputs if v is not None and v in stage_at]
        if not sources:
            continue
        here = max([index.get(path, 0), *sources])
        stage = cut[here]
        stage.nodes.append(node)
        stage_at.update(dict.fromkeys(node.outputs, here))
        for value in node.inputs:
            if value is not None and value in stage_at and stage_at[value] < here:
                stage.inputs[str(value.name)] = value
                if stage_at[value] >= 0:
                    cut[stage_at[value]].outputs[str(value.name)] = value
        linear = linear_of(node)
        if linear is not None and (outside or layer_of(linear.path)):
            stage.linears.setdefault(str(linear.x.name), []).append(linear)
    return cut


def linear_stages(model: ir.Model, *, outside: bool = False) -> list[Stage]:
    """Cuts a graph into stages that begin with linear layers: earlier stages make what these read.

    Linear layers that read one value, such as query, key and value, are in one stage, which has the first one's path.
    Where a layer serves again, its depth follows after "@". Nodes that no linear layer precedes are in the first stage.

    Args:
        model: The graph.
        outside: See `stages`.
    """
    depths: dict[ir.Node, int] = {}
    names: dict[int, str] = {0: ""}
    for node in model.graph:
        before = [made for value in node.inputs if (made := edit.producer(value)) is not None]
        linear = linear_of(node)
        depths[node] = max((depths[made] for made in before), default=0) + (linear is not None)
        if linear is not None and (depth := depths[node]) not in names:
            names[depth] = f"{linear.path}@{depth}" if linear.path in names.values() else linear.path
    return stages(model, lambda node: names[depths[node]], outside=outside)
