"""The nodes of an ONNX graph with the modules that they came from, read without onnx.

Field numbers: onnx.proto of ONNX 1.21 (IR 13).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime_edge.wire import BYTES, Wire, mapped_graph

MODULE_KEY = "lepton.module"  # of a node's metadata_props: the module path that it was captured from

_GRAPH, _NODE = 7, 1  # of ModelProto, of GraphProto
_NAME, _OP_TYPE, _METADATA = 3, 4, 9  # of NodeProto


@dataclass(frozen=True)
class Node:
    """A node of a graph; `module` is the path of the module that it came from, empty where it is not known."""

    name: str
    op_type: str
    module: str = ""


def read_nodes(path: Path) -> tuple[Node, ...]:
    """Reads the nodes of a graph in their order, without those of its functions and subgraphs.

    Raises:
        ArtifactError: The file is not an ONNX graph.
    """
    with mapped_graph(path, path.name) as wire:
        return tuple(
            _node(wire, start, end)
            for number, kind, first, last in wire.fields(0, len(wire.data))
            if (number, kind) == (_GRAPH, BYTES)
            for inner, inner_kind, start, end in wire.fields(first, last)
            if (inner, inner_kind) == (_NODE, BYTES)
        )


def _node(wire: Wire, start: int, end: int) -> Node:
    texts = {_NAME: "", _OP_TYPE: ""}
    module = ""
    for number, kind, first, last in wire.fields(start, end):
        if kind != BYTES:
            continue
        if number in texts:
            texts[number] = wire.text(first, last, "names of nodes")
        elif number == _METADATA:
            key, value = wire.entry(first, last, "metadata of nodes")
            module = value if key == MODULE_KEY else module
    return Node(texts[_NAME], texts[_OP_TYPE], module)


class Origins:
    """Says of a node's name which module it came from; the graph is read when the first is asked for.

    Args:
        graph: The ONNX file.
        modules: Module paths by node name, where the caller has them. Default: those in the file.
    """

    def __init__(self, graph: Path, modules: Mapping[str, str] | None) -> None:
        self._graph = graph
        self._modules = modules

    def of(self, name: str, index: int = -1) -> str:
        """Returns ` of MODULE` for a node by its name, or by its index where it has none; empty if not known."""
        if not name and index >= 0:
            nodes = read_nodes(self._graph)
            module = nodes[index].module if index < len(nodes) else ""
        else:
            if self._modules is None:
                self._modules = {node.name: node.module for node in read_nodes(self._graph) if node.module}
            module = self._modules.get(name, "")
        return f" of {module}" if module else ""

    def named_in(self, text: str) -> list[str]:
        """Returns `NODE of MODULE` for every node whose name stands in a message, in its order."""
        words = text.replace("...", " ").translate(_SEPARATORS).split()
        origins = {word: self.of(word) for word in words}
        return [f"{word}{origin}" for word, origin in origins.items() if origin]


_SEPARATORS = str.maketrans(dict.fromkeys("'\"[]{}(),;+", " "))
