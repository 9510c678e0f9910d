"""The walk over a graph's protobuf, beside onnx's own parser: files that onnx would read, the walk has seen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from runtime_edge.errors import ArtifactError
from runtime_edge.externaldata import _FIELDS, external_data


def number(value: int, length: int = 0) -> bytes:
    """A varint, of `length` bytes or as few as it takes."""
    out = bytearray()
    while value >= 0x80 or len(out) + 1 < length:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(tag: int, data: bytes, *, wide: int = 0, above: int = 0, length: int = 0) -> bytes:
    """A field of bytes; `wide` bytes in its tag, bits `above` the 32nd in it, `length` bytes in its length."""
    return number(tag << 3 | 2 | above << 32, wide) + number(len(data), length) + data


def integer(tag: int, value: int) -> bytes:
    return number(tag << 3) + number(value)


def entry(key: bytes, value: bytes) -> bytes:
    return field(1, key) + field(2, value)


def tensor(location: bytes = b"blob", extra: bytes = b"") -> bytes:
    return (
        integer(1, 1)
        + integer(2, 1)
        + field(8, b"x")
        + field(13, entry(b"location", location))
        + integer(14, 1)
        + extra
    )


def model_of(graph: bytes, extra: bytes = b"") -> bytes:
    return integer(1, 10) + field(7, graph) + extra


def seen(data: bytes, path: Path) -> list[str]:
    (path / "g.onnx").write_bytes(data)
    return sorted(one.location for one in external_data(path / "g.onnx", "g.onnx"))


def tensors(message: Message) -> Iterator[TensorProto]:
    """Every tensor anywhere in a message, by protobuf's own account of it."""
    if isinstance(message, TensorProto):
        yield message
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for inner in value if isinstance(value, (list, tuple)) or hasattr(value, "append") else [value]:
                yield from tensors(inner)


def read(data: bytes) -> list[str] | None:
    """The locations that onnx reads; None where it does not parse the graph."""
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError:
        return None
    return sorted(e.value for t in tensors(model) for e in t.external_data if e.key == "location")


WHOLE = field(5, tensor())
NODE = field(4, b"Constant") + field(5, field(1, b"value") + field(5, tensor(b"inside")) + integer(20, 4))
HIDDEN = field(5, tensor(b"/etc/passwd"))
HOSTILE = {
    "a tag with bits above 32": model_of(WHOLE + field(5, tensor(b"/etc/passwd"), above=1, wide=5)),
    "a tag with all bits above 32": model_of(WHOLE + field(5, tensor(b"/etc/passwd"), above=7)),
    "a tag of the graph with bits above 32": field(7, HIDDEN, above=1) + integer(1, 10),
    "a tag in more bytes than it takes": model_of(WHOLE + field(5, tensor(b"/etc/passwd"), wide=3)),
    "a tag of six bytes": model_of(WHOLE + field(5, tensor(b"/etc/passwd"), wide=6)),
    "a length in more bytes than it takes": model_of(WHOLE + field(5, tensor(b"/etc/passwd"), length=4)),
    "a length with bits above 32": model_of(WHOLE + b"\x2a" + number(2**32 + 2) + b"\x08\x01"),
    "a graph twice": model_of(WHOLE) + field(7, HIDDEN),
    "a version twice": model_of(WHOLE) + integer(1, 11),
    "a graph's name twice": model_of(WHOLE + field(2, b"a") + field(2, b"b")),
    "a tensor's place twice": model_of(field(5, tensor(extra=integer(14, 0)))),
    "a tensor's type twice": model_of(field(5, tensor(extra=integer(2, 6)))),
    "a tensor's name twice": model_of(field(5, tensor(extra=field(8, b"y")))),
    "an attribute's tensor twice": model_of(
        field(1, field(5, field(5, field(13, entry(b"location", b"a"))) + field(5, integer(14, 1)))) + WHOLE
    ),
    "an attribute's graph twice": model_of(field(1, field(5, field(6, WHOLE) + field(6, HIDDEN)))),
    "a node's operator twice": model_of(field(1, field(4, b"A") + field(4, b"B"))),
    "a sparse tensor's values twice": model_of(field(15, field(1, tensor()) + field(1, tensor(b"other")))),
    "a key twice in an entry": model_of(
        field(5, integer(14, 1) + field(13, field(1, b"x") + entry(b"location", b"/etc/passwd")))
    ),
    "a location twice": model_of(field(5, tensor(extra=field(13, entry(b"location", b"blob"))))),
    "an offset twice": model_of(
        field(5, tensor(extra=field(13, entry(b"offset", b"0")) + field(13, entry(b"offset", b"64"))))
    ),
    "an entry with another field": model_of(
        field(5, integer(14, 1) + field(13, entry(b"location", b"a") + integer(3, 1)))
    ),
    "no location": model_of(field(5, integer(14, 1))),
    "an empty entry": model_of(field(5, integer(14, 1) + field(13, b""))),
    "a file that is not said to be one": model_of(field(5, field(13, entry(b"location", b"blob")))),
    "a file and data": model_of(field(5, tensor(extra=field(9, b"1234")))),
    "a file and numbers": model_of(field(5, tensor(extra=field(4, b"1234")))),
    "a location that is no text": model_of(field(5, tensor(b"\xff"))),
    "a group": model_of(WHOLE + b"\x2b" + tensor() + b"\x2c"),
    "field 0": model_of(WHOLE + b"\x02\x00"),
    "a field that ONNX has not": model_of(WHOLE + field(999, b"")),
    "a field that tensors have not": model_of(field(5, tensor(extra=field(15, b"")))),
    "a graph that is a number": model_of(WHOLE) + integer(7, 1),
    "a place that is bytes": model_of(field(5, field(13, entry(b"location", b"a")) + field(14, b"\x01"))),
    "a name that is a number": model_of(field(5, tensor(extra=b"")[:-2] + integer(8, 1))),
    "a number of eleven bytes": model_of(WHOLE) + b"\x28" + b"\x80" * 10 + b"\x01",
    "a number of 70 bits": model_of(WHOLE) + b"\x28" + b"\xff" * 9 + b"\x7f",
    "a tag alone": model_of(WHOLE) + b"\x2a",
    "a length alone": model_of(WHOLE) + b"\x2a\x80",
    "a field beyond the end": model_of(WHOLE) + field(14, b"12345")[:-1],
    "numbers beyond the end": model_of(field(5, tensor(extra=b"\x25\x00"))),
    "64 bits beyond the end": model_of(field(5, tensor(extra=b"\x51\x00"))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_readers_do_not_agree_on_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"g\.onnx: expected "):
        seen(HOSTILE[name], tmp_path)


def test_what_onnx_writes_is_read(tmp_path: Path) -> None:
    assert seen(model_of(WHOLE + field(1, NODE)), tmp_path) == ["blob", "inside"]
    assert read(model_of(WHOLE + field(1, NODE))) == ["blob", "inside"]
    packed = field(5, field(1, b"\x01\x02") + integer(2, 7) + field(7, b"\x01\x02") + field(8, b"packed"))
    assert seen(model_of(packed), tmp_path) == []
    negative = integer(1, 2**64 - 1)
    assert seen(negative + field(7, WHOLE), tmp_path) == ["blob"]


def test_the_fields_are_onnxs() -> None:
    """The table has every field of these messages, with its number, type, and whether it is a list."""
    for kind, fields in _FIELDS.items():
        name = {"Training": "TrainingInfoProto"}.get(kind, f"{kind}Proto")
        descriptor = getattr(onnx.onnx_ml_pb2, name).DESCRIPTOR
        assert {each.number for each in descriptor.fields} == set(fields), kind
        for each in descriptor.fields:
            is_list, wire, inner = fields[each.number]
            expected = {1: 1, 2: 5}.get(each.type, 2 if each.type in (9, 11, 12) else 0)
            assert (is_list, wire) == (each.is_repeated, expected), (kind, each.name)
            target = each.message_type.name.removesuffix("Proto") if each.message_type is not None else ""
            walked = {"TrainingInfo": "Training", "StringStringEntry": "Entry"}.get(target, target)
            if walked in _FIELDS or (kind, each.number) == ("Tensor", 13):
                assert inner == walked, (kind, each.name)


def base() -> bytes:
    """A graph with a tensor in each place, as onnx writes it."""

    def made(location: str) -> TensorProto:
        one = TensorProto(name=location, dims=[1], data_type=1, data_location=TensorProto.EXTERNAL)
        one.external_data.add(key="location", value=location)
        one.external_data.add(key="offset", value="0")
        return one

    node = helper.make_node("Constant", [], ["c"], value=made("node"))
    inner = helper.make_graph([helper.make_node("Constant", [], ["d"], value=made("inner"))], "s", [], [])
    graph = helper.make_graph(
        [node, helper.make_node("If", ["c"], ["y"], then_branch=inner)], "g", [], [], [made("one")]
    )
    graph.sparse_initializer.add(values=made("values"), indices=made("indices"))
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]).SerializeToString())


BASE = base()
EDIT = st.tuples(
    st.integers(0, len(BASE) - 1), st.integers(0, 8),
    st.one_of(
        st.binary(max_size=6), st.sampled_from([BASE[i:j] for i in range(0, len(BASE), 7) for j in (i + 9, i + 40)]),
        st.builds(
            lambda tag, above, wide: field(tag, tensor(b"/etc/passwd"), above=above, wide=wide),
            st.sampled_from([1, 5, 7, 13, 14, 15, 22]), st.sampled_from([0, 0, 1, 4, 2**31]), st.integers(0, 10),
        ),
        st.builds(lambda tag, value: integer(tag, value), st.integers(0, 30), st.integers(0, 2**64 - 1)),
    ),
)  # fmt: skip


@seed(35)
@settings(max_examples=600, deadline=None, database=None)
@given(st.lists(EDIT, min_size=1, max_size=3))
def test_the_walk_sees_what_onnx_reads(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int, bytes]]
) -> None:
    """A graph that was changed in a few places: refused, or not parsed by onnx, or read alike."""
    data = BASE
    for at, gone, new in edits:
        data = data[:at] + new + data[at + gone :]
    path = tmp_path_factory.getbasetemp() / hashlib.sha256(data).hexdigest()[:8]
    path.mkdir(exist_ok=True)
    try:
        found = seen(data, path)
    except ArtifactError:
        return
    finally:
        (path / "g.onnx").unlink()
        path.rmdir()
    assert read(data) in (None, found)
