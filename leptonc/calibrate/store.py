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

FILE = 2**26  # bytes of a file, which is larger for a larger array: a process may have a thousand files open
RESIDENT = 2**25  # bytes of arrays on disk that may be in memory, about, because they were read
ALIGNED = 64  # arrays begin at multiples of so many bytes in files


@dataclass
class _File:
    """A file without a name, of which nothing is left whatever happens.

    Attributes:
        mapped: The mapped file, which arrays read.
        free: Offset of the next array.
        held: Addresses of arrays in it that are not released.
    """

    file: IO[bytes]
    mapped: mmap.mmap
    free: int = 0
    held: set[int] = field(default_factory=set)


class Store:
    """Holds arrays in memory, and beyond a number of bytes on disk.

    Outputs of ONNX Runtime are copied, because each keeps the arena of its session in memory.

    Args:
        limit: Bytes that are kept in memory.
        folder: Folder of the files.
    """

    def __init__(self, limit: int, folder: Path) -> None:
        self._left, self._folder, self._used = limit, folder, 0
        self._files: list[_File] = []

    def put(self, array: NDArray[Any]) -> NDArray[Any]:
        """Stores an array, and returns it as it is stored: in memory, or in a file that is read when it is used."""
        if array.nbytes <= self._left:
            self._left -= array.nbytes
            return np.array(array)
        into = self._file_for(array.nbytes)
        into.file.seek(into.free)
        into.file.write(np.ascontiguousarray(array).data)
        into.file.flush()
        stored = np.frombuffer(into.mapped, array.dtype, array.size, into.free).reshape(array.shape)
        into.held.add(_address(stored))
        into.free += -(-array.nbytes // ALIGNED) * ALIGNED
        self.used(array.nbytes)
        return stored

    def used(self, size: int) -> None:
        """Counts bytes that were read. After `RESIDENT` of them the arrays on disk leave the memory."""
        self._used += size
        if self._used >= RESIDENT:
            for file in self._files:
                drop_pages(file.mapped)
            self._used = 0

    def release(self, array: NDArray[Any]) -> None:
        """Forgets an array that `put` returned."""
        address = _address(array)
        for file in self._files:
            if address in file.held:
                file.held.remove(address)
                if not file.held:  # its bytes go back to the disk with the last array that reads them
                    self._files.remove(file)
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
