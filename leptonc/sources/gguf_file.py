"""Reads GGUF files through a memory map, trusting no count, length or offset that the file states.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from leptonc.errors import InputError
from leptonc.sources.base import Array
from leptonc.sources.gguf_types import GgmlType, dequantize, types
from leptonc.sources.mapped import MappedBytes

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_RANK = 4  # GGML_MAX_DIMS
_MAX_NAME_BYTES = 65_535  # of a key or a tensor's name
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 2**16
_STRING, _ARRAY, _BOOL, _FLOAT32 = 8, 9, 7, 6
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    _FLOAT32: "<f4",
    _BOOL: "|u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
# The fewest bytes that one entry can take, so that a count can be refused before anything is made of it.
_MIN_KEY_VALUE = 8 + 4 + 1
_MIN_TENSOR_INFO = 8 + 4 + 4 + 8


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a mapped GGUF file. `shape` is in numpy's order (the file has it reversed), `offset` in the file."""

    file: MappedBytes
    name: str
    shape: tuple[int, ...]
    kind: GgmlType
    offset: int

    @property
    def dtype(self) -> str:
        """The stored type, such as "Q4_K"."""
        return self.kind.name

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) // self.kind.block * self.kind.bytes

    def read(self) -> Array:
        """Returns the values as float32; stored integers stay integers.

        Raises:
            InputError: the type is one that cannot be dequantized.
        """
        raw = self.file.array(self.offset, self.size)
        result = dequantize(raw, self.kind, self.shape, f"{self.file.label}: tensor {self.name!r}")
        if result.base is None or not np.shares_memory(result, raw):
            self.file.release(self.offset, self.size)
        return result


class GgufFile:
    """A GGUF file's metadata and tensors, its header read and checked.

    Attributes:
        metadata: Values by key. Numbers and strings are Python's, arrays of numbers are numpy's, arrays of strings
            are lists.
        tensors: Lazy tensors by their GGUF names.

    Raises:
        InputError: the file is not valid; the message names it, what was expected and what was found.
    """

    def __init__(self, parts: Sequence[Path], label: str | None = None) -> None:
        self.bytes = MappedBytes(parts, label)
        try:
            header = _Header(self.bytes)
            self.metadata = header.metadata
            self.tensors = header.tensors
        except InputError:
            self.bytes.close()
            raise

    @property
    def label(self) -> str:
        """What error messages call the file."""
        return self.bytes.label

    def close(self) -> None:
        """Unmaps the file."""
        self.bytes.close()


class _Header:
    """Walks the header once; every read is checked against the end of what is mapped."""

    def __init__(self, file: MappedBytes) -> None:
        self._file = file
        self._data: mmap.mmap = file.head
        self._end = len(self._data)
        self._position = 0
        tensor_count, pair_count = self._start()
        self.metadata = self._read_metadata(pair_count)
        self.tensors = self._read_tensors(tensor_count)
        file.release(0, self._position)

    def _damaged(self, expected: str, found: object) -> InputError:
        return InputError(
            f"{self._file.label}: not a valid GGUF file: expected {expected}, found {found}",
            hint="the file is damaged or was not downloaded whole; fetch it again",
        )

    def _take(self, size: int, what: str) -> int:
        """Moves over `size` bytes and returns where they start."""
        start = self._position
        if size > self._end - start:
            raise self._damaged(f"{size} bytes of {what} at offset {start}", f"the end of the file at {self._end}")
        self._position = start + size
        return start

    def _u32(self, what: str) -> int:
        return int(struct.unpack_from("<I", self._data, self._take(4, what))[0])

    def _u64(self, what: str) -> int:
        return int(struct.unpack_from("<Q", self._data, self._take(8, what))[0])

    def _string(self, what: str, limit: int | None = None) -> str:
        length = self._u64(what)
        if limit is not None and length > limit:
            raise self._damaged(f"{what} of at most {limit} bytes", length)
        start = self._take(length, what)
        return self._decode(self._data[start : start + length], what)

    def _decode(self, raw: bytes, what: str) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged(f"{what} in UTF-8", f"bytes {raw[:20]!r}") from error

    def _start(self) -> tuple[int, int]:
        start = self._take(4, "magic")
        magic = self._data[start : start + 4]
        if magic != _MAGIC:
            raise self._damaged(f"the magic {_MAGIC!r}", f"{magic!r}")
        version = self._u32("version")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            if swapped in _VERSIONS:
                raise self._damaged("little-endian numbers", "a big-endian file")
            raise self._damaged(f"version {' or '.join(map(str, _VERSIONS))}", version)
        counts = []
        for what, smallest in (("tensors", _MIN_TENSOR_INFO), ("metadata entries", _MIN_KEY_VALUE)):
            count = self._u64(f"the number of {what}")
            if count > self._end // smallest:
                raise self._damaged(f"at most {self._end // smallest} {what} in {self._end} bytes", count)
            counts.append(count)
        return counts[0], counts[1]

    def _read_metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self._string("a metadata key", _MAX_NAME_BYTES)
            if key in metadata:
                raise self._damaged("every metadata key once", f"{key!r} twice")
            metadata[key] = self._value(self._u32(f"the type of {key!r}"), key)
        return metadata

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._string(f"the value of {key!r}")
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise self._damaged(f"a known type for {key!r}", f"type {kind}")
        scalar = self._numbers(kind, 1, key)[0]
        if kind == _BOOL:
            return bool(scalar)
        # float32's shortest decimal: 1e-05, as it was in the model's config, not 9.999999747378752e-06
        return float(str(scalar)) if kind == _FLOAT32 else scalar.item()

    def _array(self, key: str) -> Any:
        kind = self._u32(f"the element type of {key!r}")
        count = self._u64(f"the length of {key!r}")
        if kind == _STRING:
            return self._strings(count, key)
        if kind not in _SCALARS:
            raise self._damaged(f"an array of numbers or strings for {key!r}", f"elements of type {kind}")
        return self._numbers(kind, count, key)

    def _numbers(self, kind: int, count: int, key: str) -> Array:
        dtype = np.dtype(_SCALARS[kind])
        start = self._take(count * dtype.itemsize, f"the value of {key!r}")
        return np.frombuffer(self._data, dtype=dtype, count=count, offset=start).copy()

    def _strings(self, count: int, key: str) -> list[str]:
        if count > (self._end - self._position) // 8:
            raise self._damaged(f"at most {(self._end - self._position) // 8} strings in {key!r}", count)
        # Vocabularies have hundreds of thousands of strings: one loop, no calls of ours in it.
        data, position, end = self._data, self._position, self._end
        unpack = struct.Struct("<Q").unpack_from
        result: list[str] = []
        append = result.append
        try:
            for _ in range(count):
                start = position + 8
                position = start + unpack(data, position)[0]
                if position > end:
                    raise self._damaged(f"{position - start} bytes of {key!r} at offset {start}", f"the end at {end}")
                append(data[start:position].decode("utf-8"))
        except struct.error as error:
            raise self._damaged(f"{count} strings in {key!r}", f"the end of the file after {len(result)}") from error
        except UnicodeDecodeError as error:
            raise self._damaged(f"{key!r} in UTF-8", f"bytes {error.object[:20]!r}") from error
        self._position = position
        return result

    def _read_tensors(self, count: int) -> dict[str, GgufTensor]:
        infos = [self._tensor_info() for _ in range(count)]
        alignment = self.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self._damaged(f"an alignment that is a power of two up to {_MAX_ALIGNMENT}", alignment)
        start = -(-self._position // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in infos:
            if name in tensors:
                raise self._damaged("every tensor once", f"{name!r} twice")
            if offset % alignment:
                raise self._damaged(f"tensor {name!r} at a multiple of {alignment}", f"offset {offset}")
            tensor = GgufTensor(self._file, name, shape, kind, start + offset)
            if tensor.offset + tensor.size > self._file.size:
                raise self._damaged(
                    f"{tensor.size} bytes of tensor {name!r} at offset {tensor.offset}",
                    f"the end of the file at {self._file.size}",
                )
            tensors[name] = tensor
        self._refuse_overlap(tensors)
        return tensors

    def _tensor_info(self) -> tuple[str, tuple[int, ...], GgmlType, int]:
        name = self._string("a tensor's name", _MAX_NAME_BYTES)
        rank = self._u32(f"the rank of {name!r}")
        if not 1 <= rank <= _MAX_RANK:
            raise self._damaged(f"tensor {name!r} to have 1 to {_MAX_RANK} dimensions", rank)
        dimensions = struct.unpack_from(f"<{rank}Q", self._data, self._take(8 * rank, f"the shape of {name!r}"))
        shape = tuple(reversed(dimensions))
        if min(shape) < 1 or math.prod(shape) >= 2**63:
            raise self._damaged(f"a shape for tensor {name!r}", shape)
        number = self._u32(f"the type of {name!r}")
        kind = types().get(number)
        if kind is None:
            raise InputError(
                f"{self._file.label}: tensor {name!r} has the unknown type {number}",
                hint="give a GGUF in F16, BF16, Q8_0, Q4_K or another common type",
            )
        if shape[-1] % kind.block:
            raise self._damaged(f"rows of {name!r} in blocks of {kind.block} ({kind.name})", f"{shape[-1]} columns")
        return name, shape, kind, self._u64(f"the offset of {name!r}")

    def _refuse_overlap(self, tensors: dict[str, GgufTensor]) -> None:
        ordered = sorted(tensors.values(), key=lambda tensor: tensor.offset)
        for before, after in pairwise(ordered):
            if before.offset + before.size > after.offset:
                raise self._damaged("tensors apart", f"{before.name!r} and {after.name!r} in the same bytes")
