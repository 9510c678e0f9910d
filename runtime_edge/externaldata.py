"""Finds the files that an ONNX graph reads, with a minimal walk over its protobuf (onnx itself is not needed).

Field numbers: onnx.proto of ONNX 1.21 (IR 13).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime_edge.wire import BYTES, Wire, mapped_graph

_MAX_DEPTH = 64

# message -> field number -> message of that field: only the fields on a way to TensorProto.external_data.
_FIELDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}
_EXTERNAL_DATA = 13  # of TensorProto: repeated StringStringEntryProto {1: key, 2: value}


@dataclass(frozen=True)
class ExternalData:
    """One tensor's data outside the graph: `length` bytes at `offset` of the file `location`, beside the graph."""

    location: str
    offset: int
    length: int


def external_data(path: Path, name: str) -> Iterator[ExternalData]:
    """Yields the external data of every tensor of a graph, those in nodes, subgraphs and functions too.

    Args:
        path: The `.onnx` file.
        name: What messages call it.

    Raises:
        ArtifactError: The file is not an ONNX graph, or an entry is malformed.
    """
    with mapped_graph(path, name) as wire:
        yield from _Walker(wire).message("Model", 0, len(wire.data), 0)


class _Walker:
    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    def message(self, kind: str, start: int, end: int, depth: int) -> Iterator[ExternalData]:
        """Yields what lies under one message in data[start:end]."""
        if depth > _MAX_DEPTH:
            raise self.wire.fault(f"at most {_MAX_DEPTH} nested messages", "more")
        if kind == "Tensor":
            yield from self.tensor(start, end)
            return
        known = _FIELDS[kind]
        for number, wire, first, last in self.wire.fields(start, end):
            # Descend only where a tensor can name a file: its key is the literal `location`. Data without a
            # location is left to the backend, which refuses it.
            if wire == BYTES and number in known and self.wire.data.find(b"location", first, last) >= 0:
                yield from self.message(known[number], first, last, depth + 1)

    def tensor(self, start: int, end: int) -> Iterator[ExternalData]:
        locations: list[str] = []
        numbers = {"offset": 0, "length": 0}
        for number, wire, first, last in self.wire.fields(start, end):
            if number != _EXTERNAL_DATA or wire != BYTES:
                continue
            key, value = self.wire.entry(first, last, "external data's entries")
            if key == "location":
                locations.append(value)
            elif key in numbers:
                if not (value.isascii() and value.isdigit() and len(value) < 20):
                    raise self.wire.fault(f"a byte count as external data's {key}", repr(value[:40]))
                numbers[key] = max(numbers[key], int(value))
        # Every one of repeated keys is checked: which of them a reader takes is not defined.
        for location in locations:
            yield ExternalData(location, numbers["offset"], numbers["length"])
