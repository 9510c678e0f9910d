"""The safetensors reader: equal to the format's library on good files, an InputError on every other."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from leptonc.errors import InputError
from leptonc.sources.safetensors_file import SafetensorsFile

DTYPES = ["float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "bool"]


def raw_file(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded) if length is None else length) + encoded + data)
    return path


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_equal_the_librarys(dtype: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "a": (rng.normal(size=(3, 5)) * 100).astype(dtype),
        "b.c": np.ones((), dtype),
        "e": np.ones((0, 4), dtype),
    }
    save_file(arrays, tmp_path / "m.safetensors")
    file = SafetensorsFile(tmp_path / "m.safetensors")
    expected = load_file(tmp_path / "m.safetensors")
    assert set(file) == set(expected)
    for name, array in expected.items():
        found = file[name].read()
        assert found.shape == file[name].shape == array.shape
        floats = array.dtype.kind == "f"
        assert found.dtype == (np.float32 if floats else array.dtype)
        assert np.array_equal(found, array.astype(np.float32) if floats else array)


def test_bfloat16_is_widened_exactly(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    tensor = torch.tensor([[1.0, -2.5, 3.0e38], [1e-40, float("inf"), 0.1]]).bfloat16()
    save_torch({"w": tensor}, tmp_path / "m.safetensors")
    found = SafetensorsFile(tmp_path / "m.safetensors")["w"]
    assert found.dtype == "BF16"
    assert np.array_equal(found.read(), tensor.float().numpy())


def test_float32_is_copied_whether_or_not_it_is_aligned(tmp_path: Path) -> None:
    data = np.arange(4, dtype="<f4").tobytes()
    header = json.dumps({"w": entry("F32", [4], 0, 16)}).encode()
    aligned = raw_file(tmp_path / "a.safetensors", header + b" " * (-len(header) % 8), data)
    first = SafetensorsFile(aligned)["w"].read()
    assert first.flags.writeable
    unaligned = raw_file(tmp_path / "u.safetensors", header + b" " * (-len(header) % 8 + 1), data)
    copy = SafetensorsFile(unaligned)["w"].read()
    assert copy.flags.aligned
    assert np.array_equal(first, copy)


def test_reading_one_tensor_leaves_the_others_on_disk(tmp_path: Path) -> None:
    arrays = {f"t{i}": np.full((256, 1024), i, np.float16) for i in range(16)}  # half a MiB each
    save_file(arrays, tmp_path / "m.safetensors")
    tracemalloc.start()
    file = SafetensorsFile(tmp_path / "m.safetensors")
    assert tracemalloc.get_traced_memory()[1] < 200_000
    assert (file["t3"].read() == 3).all()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * 2**20  # the float32 result, one MiB, and the header


def test_what_was_read_outlives_the_file(tmp_path: Path) -> None:
    save_file({"w": np.arange(8, dtype=np.float32)}, tmp_path / "m.safetensors")
    file = SafetensorsFile(tmp_path / "m.safetensors")
    view = file["w"].read()
    file.close()
    assert view.sum() == 28


GOOD = {"w": entry("F32", [2], 0, 8)}
BAD: list[tuple[str, Any, bytes, int | None, str]] = [
    ("no header", b"", b"", 10, "header of at most 0 bytes"),
    ("header too long", GOOD, b"\0" * 8, 2**63, "header of at most"),
    ("not JSON", b"{nope", b"", None, "a JSON header"),
    ("deep JSON", b"[" * 100_000, b"", None, "a JSON header"),
    ("not UTF-8", b'{"\xff": 1}', b"", None, "a JSON header"),
    ("a list", [], b"", None, "a JSON object"),
    ("the same name twice", b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{}}', b"\0", None, "twice"),
    ("missing field", {"w": {"dtype": "F32"}}, b"", None, "dtype, shape and data_offsets of tensor 'w'"),
    ("unknown dtype", {"w": entry("F8_E4M3", [2], 0, 2)}, b"\0\0", None, "type 'F8_E4M3'"),
    ("negative dimension", {"w": entry("F32", [-2], 0, 8)}, b"\0" * 8, None, "a shape for tensor 'w'"),
    ("boolean dimension", {"w": entry("F32", [True], 0, 4)}, b"\0" * 4, None, "a shape for tensor 'w'"),
    ("huge dimensions", {"w": entry("F32", [2**62, 2**62], 0, 8)}, b"\0" * 8, None, "bytes for tensor 'w'"),
    ("shape too small", {"w": entry("F32", [1], 0, 8)}, b"\0" * 8, None, "4 bytes for tensor 'w'"),
    ("beyond the end", {"w": entry("F32", [4], 0, 16)}, b"\0" * 8, None, "tensor 'w' within 8 bytes"),
    ("backwards", {"w": entry("F32", [0], 8, 0)}, b"\0" * 8, None, "tensor 'w' within"),
    ("overlap", {"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, b"\0" * 12, None, "'b' at offset 8"),
    ("gap", {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, b"\0" * 12, None, "'b' at offset 4"),
    ("trailing bytes", GOOD, b"\0" * 12, None, "as the tensors add up to"),
    ("three offsets", {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, b"\0" * 4, None, "two offsets"),
]


@pytest.mark.parametrize(("header", "data", "length", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_bad_file_is_refused_by_name(
    header: Any, data: bytes, length: int | None, message: str, tmp_path: Path
) -> None:
    path = raw_file(tmp_path / "m.safetensors", header, data, length=length)
    with pytest.raises(InputError) as caught:
        SafetensorsFile(path)
    assert str(path) in caught.value.message
    assert message in caught.value.message
    assert caught.value.hint


def test_an_empty_or_missing_file(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").touch()
    with pytest.raises(InputError, match="found an empty file"):
        SafetensorsFile(tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="No such file"):
        SafetensorsFile(tmp_path / "n.safetensors")


def _sample(tmp_path: Path) -> bytes:
    save_file({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.int8)}, tmp_path / "good.safetensors")
    return (tmp_path / "good.safetensors").read_bytes()


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    good = _sample(tmp_path)
    for length in range(1, len(good)):
        (tmp_path / "m.safetensors").write_bytes(good[:length])
        with pytest.raises(InputError):
            SafetensorsFile(tmp_path / "m.safetensors")


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_mutated_file_is_read_or_refused(edits: list[tuple[int, int]], tmp_path: Path) -> None:
    data = bytearray(_sample(tmp_path))
    for position, value in edits:
        data[position % len(data)] = value
    (tmp_path / "m.safetensors").write_bytes(data)
    tracemalloc.start()
    try:
        file = SafetensorsFile(tmp_path / "m.safetensors")
        assert sum(tensor.read().nbytes for tensor in file.values()) < 1000
    except InputError:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
