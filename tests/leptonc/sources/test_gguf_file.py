"""The GGUF reader: equal to the format's library on good files, an InputError on every other."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leptonc.errors import InputError
from leptonc.sources.gguf_file import GgufFile
from leptonc.sources.gguf_types import types


def write(path: Path, build: Callable[[gguf.GGUFWriter], Any] = lambda writer: None) -> Path:
    """A file with one key of each kind and three tensors, and what `build` adds."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("k.u8", 200)
    writer.add_int64("k.i64", -5)
    writer.add_float32("k.f32", 1e-5)
    writer.add_float64("k.f64", 0.1)
    writer.add_bool("k.bool", True)
    writer.add_string("k.text", "héllo")
    writer.add_array("k.texts", ["a", "", "日本"])
    writer.add_array("k.numbers", [1, 2, 3])
    build(writer)
    writer.add_tensor("a", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("b", np.arange(8, dtype=np.float16))
    writer.add_tensor("c", np.arange(6, dtype=np.int32).reshape(1, 2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_and_tensors(tmp_path: Path) -> None:
    file = GgufFile([write(tmp_path / "m.gguf")])
    metadata = file.metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["k.u8"] == 200
    assert metadata["k.i64"] == -5
    assert metadata["k.f32"] == 1e-5  # the decimal that was meant, not 9.999999747378752e-06
    assert metadata["k.f64"] == 0.1
    assert metadata["k.bool"] is True
    assert metadata["k.text"] == "héllo"
    assert metadata["k.texts"] == ["a", "", "日本"]
    assert metadata["k.numbers"].tolist() == [1, 2, 3]
    assert file.tensors["a"].shape == (3, 4)
    assert np.array_equal(file.tensors["a"].read(), np.arange(12).reshape(3, 4))
    assert file.tensors["b"].read().dtype == np.float32
    assert np.array_equal(file.tensors["b"].read(), np.arange(8))
    assert file.tensors["c"].dtype == "I32"
    assert np.array_equal(file.tensors["c"].read(), np.arange(6).reshape(1, 2, 3))


def test_types_are_the_librarys() -> None:
    assert {kind.name for kind in types().values()} == {kind.name for kind in gguf.GGMLQuantizationType}
    q4_k = types()[12]
    assert (q4_k.number, q4_k.name, q4_k.block, q4_k.bytes) == (12, "Q4_K", 256, 144)


def test_every_type_is_dequantized_as_by_the_library_or_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in types().values():
        if kind.name in ("F32", "F16", "F64", "I8", "I16", "I32", "I64"):
            continue
        raw = rng.integers(0, 256, (5, 2 * kind.bytes), dtype=np.uint8)
        raw[:, 1::2] &= 0x3B  # half-precision scales stay finite
        qtype = gguf.GGMLQuantizationType(kind.number)
        path = write(
            tmp_path / f"{kind.name}.gguf", lambda w, raw=raw, qtype=qtype: w.add_tensor("q", raw, raw_dtype=qtype)
        )
        tensor = GgufFile([path]).tensors["q"]
        assert tensor.shape == (5, 2 * kind.block)
        try:
            with np.errstate(all="ignore"):
                expected = gguf.quants.dequantize(raw, qtype)
        except NotImplementedError:
            with pytest.raises(InputError, match=rf"tensor 'q' has the type {kind.name}, which cannot"):
                tensor.read()
            continue
        with np.errstate(all="ignore"):
            assert np.array_equal(tensor.read(), expected, equal_nan=True), kind.name


def test_a_large_tensor_is_dequantized_in_groups(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(700, 4096)).astype(np.float32)
    raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    path = write(tmp_path / "m.gguf", lambda w: w.add_tensor("q", raw, raw_dtype=gguf.GGMLQuantizationType.Q8_0))
    file = GgufFile([path])
    tracemalloc.start()
    found = file.tensors["q"].read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(found, gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.Q8_0))
    assert peak < found.nbytes + 20 * 2**20


def test_a_split_file_reads_as_the_whole_one(tmp_path: Path) -> None:
    big = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    whole = write(tmp_path / "m.gguf", lambda w: w.add_tensor("big", big)).read_bytes()
    cuts = [0, len(whole) // 2 + 1, len(whole) * 3 // 4 + 5, len(whole)]  # inside tensors, not aligned
    parts = []
    for number, (start, end) in enumerate(pairwise(cuts)):
        parts.append(tmp_path / f"part{number}")
        parts[-1].write_bytes(whole[start:end])
    split, joined = GgufFile(parts, "split"), GgufFile([tmp_path / "m.gguf"])
    for name, tensor in joined.tensors.items():
        assert np.array_equal(split.tensors[name].read(), tensor.read()), name
    assert split.bytes.sha256() == joined.bytes.sha256()


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(tensors: int, pairs: int, *, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, pairs)


def info(name: str, shape: list[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


ONE = info("w", [4], 0, 0)
PAD = b"\0" * 256
BAD: list[tuple[str, bytes, str]] = [
    ("wrong magic", header(0, 0, magic=b"GGML"), "the magic"),
    ("version 1", header(0, 0, version=1), "version 2 or 3"),
    ("big-endian", header(0, 0, version=0x03000000), "a big-endian file"),
    ("absurd tensors", header(2**62, 0) + PAD, "at most 11 tensors"),
    ("absurd pairs", header(0, 2**62) + PAD, "metadata entries"),
    ("absurd key", header(0, 1) + struct.pack("<Q", 2**63) + PAD, "a metadata key of at most"),
    ("long string", header(0, 1) + pair("k", 8, struct.pack("<Q", 2**40)) + PAD, "bytes of the value of 'k'"),
    ("bad UTF-8", header(0, 1) + pair("k", 8, struct.pack("<Q", 2) + b"\xff\xfe") + PAD, "in UTF-8"),
    ("unknown kind", header(0, 1) + pair("k", 77, b"") + PAD, "a known type for 'k'"),
    ("long array", header(0, 1) + pair("k", 9, struct.pack("<IQ", 4, 2**61)) + PAD, "bytes of the value of 'k'"),
    ("many strings", header(0, 1) + pair("k", 9, struct.pack("<IQ", 8, 2**61)) + PAD, "strings in 'k'"),
    ("long element", header(0, 1) + pair("k", 9, struct.pack("<IQQ", 8, 1, 2**60)) + PAD, "of 'k' at offset"),
    ("cut strings", header(0, 1) + pair("k", 9, struct.pack("<IQQ", 8, 2, 5)) + b"abcdefgh", "after 1"),
    ("nested array", header(0, 1) + pair("k", 9, struct.pack("<IQ", 9, 1)) + PAD, "elements of type 9"),
    ("key twice", header(0, 2) + pair("k", 0, b"\1") * 2 + PAD, "'k' twice"),
    ("tensor twice", header(2, 0) + ONE + info("w", [4], 0, 32) + PAD, "'w' twice"),
    ("overlap", header(2, 0) + info("a", [16], 0, 0) + info("b", [4], 0, 32) + PAD, "'a' and 'b' in the same bytes"),
    ("rank 5", header(1, 0) + info("w", [1] * 5, 0, 0) + PAD, "1 to 4 dimensions"),
    ("rank 0", header(1, 0) + info("w", [], 0, 0) + PAD, "1 to 4 dimensions"),
    ("zero rows", header(1, 0) + info("w", [4, 0], 0, 0) + PAD, "a shape for tensor 'w'"),
    ("huge shape", header(1, 0) + info("w", [2**40, 2**40], 0, 0) + PAD, "a shape for tensor 'w'"),
    ("unknown type", header(1, 0) + info("w", [4], 99, 0) + PAD, "unknown type 99"),
    ("part of a block", header(1, 0) + info("w", [33], 8, 0) + PAD, "in blocks of 32 (Q8_0)"),
    ("unaligned", header(1, 0) + info("w", [4], 0, 7) + PAD, "at a multiple of 32"),
    ("beyond the end", header(1, 0) + info("w", [4], 0, 2**40) + PAD, "16 bytes of tensor 'w'"),
    ("cut tensor", header(1, 0) + info("w", [2**20], 0, 0) + PAD, "4194304 bytes of tensor 'w'"),
    ("alignment 0", header(1, 1) + pair("general.alignment", 4, b"\0" * 4) + ONE + PAD, "a power of two"),
    ("alignment 3", header(1, 1) + pair("general.alignment", 4, b"\3\0\0\0") + ONE + PAD, "a power of two"),
    ("alignment text", header(1, 1) + pair("general.alignment", 8, text("32")) + ONE + PAD, "a power of two"),
]


@pytest.mark.parametrize(("data", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_bad_file_is_refused_by_name(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(InputError) as caught:
        GgufFile([path])
    assert tracemalloc.get_traced_memory()[1] < 500_000
    tracemalloc.stop()
    assert str(path) in caught.value.message
    assert message in caught.value.message
    assert caught.value.hint


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    good = write(tmp_path / "good.gguf").read_bytes()
    data_end = 3 * 32  # bytes that the last tensor does not need may be cut: padding
    for length in range(1, len(good) - data_end):
        (tmp_path / "m.gguf").write_bytes(good[:length])
        with pytest.raises(InputError):
            GgufFile([tmp_path / "m.gguf"])


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_mutated_file_is_read_or_refused(edits: list[tuple[int, int]], tmp_path: Path) -> None:
    good = tmp_path / "good.gguf"
    data = bytearray(good.read_bytes() if good.exists() else write(good).read_bytes())
    for position, value in edits:
        data[position % len(data)] = value
    (tmp_path / "m.gguf").write_bytes(data)
    tracemalloc.start()
    try:
        file = GgufFile([tmp_path / "m.gguf"])
        for tensor in file.tensors.values():
            with np.errstate(all="ignore"):
                assert tensor.read().shape == tensor.shape
        file.close()
    except InputError:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20
