"""Reads the protobuf wire format in place: fields and their extents, without knowing what they mean.

Wire format: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime_edge.errors import ArtifactError
from runtime_edge.stamps import read_regular

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10
_MAX_TAG = 2**32 - 1  # readers in C++ drop the bits above: they see another field
_MAX_LENGTH = _MAX_GRAPH = 2**31 - 1


@contextmanager
def mapped_graph(path: Path, name: str) -> Iterator[Wire]:
    """Reads an ONNX file, whose weights are elsewhere; `name` is what messages call it.

    Raises:
        ArtifactError: The file cannot be read, is empty, or is larger than protobuf has it.
    """
    data = read_regular(path, name, _MAX_GRAPH)
    if not 0 < len(data) <= _MAX_GRAPH:
        raise ArtifactError(f"{name}: expected an ONNX graph, found {'more than 2 GB' if data else 'an empty file'}")
    yield Wire(data, name)


class Wire:
    """The bytes of messages; every extent is checked to lie within the message that holds it."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data = data
        self.name = name

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yields (field number, wire type, first, last) of the fields in data[start:end].

        What readers do not agree on is refused: tags and lengths of more bits than they have, or in more bytes than
        they take; groups, which no message of ONNX has.
        """
        data, position = self.data, start
        while position < end:
            at = position
            tag = data[position]
            if tag < 0x80:
                position += 1
            else:
                tag, position = self.short(position, end, _MAX_TAG)
            number, wire = tag >> 3, tag & 7
            first = position
            if wire == BYTES:
                length = data[position] if position < end else 0x80
                if length < 0x80:
                    first = position + 1
                else:
                    length, first = self.short(position, end, _MAX_LENGTH)
                position = first + length
            elif wire == VARINT:
                _, position = self.varint(position, end)
            elif wire in (FIXED64, FIXED32):
                position += 8 if wire == FIXED64 else 4
            else:
                raise self.fault("an ONNX graph (protobuf)", f"wire type {wire} at byte {at}")
            if position > end or number == 0:
                raise self.fault("an ONNX graph (protobuf)", f"a field that leaves its message at byte {at}")
            yield number, wire, first, position

    def short(self, position: int, end: int, most: int) -> tuple[int, int]:
        """Returns a tag or a length, at most `most` and in as few bytes as it takes, and where it ends."""
        value, stop = self.varint(position, end)
        if value > most or (stop - position > 1 and self.data[stop - 1] == 0):
            raise self.fault("an ONNX graph (protobuf)", f"a number of too many bits at byte {position}")
        return value, stop

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """Returns a number of at most 64 bits and where it ends."""
        value = 0
        for index in range(_MAX_VARINT_BYTES):
            if position + index >= end:
                break
            byte = self.data[position + index]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                if value >> 64:
                    break
                return value, position + index + 1
        raise self.fault("an ONNX graph (protobuf)", f"a malformed number at byte {position}")

    def entry(self, start: int, end: int, what: str) -> tuple[str, str]:
        """Returns key and value of a StringStringEntryProto {1: key, 2: value}; `what` it belongs to, for messages."""
        texts: dict[int, str] = {}
        for number, wire, first, last in self.fields(start, end):
            if wire != BYTES or number not in (1, 2) or number in texts:
                raise self.fault(f"{what} with a key and a value, once each", f"field {number} of type {wire}")
            texts[number] = self.text(first, last, what)
        return texts.get(1, ""), texts.get(2, "")

    def text(self, first: int, last: int, what: str) -> str:
        """Returns data[first:last] as text."""
        try:
            return self.data[first:last].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fault(f"{what} in UTF-8", str(error)) from error

    def fault(self, expected: str, found: str) -> ArtifactError:
        """The error for a file that is not what it should be."""
        return ArtifactError(f"{self.name}: expected {expected}, found {found}")
