"""Finds the files that an ONNX graph reads, with a walk over its protobuf (onnx itself is not needed).

The walk and the reader that opens the graph must see the same: where protobuf has rules for what should not occur, or
readers differ, the graph is refused. A field that a message has once is there once (readers take the last, or join
them), fields have the types of onnx.proto, and there are no others. Field numbers: onnx.proto of ONNX 1.21 (IR 13).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime_edge.wire import BYTES, FIXED32, FIXED64, VARINT, Wire, mapped_graph

_MAX_DEPTH = 64
_MAX_FIELDS = 2_000_000  # of a graph: SmolLM2-135M has 18,000

# message -> field number -> how often, its wire type, and the message that it is, where that is walked. A list of
# numbers may be packed into bytes.
_ONE, _MANY = False, True
_FIELDS: dict[str, dict[int, tuple[bool, int, str]]] = {
    "Model": {
        1: (_ONE, VARINT, ""), 2: (_ONE, BYTES, ""), 3: (_ONE, BYTES, ""), 4: (_ONE, BYTES, ""), 5: (_ONE, VARINT, ""),
        6: (_ONE, BYTES, ""), 7: (_ONE, BYTES, "Graph"), 8: (_MANY, BYTES, ""), 14: (_MANY, BYTES, ""),
        20: (_MANY, BYTES, "Training"), 25: (_MANY, BYTES, "Function"), 26: (_MANY, BYTES, ""),
    },
    "Training": {
        1: (_ONE, BYTES, "Graph"), 2: (_ONE, BYTES, "Graph"), 3: (_MANY, BYTES, ""), 4: (_MANY, BYTES, ""),
    },
    "Function": {
        1: (_ONE, BYTES, ""), 4: (_MANY, BYTES, ""), 5: (_MANY, BYTES, ""), 6: (_MANY, BYTES, ""),
        7: (_MANY, BYTES, "Node"), 8: (_ONE, BYTES, ""), 9: (_MANY, BYTES, ""), 10: (_ONE, BYTES, ""),
        11: (_MANY, BYTES, "Attribute"), 12: (_MANY, BYTES, ""), 13: (_ONE, BYTES, ""), 14: (_MANY, BYTES, ""),
    },
    "Graph": {
        1: (_MANY, BYTES, "Node"), 2: (_ONE, BYTES, ""), 5: (_MANY, BYTES, "Tensor"), 10: (_ONE, BYTES, ""),
        11: (_MANY, BYTES, ""), 12: (_MANY, BYTES, ""), 13: (_MANY, BYTES, ""), 14: (_MANY, BYTES, ""),
        15: (_MANY, BYTES, "SparseTensor"), 16: (_MANY, BYTES, ""),
    },
    "Node": {
        1: (_MANY, BYTES, ""), 2: (_MANY, BYTES, ""), 3: (_ONE, BYTES, ""), 4: (_ONE, BYTES, ""),
        5: (_MANY, BYTES, "Attribute"), 6: (_ONE, BYTES, ""), 7: (_ONE, BYTES, ""), 8: (_ONE, BYTES, ""),
        9: (_MANY, BYTES, ""), 10: (_MANY, BYTES, ""),
    },
    "Attribute": {
        1: (_ONE, BYTES, ""), 2: (_ONE, FIXED32, ""), 3: (_ONE, VARINT, ""), 4: (_ONE, BYTES, ""),
        5: (_ONE, BYTES, "Tensor"), 6: (_ONE, BYTES, "Graph"), 7: (_MANY, FIXED32, ""), 8: (_MANY, VARINT, ""),
        9: (_MANY, BYTES, ""), 10: (_MANY, BYTES, "Tensor"), 11: (_MANY, BYTES, "Graph"), 13: (_ONE, BYTES, ""),
        14: (_ONE, BYTES, ""), 15: (_MANY, BYTES, ""), 20: (_ONE, VARINT, ""), 21: (_ONE, BYTES, ""),
        22: (_ONE, BYTES, "SparseTensor"), 23: (_MANY, BYTES, "SparseTensor"),
    },
    "SparseTensor": {1: (_ONE, BYTES, "Tensor"), 2: (_ONE, BYTES, "Tensor"), 3: (_MANY, VARINT, "")},
    "Tensor": {
        1: (_MANY, VARINT, ""), 2: (_ONE, VARINT, ""), 3: (_ONE, BYTES, ""), 4: (_MANY, FIXED32, ""),
        5: (_MANY, VARINT, ""), 6: (_MANY, BYTES, ""), 7: (_MANY, VARINT, ""), 8: (_ONE, BYTES, ""),
        9: (_ONE, BYTES, ""), 10: (_MANY, FIXED64, ""), 11: (_MANY, VARINT, ""), 12: (_ONE, BYTES, ""),
        13: (_MANY, BYTES, "Entry"), 14: (_ONE, VARINT, ""), 16: (_MANY, BYTES, ""),
    },
}  # fmt: skip
_EXTERNAL_DATA, _DATA_LOCATION, _EXTERNAL = 13, 14, 1  # of TensorProto
_DATA = {4, 5, 6, 7, 9, 10, 11}  # its fields that hold data


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
        ArtifactError: The file is not an ONNX graph, an entry is malformed, or readers could see another graph in it.
    """
    with mapped_graph(path, name) as wire:
        yield from _Walker(wire).message("Model", 0, len(wire.data), 0)


class _Walker:
    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.left = _MAX_FIELDS

    def message(self, kind: str, start: int, end: int, depth: int) -> Iterator[ExternalData]:
        """Yields what lies under one message in data[start:end]."""
        if depth > _MAX_DEPTH:
            raise self.wire.fault(f"at most {_MAX_DEPTH} nested messages", "more")
        entries: list[tuple[str, str]] = []
        is_external = has_data = False
        for number, first, last in self.checked(kind, start, end):
            inner = _FIELDS[kind][number][2]
            if inner == "Entry":
                entries.append(self.wire.entry(first, last, "external data's entries"))
            elif inner:
                yield from self.message(inner, first, last, depth + 1)
            elif kind == "Tensor" and number == _DATA_LOCATION:
                is_external = self.wire.varint(first, last)[0] == _EXTERNAL
            elif kind == "Tensor" and number in _DATA:
                has_data = True
        if entries or is_external:
            yield from self.places(entries)
            if not is_external or has_data:
                raise self.wire.fault(
                    "tensors whose data are in the graph or in a file, and say so",
                    "one with both" if has_data else "one with a file that it does not say it has",
                )

    def checked(self, kind: str, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yields (field number, first, last) of a message's fields, which are those that it may have."""
        fields, once = _FIELDS[kind], set()
        for number, wire, first, last in self.wire.fields(start, end):
            known = fields.get(number)
            if known is None:
                raise self.wire.fault("fields of ONNX 1.21", f"field {number} in a message {kind}")
            is_list, expected, _ = known
            if wire != expected and not (is_list and wire == BYTES):
                raise self.wire.fault(f"field {number} of a message {kind} of type {expected}", f"type {wire}")
            if not is_list:
                if number in once:
                    raise self.wire.fault(f"field {number} of a message {kind} once", "it twice")
                once.add(number)
            self.left -= 1
            if self.left < 0:
                raise self.wire.fault(f"at most {_MAX_FIELDS} fields", "more")
            yield number, first, last

    def places(self, entries: list[tuple[str, str]]) -> Iterator[ExternalData]:
        """Yields where a tensor's data lie: one place, but for tensors that are refused after it."""
        numbers = {"offset": 0, "length": 0}
        locations = [value for key, value in entries if key == "location"]
        for key, value in entries:
            if key in numbers:
                if not (value.isascii() and value.isdigit() and len(value) < 20):
                    raise self.wire.fault(f"a byte count as external data's {key}", repr(value[:40]))
                numbers[key] = max(numbers[key], int(value))
        for location in locations:
            yield ExternalData(location, numbers["offset"], numbers["length"])
        keys = [key for key, _ in entries]
        if len(set(keys)) != len(keys) or not locations:
            listed = ", ".join(map(repr, keys[:9])) or "none"
            raise self.wire.fault("external data with a location, and each key once", listed)
