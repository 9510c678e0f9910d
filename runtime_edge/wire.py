"""Reads the protobuf wire format in place: fields and their extents, without knowing what they mean.

Wire format: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime_edge.errors import ArtifactError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


@contextmanager
def mapped_graph(path: Path, name: str) -> Iterator[Wire]:
    """Maps an ONNX file while the context lasts; `name` is what messages call it.

    Raises:
        ArtifactError: The file cannot be read or is empty; also where what is read in the context raises these.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield Wire(data, name)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise ArtifactError(f"{name}: expected an ONNX graph, found: {error}") from error


class Wire:
    """The bytes of messages; every extent is checked to lie within the message that holds it."""

    def __init__(self, data: mmap.mmap, name: str) -> None:
        self.data = data
        self.name = name

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yields (field number, wire type, first, last) of the fields in data[start:end]."""
        position = start
        while position < end:
            tag, position = self.varint(position, end)
            number, wire = tag >> 3, tag & 7
            first = position
            if wire == VARINT:
                _, position = self.varint(position, end)
            elif wire == BYTES:
                length, first = self.varint(position, end)
                position = first + length
            elif wire in (FIXED64, FIXED32):
                position += 8 if wire == FIXED64 else 4
            else:
                raise self.fault("an ONNX graph (protobuf)", f"wire type {wire} at byte {start}")
            if position > end or number == 0:
                raise self.fault("an ONNX graph (protobuf)", f"a field that leaves its message at byte {first}")
            yield number, wire, first, position

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """Returns a number and where it ends."""
        value = 0
        for index in range(_MAX_VARINT_BYTES):
            if position + index >= end:
                break
            byte = self.data[position + index]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value, position + index + 1
        raise self.fault("an ONNX graph (protobuf)", f"a malformed number at byte {position}")

    def entry(self, start: int, end: int, what: str) -> tuple[str, str]:
        """Returns key and value of a StringStringEntryProto {1: key, 2: value}; `what` it belongs to, for messages."""
        texts = {1: "", 2: ""}
        for number, wire, first, last in self.fields(start, end):
            if wire == BYTES and number in texts:
                texts[number] = self.text(first, last, what)
        return texts[1], texts[2]

    def text(self, first: int, last: int, what: str) -> str:
        """Returns data[first:last] as text."""
        try:
            return self.data[first:last].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fault(f"{what} in UTF-8", str(error)) from error

    def fault(self, expected: str, found: str) -> ArtifactError:
        """The error for a file that is not what it should be."""
        return ArtifactError(f"{self.name}: expected {expected}, found {found}")
