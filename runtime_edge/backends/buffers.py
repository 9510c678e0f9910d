"""Memory of one sequence or encoder on the GPU: what is held is freed together."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime_edge.backends.engine import Context, LoadedEngine
from runtime_edge.cuda import ALIGNMENT, Cuda

_INT64 = 8  # bytes


class Inputs:
    """The small inputs of a context: one pinned block, one block on the GPU, one copy between them.

    Args:
        engine: Whose inputs they are.
        held: Frees the GPU's block.
        counts: How many int64 each input has at most.
    """

    def __init__(self, engine: LoadedEngine, held: ExitStack, counts: Mapping[str, int]) -> None:
        self._cuda: Cuda = engine.cuda
        offsets, size = {}, 0
        for name, count in counts.items():
            offsets[name] = size
            size += aligned(count * _INT64)
        self._block = self._cuda.pinned(size)
        self._device = device_memory(self._cuda, held, size)
        self.views: dict[str, NDArray[np.int64]] = {
            name: self._block[offset : offset + counts[name] * _INT64].view(np.int64)
            for name, offset in offsets.items()
        }
        self.on_host = [name for name in counts if engine.wants_on_host(name)]
        self._addresses = {
            name: (self._block.ctypes.data if name in self.on_host else self._device) + offset
            for name, offset in offsets.items()
        }

    def bind(self, context: Context) -> None:
        """Binds them all."""
        for name, address in self._addresses.items():
            context.bind(name, address)

    def upload(self, stream: Any) -> None:
        """Copies them to the GPU, in the stream's order."""
        self._cuda.upload(self._device, self._block.ctypes.data, self._block.nbytes, stream)


def aligned(size: int) -> int:
    """The next multiple of what TensorRT wants tensors to start at."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def device_memory(cuda: Cuda, held: ExitStack, size: int) -> int:
    """Returns the address of new memory on the GPU that `held` frees (raises `DeviceMemoryError`)."""
    address = cuda.allocate(size)
    held.callback(cuda.release, address)
    return address


def release_all(cuda: Cuda, addresses: list[int]) -> None:
    """Frees memory on the GPU and empties the list."""
    while addresses:
        cuda.release(addresses.pop())


def free_held(cuda: Cuda, stream: Any, held: ExitStack) -> None:
    """Frees all that is held once the stream is idle; no method, for it runs when its owner is gone."""
    with held:
        cuda.wait(stream)
