"""Attention windows in versions of ONNX Runtime that count them otherwise.

Up to 1.23, GroupQueryAttention's kernel for CPUs attends to `local_window_size` positions and the token's own; from
1.24 on, the token's own is among them, as it is in artifacts. An older version opens a copy of the graph whose windows
have one position less.
"""

from __future__ import annotations

from pathlib import Path

from runtime_edge.ort import release
from runtime_edge.wire import BYTES, VARINT, Wire, mapped_graph

_COUNTS_ITSELF = (1, 24)  # the first version whose window holds the token's own position
_GRAPH, _NODE, _ATTRIBUTE, _OP_TYPE = 7, 1, 5, 4  # of ModelProto, GraphProto, NodeProto
_NAME, _INTEGER = 1, 3  # of AttributeProto
_OPERATOR, _WINDOW = b"GroupQueryAttention", b"local_window_size"


def rewritten(graph: Path, version: str) -> bytes | None:
    """Returns the graph with windows as this version of ONNX Runtime counts them, or None where it is right as it is.

    Raises:
        ArtifactError: A window is of the token's own position alone, which an older version cannot do.
    """
    if release(version) >= _COUNTS_ITSELF:
        return None
    with mapped_graph(graph, graph.name) as wire:
        if wire.data.find(_WINDOW) < 0:
            return None
        changed = bytearray(wire.data)
        windows = [at for extent in _nodes(wire) for at in _window(wire, *extent)]
        for first, last in windows:
            value, _ = wire.varint(first, last)
            if value < 2:
                raise wire.fault("attention windows of two positions or more for ONNX Runtime 1.23", str(value))
            changed[first:last] = _varint(value - 1, last - first)
    return bytes(changed) if windows else None


def _nodes(wire: Wire) -> list[tuple[int, int]]:
    graphs = [(first, last) for number, kind, first, last in wire.fields(0, len(wire.data))
              if (number, kind) == (_GRAPH, BYTES)]  # fmt: skip
    return [(first, last) for start, end in graphs for number, kind, first, last in wire.fields(start, end)
            if (number, kind) == (_NODE, BYTES)]  # fmt: skip


def _window(wire: Wire, start: int, end: int) -> list[tuple[int, int]]:
    """Where a node has its window's number; nowhere if it is of another operator, or its window is not bounded."""
    fields = [field for field in wire.fields(start, end) if field[1] == BYTES]
    if not any(number == _OP_TYPE and wire.data[first:last] == _OPERATOR for number, _, first, last in fields):
        return []
    places = []
    for number, _, first, last in fields:
        if number != _ATTRIBUTE:
            continue
        parts = list(wire.fields(first, last))
        if any(part == _NAME and wire.data[start:end] == _WINDOW for part, _, start, end in parts):
            # Negative is without bound, and takes the ten bytes that nothing else does.
            places += [(start, end) for part, kind, start, end in parts
                       if (part, kind) == (_INTEGER, VARINT) and end - start < 10]  # fmt: skip
    return places


def _varint(value: int, length: int) -> bytes:
    """A number in so many bytes: those that it does not need say that more follow, and add nothing."""
    return bytes(value >> 7 * at & 0x7F | (0x80 if at < length - 1 else 0) for at in range(length))
