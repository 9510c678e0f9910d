"""Files mapped into memory, read-only: one file, or the parts of one that was split."""

from __future__ import annotations

import hashlib
import mmap
import stat
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonc.errors import InputError
from leptonc.memory import drop_pages

_HASH_CHUNK = 4 * 2**20


class MappedBytes:
    """The bytes of `parts`, end to end, without copying them.

    Args:
        parts: The files in order; a model that is not split has one.
        label: What error messages call it; the first file's path by default.

    Raises:
        InputError: a part cannot be read or is empty.
    """

    def __init__(self, parts: Sequence[Path], label: str | None = None) -> None:
        self.label = label or str(parts[0])
        self._maps: list[mmap.mmap] = []
        self._starts: list[int] = []
        self.size = 0
        for part in parts:
            try:
                if not stat.S_ISREG(part.stat().st_mode):  # a pipe would be waited for
                    raise InputError(f"{part}: expected a file with weights, found something else")
                with part.open("rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                self.close()
                raise InputError(f"{part}: cannot be read: {error.strerror or error}") from error
            except ValueError as error:  # what mmap raises for a file of no bytes
                self.close()
                raise InputError(f"{part}: expected a model's weights, found an empty file") from error
            self._maps.append(mapped)
            self._starts.append(self.size)
            self.size += len(mapped)

    @property
    def head(self) -> mmap.mmap:
        """The first part, where a container's header lies."""
        return self._maps[0]

    def array(self, offset: int, count: int) -> NDArray[np.uint8]:
        """Returns `count` bytes from `offset` as uint8: a read-only view, or a copy where they span two parts."""
        index = bisect_right(self._starts, offset) - 1
        pieces = []
        while count:
            mapped = self._maps[index]
            local = offset - self._starts[index]
            taken = min(count, len(mapped) - local)
            pieces.append(np.frombuffer(mapped, dtype=np.uint8, count=taken, offset=local))
            offset, count, index = offset + taken, count - taken, index + 1
        if not pieces:
            return np.empty(0, dtype=np.uint8)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def release(self, offset: int, count: int) -> None:
        """Tells the system that these bytes will not be read again soon, so they leave this process's memory."""
        for start, mapped in zip(self._starts, self._maps, strict=True):
            drop_pages(mapped, max(offset - start, 0), min(offset + count - start, len(mapped)))

    def sha256(self) -> str:
        """Returns the hash of all bytes; they do not stay in memory."""
        digest = hashlib.sha256()
        for mapped in self._maps:
            for start in range(0, len(mapped), _HASH_CHUNK):
                digest.update(mapped[start : start + _HASH_CHUNK])
                drop_pages(mapped, start, min(start + _HASH_CHUNK, len(mapped)))
        return digest.hexdigest()

    def close(self) -> None:
        """Unmaps; a part that an array still looks into is unmapped when that array goes."""
        for mapped in self._maps:
            try:
                mapped.close()
            except BufferError:
                continue


def bfloat16_to_float32(raw: NDArray[Any], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Widens bfloat16 bit patterns (uint16) to float32, exactly; into `out` where it is given."""
    result = np.empty(raw.shape, np.float32) if out is None else out
    bits = result.view(np.uint32)
    bits[:] = raw
    bits <<= np.uint32(16)
    return result
