"""Finds the files that an ONNX graph reads, with a minimal walk over its protobuf (onnx itself is not needed).

Wire format: https://protobuf.dev/programming-guides/encoding; field numbers: onnx.proto of ONNX 1.21 (IR 13).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime_edge.errors import ArtifactError

_MAX_DEPTH = 64
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10

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
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield from _Walker(data, name).message("Model", 0, len(data), 0)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise ArtifactError(f"{name}: expected an ONNX graph, found: {error}") from error


class _Walker:
    def __init__(self, data: mmap.mmap, name: str) -> None:
        self.data = data
        self.name = name

    def message(self, kind: str, start: int, end: int, depth: int) -> Iterator[ExternalData]:
        """Yields what lies under one message in data[start:end]."""
        if depth > _MAX_DEPTH:
            raise self.fault(f"at most {_MAX_DEPTH} nested messages", "more")
        if kind == "Tensor":
            yield from self.tensor(start, end)
            return
        known = _FIELDS[kind]
        for number, wire, first, last in self.fields(start, end):
            # Descend only where a tensor can name a file: its key is the literal `location`. Data without a
            # location is left to the backend, which refuses it.
            if wire == _BYTES and number in known and self.data.find(b"location", first, last) >= 0:
                yield from self.message(known[number], first, last, depth + 1)

    def tensor(self, start: int, end: int) -> Iterator[ExternalData]:
        locations: list[str] = []
        numbers = {"offset": 0, "length": 0}
        for number, wire, first, last in self.fields(start, end):
            if number != _EXTERNAL_DATA or wire != _BYTES:
                continue
            key, value = self.entry(first, last)
            if key == "location":
                locations.append(value)
            elif key in numbers:
                if not (value.isascii() and value.isdigit() and len(value) < 20):
                    raise self.fault(f"a byte count as external data's {key}", repr(value[:40]))
                numbers[key] = max(numbers[key], int(value))
        # Every one of repeated keys is checked: which of them a reader takes is not defined.
        for location in locations:
            yield ExternalData(location, numbers["offset"], numbers["length"])

    def entry(self, start: int, end: int) -> tuple[str, str]:
        texts = {1: "", 2: ""}
        for number, wire, first, last in self.fields(start, end):
            if wire == _BYTES and number in texts:
                try:
                    texts[number] = self.data[first:last].decode("utf-8")
                except UnicodeDecodeError as error:
                    raise self.fault("external data's entries in UTF-8", str(error)) from error
        return texts[1], texts[2]

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yields (field number, wire type, first, last) of the fields in data[start:end]."""
        position = start
        while position < end:
            tag, position = self.varint(position, end)
            number, wire = tag >> 3, tag & 7
            first = position
            if wire == _VARINT:
                _, position = self.varint(position, end)
            elif wire == _BYTES:
                length, first = self.varint(position, end)
                position = first + length
            elif wire in (_FIXED64, _FIXED32):
                position += 8 if wire == _FIXED64 else 4
            else:
                raise self.fault("an ONNX graph (protobuf)", f"wire type {wire} at byte {start}")
            if position > end or number == 0:
                raise self.fault("an ONNX graph (protobuf)", f"a field that leaves its message at byte {first}")
            yield number, wire, first, position

    def varint(self, position: int, end: int) -> tuple[int, int]:
        value = 0
        for index in range(_MAX_VARINT_BYTES):
            if position + index >= end:
                break
            byte = self.data[position + index]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value, position + index + 1
        raise self.fault("an ONNX graph (protobuf)", f"a malformed number at byte {position}")

    def fault(self, expected: str, found: str) -> ArtifactError:
        return ArtifactError(f"{self.name}: expected {expected}, found {found}")
