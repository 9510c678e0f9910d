"""Memory, streams and graphs of the GPU through cuda-bindings; every return code is checked.

NVIDIA CUDA Runtime API (memory management, stream management, graph management). Works on the first GPU that
CUDA_VISIBLE_DEVICES leaves.
"""

from __future__ import annotations

import ctypes
import importlib
import platform
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime_edge.errors import EngineError, MissingDependencyError, RequestError
from runtime_edge.installation import install_command

ALIGNMENT = 256  # TensorRT wants tensors at multiples of this many bytes (IExecutionContext::setTensorAddress)
_NO_DRIVER = ("cudaErrorInsufficientDriver", "cudaErrorNoDevice", "cudaErrorStubLibrary")
_MEMORY_INFO = Path("/proc/meminfo")


class DeviceMemoryError(RequestError):
    """The GPU has too little free memory."""


class Cuda:
    """The calls that a backend makes. Addresses are integers; a failed call raises and leaves no error behind.

    Args:
        api: The module `cuda.bindings.runtime`. Default: it is imported.

    Raises:
        MissingDependencyError: cuda-bindings is not installed, or finds no driver that it can use.
    """

    def __init__(self, api: Any = None) -> None:
        self.api: Any = import_runtime() if api is None else api
        self._call("cudaSetDevice", 0)
        integrated = self._call("cudaDeviceGetAttribute", self.api.cudaDeviceAttr.cudaDevAttrIntegrated, 0)
        self._shares_memory = bool(integrated)

    def free_memory(self) -> int:
        """Bytes that can be allocated now."""
        free, _ = self._call("cudaMemGetInfo")
        # Where CPU and GPU share memory, CUDA counts the system's file cache as used, which makes way when asked.
        return max(int(free), _available_memory()) if self._shares_memory else int(free)

    def allocate(self, size: int) -> int:
        """Returns the address of `size` new bytes on the GPU, not cleared (raises `DeviceMemoryError`)."""
        return int(self._call("cudaMalloc", max(1, size)))

    def release(self, address: int) -> None:
        """Frees what `allocate` returned."""
        self._call("cudaFree", address)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Returns `size` zeroed bytes of the host's memory that the GPU can copy from and to without waiting.

        They are freed when the array and all views of it are gone.
        """
        address = int(self._call("cudaHostAlloc", size, self.api.cudaHostAllocDefault))
        memory = (ctypes.c_uint8 * size).from_address(address)
        weakref.finalize(memory, self.api.cudaFreeHost, address)
        array: NDArray[np.uint8] = np.frombuffer(memoryview(memory), np.uint8)
        array[:] = 0
        return array

    def stream(self) -> Any:
        """Returns a new stream that does not wait for the default one."""
        return self._call("cudaStreamCreateWithFlags", self.api.cudaStreamNonBlocking)

    def end_stream(self, stream: Any) -> None:
        """Ends a stream."""
        self._call("cudaStreamDestroy", stream)

    def wait(self, stream: Any) -> None:
        """Waits for everything in a stream; raises what failed in it."""
        self._call("cudaStreamSynchronize", stream)

    def zero(self, address: int, size: int, stream: Any) -> None:
        """Clears device memory, in the stream's order."""
        self._call("cudaMemsetAsync", address, 0, size, stream)

    def upload(self, device: int, host: int, size: int, stream: Any) -> None:
        """Copies from the host's memory to the device's, in the stream's order."""
        self._call("cudaMemcpyAsync", device, host, size, self.api.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)

    def download(self, host: int, device: int, size: int, stream: Any) -> None:
        """Copies from the device's memory to the host's, in the stream's order."""
        self._call("cudaMemcpyAsync", host, device, size, self.api.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)

    def capture(self, stream: Any, enqueue: Callable[[], None]) -> Any:
        """Returns a graph of what `enqueue` puts into the stream; nothing of it runs yet.

        Raises:
            EngineError: Something in it cannot be captured; the stream is usable as before.
        """
        # Thread-local: what other threads allocate meanwhile does not end the capture.
        self._call("cudaStreamBeginCapture", stream, self.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            enqueue()
        except BaseException:
            _, graph = self.api.cudaStreamEndCapture(stream)  # reports the same failure again
            if graph is not None and int(graph):
                self.api.cudaGraphDestroy(graph)
            self.api.cudaGetLastError()
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: Any) -> None:
        """Runs a captured graph, in the stream's order."""
        self._call("cudaGraphLaunch", graph, stream)

    def end_graph(self, graph: Any) -> None:
        """Frees a captured graph."""
        self._call("cudaGraphExecDestroy", graph)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Calls a function of the API; returns its value, a tuple of several, or None."""
        status, *values = getattr(self.api, name)(*arguments)
        if status != self.api.cudaError_t.cudaSuccess:
            self.api.cudaGetLastError()  # else whoever asks next, TensorRT among them, takes it for its own
            raise self._error(name, status)
        return values[0] if len(values) == 1 else tuple(values) or None

    def _error(self, name: str, status: Any) -> Exception:
        code = str(getattr(status, "name", status))
        text = self.api.cudaGetErrorString(status)[1]
        reason = f"{code} ({text.decode() if isinstance(text, bytes) else text})"
        if code == "cudaErrorMemoryAllocation":
            return DeviceMemoryError(f"{name}: expected enough free GPU memory, found {reason}")
        if code in _NO_DRIVER:
            return MissingDependencyError(
                f"{name}: expected an NVIDIA GPU and its driver, found {reason}", hint=_hint(code)
            )
        return EngineError(
            f"{name}: expected the GPU to do it, found {reason}", hint="is the GPU in order? see `nvidia-smi`"
        )


def import_runtime() -> Any:
    """Imports `cuda.bindings.runtime` (raises `MissingDependencyError`)."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise MissingDependencyError(
            f"TensorRT engines run through the package cuda-bindings, which does not load: {error}",
            hint=install_command("jetson" if platform.machine() == "aarch64" else "rtx"),
        ) from error


def _hint(code: str) -> str:
    if code == "cudaErrorInsufficientDriver":
        return "install NVIDIA's driver, a later one, or cuda-bindings for the driver's own CUDA (`'cuda-bindings<13'`)"
    return "is a GPU visible to this process? see `nvidia-smi` and CUDA_VISIBLE_DEVICES"


def _available_memory() -> int:
    """MemAvailable of Linux in bytes; 0 where it does not say."""
    try:
        lines = _MEMORY_INFO.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)
