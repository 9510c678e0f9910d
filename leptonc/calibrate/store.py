"""Activations that wait for later stages: in memory up to a number of bytes, the others in a few files."""

from __future__ import annotations

import mmap
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from leptonc.memory import drop_pages

FILE = 2**26  # bytes of a file, or of an array that is larger: each takes descriptors, and there are a thousand
RESIDENT = 2**25  # bytes of arrays on disk that are in memory, about, because they were read
ALIGNED = 64  # bytes that arrays in files begin at a multiple of


@dataclass
class _File:
    """A file without a name, so that nothing is left of it whatever happens.

    Attributes:
        mapped: What arrays read it through.
        free: Where the next array begins.
        held: Arrays in it that are not released.
    """

    file: IO[bytes]
    mapped: mmap.mmap
    free: int = 0
    held: set[int] = field(default_factory=set)


class Store:
    """Arrays in memory, and beyond a number of bytes on disk.

    What ONNX Runtime returns is copied: an output keeps the arena of its session in memory.

    Args:
        limit: Bytes that are kept in memory.
        folder: Where the files are.
    """

    def __init__(self, limit: int, folder: Path) -> None:
        self._left, self._folder, self._used = limit, folder, 0
        self._files: list[_File] = []

    def put(self, array: NDArray[Any]) -> NDArray[Any]:
        """Keeps an array; what is returned for it is read when it is used."""
        if array.nbytes <= self._left:
            self._left -= array.nbytes
            return np.array(array)
        into = self._file_for(array.nbytes)
        into.file.seek(into.free)
        into.file.write(np.ascontiguousarray(array).data)
        into.file.flush()
        found = np.frombuffer(into.mapped, array.dtype, array.size, into.free).reshape(array.shape)
        into.held.add(_address(found))
        into.free += -(-array.nbytes // ALIGNED) * ALIGNED
        self.used(array.nbytes)
        return found

    def used(self, size: int) -> None:
        """Says that so many bytes were read; after some of them those of arrays on disk leave the memory."""
        self._used += size
        if self._used >= RESIDENT:
            for each in self._files:
                drop_pages(each.mapped)
            self._used = 0

    def release(self, array: NDArray[Any]) -> None:
        """Forgets an array that `put` returned."""
        address = _address(array)
        for each in self._files:
            if address in each.held:
                each.held.remove(address)
                if not each.held:  # its bytes go back to the disk with the last array that reads them
                    self._files.remove(each)
                return
        self._left += array.nbytes

    def _file_for(self, size: int) -> _File:
        if not self._files or self._files[-1].free + size > len(self._files[-1].mapped):
            file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (it lives as long as its arrays)
            file.truncate(max(FILE, size))
            self._files.append(_File(file, mmap.mmap(file.fileno(), max(FILE, size), access=mmap.ACCESS_READ)))
        return self._files[-1]


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
