"""Reads safetensors files through a memory map, trusting nothing that the header says.

Format: https://github.com/huggingface/safetensors#format - an unsigned 64-bit length, a JSON header of that length,
then the tensors' bytes, with no gap and no overlap.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leptonc.errors import InputError
from leptonc.sources.base import Array
from leptonc.sources.mapped import MappedBytes, bfloat16_to_float32

MAX_HEADER_BYTES = 100 * 10**6  # the limit that the format's own library has
_MAX_RANK = 64
_PIECE = 2**24  # bytes that are read at a time: of a large tensor no second copy, nor its pages, are in memory
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}


@dataclass(frozen=True)
class SafetensorsTensor:
    """A tensor of a mapped safetensors file; `begin` and `end` are offsets in the file."""

    file: MappedBytes
    shape: tuple[int, ...]
    dtype: str
    begin: int
    end: int

    def read(self) -> Array:
        """Returns float32, or the stored integers. Always a copy: pages of the file do not count as this process's."""
        kind = np.dtype(_DTYPES[self.dtype])
        result = np.empty(math.prod(self.shape), kind if kind.kind in "iub" and self.dtype != "BF16" else np.float32)
        for start in range(self.begin, self.end, _PIECE):
            size, at = min(_PIECE, self.end - start), (start - self.begin) // kind.itemsize
            some = result[at : at + size // kind.itemsize]
            stored = self.file.array(start, size).view(kind)
            if self.dtype == "BF16":
                bfloat16_to_float32(stored, some)
            else:
                some[:] = stored
            self.file.release(start, size)
        return result.reshape(self.shape)


class SafetensorsFile(Mapping[str, SafetensorsTensor]):
    """The tensors of one file by name.

    Raises:
        InputError: the file is not valid; the message names it, what was expected and what was found.
    """

    def __init__(self, path: Path) -> None:
        self._file = MappedBytes([path])
        try:
            self._tensors = _parse(self._file)
        except InputError:
            self._file.close()
            raise

    def __getitem__(self, name: str) -> SafetensorsTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def close(self) -> None:
        """Unmaps the file."""
        self._file.close()


def _damaged(label: str, expected: str, found: str) -> InputError:
    return InputError(
        f"{label}: not a valid safetensors file: expected {expected}, found {found}",
        hint="the file is damaged or was not downloaded whole; fetch it again",
    )


def _parse(file: MappedBytes) -> dict[str, SafetensorsTensor]:
    label = file.label
    if file.size < 8:
        raise _damaged(label, "at least 8 bytes", str(file.size))
    (length,) = struct.unpack_from("<Q", file.head)
    if length > min(MAX_HEADER_BYTES, file.size - 8):
        raise _damaged(label, f"a header of at most {min(MAX_HEADER_BYTES, file.size - 8)} bytes", f"{length}")
    try:
        header = json.loads(file.head[8 : 8 + length].decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _damaged(label, "a JSON header", str(error)[:200]) from error
    if not isinstance(header, dict):
        raise _damaged(label, "a JSON object as header", type(header).__name__)
    header.pop("__metadata__", None)

    start = 8 + length
    tensors = {name: _entry(file, name, entry, start) for name, entry in header.items()}
    position = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != position:
            raise _damaged(label, f"tensor {name!r} at offset {position - start}", f"{tensor.begin - start}")
        position = tensor.end
    if position != file.size:
        raise _damaged(label, f"{position} bytes, as the tensors add up to", f"{file.size}")
    return tensors


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name that occurs twice")
    return result


def _entry(file: MappedBytes, name: str, entry: object, start: int) -> SafetensorsTensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(file.label, f"dtype, shape and data_offsets of tensor {name!r}", str(entry)[:200])
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise InputError(
            f"{file.label}: tensor {name!r} has type {str(dtype)[:40]!r}, expected one of {', '.join(_DTYPES)}",
            hint="save the model as float32, float16 or bfloat16",
        )
    if not _counts(shape) or len(shape) > _MAX_RANK:
        raise _damaged(file.label, f"a shape for tensor {name!r}", str(shape)[:200])
    if not _counts(offsets) or len(offsets) != 2:
        raise _damaged(file.label, f"two offsets for tensor {name!r}", str(offsets)[:200])
    begin, end = offsets
    size = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
    if not begin <= end <= file.size - start:
        raise _damaged(file.label, f"tensor {name!r} within {file.size - start} bytes", f"offsets {begin} to {end}")
    if size != end - begin:
        raise _damaged(file.label, f"{size} bytes for tensor {name!r}, {dtype} {shape}", f"{end - begin}")
    return SafetensorsTensor(file, tuple(shape), dtype, start + begin, start + end)


def _counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)
