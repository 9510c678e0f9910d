"""A stand-in of TensorRT and of CUDA's runtime that records calls and addresses. It computes nothing.

What is used of the real classes is in `test_api`; this is for the order of calls, what is bound and what is freed.
"""

from __future__ import annotations

import ctypes
import enum
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

Call = tuple[Any, ...]


class Status(enum.Enum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorLaunchFailure = 719


@dataclass
class Api:
    """Looks like `cuda.bindings.runtime`. `fails` names functions, with the status that each returns."""

    calls: list[Call] = field(default_factory=list)
    free: int = 10**9
    integrated: int = 0
    fails: dict[str, Status] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.memory: dict[int, int] = {}
        self.pinned: dict[int, Any] = {}
        self.live: set[str] = set()
        self.capturing = False
        self.interrupt = False
        self._next = 0x1000
        self.cudaError_t = Status
        self.cudaDeviceAttr = SimpleNamespace(cudaDevAttrIntegrated="integrated")
        self.cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down")
        self.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread")
        self.cudaHostAllocDefault = 0
        self.cudaStreamNonBlocking = 1

    def _say(self, name: str, *details: Any) -> Status:
        self.calls.append((name, *details))
        return self.fails.get(name, Status.cudaSuccess)

    def _new(self, kind: str) -> int:
        self._next += 0x1000
        self.live.add(f"{kind} {self._next}")
        return self._next

    def cudaSetDevice(self, device: int) -> Any:
        return (self._say("cudaSetDevice"),)

    def cudaDeviceGetAttribute(self, attribute: str, device: int) -> Any:
        return self._say("cudaDeviceGetAttribute"), self.integrated

    def cudaGetErrorString(self, status: Status) -> Any:
        return Status.cudaSuccess, f"text of {status.name}".encode()

    def cudaGetLastError(self) -> Any:
        return (self._say("cudaGetLastError"),)

    def cudaMemGetInfo(self) -> Any:
        return self._say("cudaMemGetInfo"), self.free - sum(self.memory.values()), 2 * self.free

    def cudaMalloc(self, size: int) -> Any:
        status = self._say("cudaMalloc", size)
        if status is not Status.cudaSuccess:
            return status, None
        address = self._next
        self._next += -(-size // 0x1000) * 0x1000
        self.memory[address] = size
        return status, address

    def cudaFree(self, address: int) -> Any:
        del self.memory[address]
        return (self._say("cudaFree", address),)

    def cudaHostAlloc(self, size: int, flags: int) -> Any:
        buffer = (ctypes.c_uint8 * size)(*[7] * size)
        self.pinned[ctypes.addressof(buffer)] = buffer
        return self._say("cudaHostAlloc", size), ctypes.addressof(buffer)

    def cudaFreeHost(self, address: int) -> Any:
        del self.pinned[address]
        return (self._say("cudaFreeHost"),)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        return self._say("cudaStreamCreateWithFlags", flags), self._new("stream")

    def cudaStreamDestroy(self, stream: int) -> Any:
        self.live.remove(f"stream {stream}")
        return (self._say("cudaStreamDestroy"),)

    def cudaStreamSynchronize(self, stream: int) -> Any:
        assert not self.capturing
        if self.interrupt:
            self.interrupt = False
            raise KeyboardInterrupt
        return (self._say("wait"),)

    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> Any:
        return (self._say("zero", address, value, size),)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: str, stream: int) -> Any:
        if kind == "up":  # what the GPU would read now
            return (self._say("up", target, np.frombuffer(ctypes.string_at(source, size), np.int64)),)
        return (self._say("down", source, size),)

    def cudaStreamBeginCapture(self, stream: int, mode: str) -> Any:
        self.capturing = True
        return (self._say("begin capture", mode),)

    def cudaStreamEndCapture(self, stream: int) -> Any:
        self.capturing = False
        status = self._say("end capture")
        return (status, self._new("graph")) if status is Status.cudaSuccess else (status, None)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> Any:
        return self._say("cudaGraphInstantiate"), self._new("executable")

    def cudaGraphDestroy(self, graph: int) -> Any:
        self.live.remove(f"graph {graph}")
        return (self._say("cudaGraphDestroy"),)

    def cudaGraphExecDestroy(self, graph: int) -> Any:
        self.live.remove(f"executable {graph}")
        return (self._say("cudaGraphExecDestroy"),)

    def cudaGraphLaunch(self, graph: int, stream: int) -> Any:
        return (self._say("launch", graph),)


@dataclass
class Tensor:
    """A tensor of the engine: its mode, type, shape, and whether the CPU reads it."""

    mode: str
    dtype: str
    shape: tuple[int, ...]
    on_host: bool = False


class Trt:
    """Looks like the module `tensorrt_rtx`. Engines come from `tensors` and `profiles`, whatever the plan holds."""

    __version__ = "1.7.1"
    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    TensorLocation = SimpleNamespace(HOST="host", DEVICE="device")
    DataType = SimpleNamespace(FLOAT="float32", HALF="float16", BF16="bfloat16", INT64="int64")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager", LAZY="lazy")

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

        def log(self, severity: int, msg: str) -> None:
            raise NotImplementedError

    def __init__(self, api: Api, tensors: dict[str, Tensor], profiles: list[dict[str, tuple[int, ...]]]) -> None:
        self.api = api
        self.tensors = tensors
        self.profiles = profiles
        self.workspace = 5000
        self.loads = True
        self.runs = True
        self.runs_captured = True
        self.capturable = True
        self.kernels = b""
        self.configs: list[Any] = []
        self.contexts: list[Context] = []
        self.plans: list[bytes] = []

    def Runtime(self, logger: Any) -> Any:
        def deserialize(plan: Any) -> Any:
            self.plans.append(bytes(plan))
            self.api.calls.append(("deserialize",))
            if not self.loads:
                logger.log(self.ILogger.ERROR, "the engine is of another version")
                return None
            return Engine(self)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


class Engine:
    streamable_weights_size = 1000
    weight_streaming_budget_v2 = -1

    def __init__(self, trt: Trt) -> None:
        self._trt = trt
        self.num_optimization_profiles = len(trt.profiles)
        self.num_io_tensors = len(trt.tensors)
        self.device_memory_size_v2 = trt.workspace

    def get_weight_streaming_automatic_budget(self) -> int:
        return 700

    def get_tensor_name(self, index: int) -> str:
        return list(self._trt.tensors)[index]

    def get_tensor_mode(self, name: str) -> str:
        return self._trt.tensors[name].mode

    def get_tensor_dtype(self, name: str) -> str:
        return self._trt.tensors[name].dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._trt.tensors[name].shape

    def get_tensor_location(self, name: str) -> str:
        return "host" if self._trt.tensors[name].on_host else "device"

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        greatest = self._trt.profiles[profile][name]
        return [tuple(1 for _ in greatest), greatest, greatest]

    def create_runtime_config(self) -> Any:
        trt = self._trt
        config = SimpleNamespace(strategy=None, cache=None)
        cache = SimpleNamespace(known=None, serialize=lambda: trt.kernels)
        cache.deserialize = lambda data: setattr(cache, "known", data) or True
        config.set_execution_context_allocation_strategy = lambda value: setattr(config, "strategy", value)
        config.create_runtime_cache = lambda: cache
        config.set_runtime_cache = lambda value: setattr(config, "cache", value) or True
        trt.configs.append(config)
        return config

    def create_execution_context(self, given: Any) -> Any:
        context = Context(self._trt, given)
        self._trt.contexts.append(context)
        return context


class Context:
    """Records under its profile's index."""

    def __init__(self, trt: Trt, given: Any) -> None:
        self.trt = trt
        self.given = given
        self.profile = -1
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        self.trt.api.calls.append(("workspace", self.profile, address, size))

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        greatest = self.trt.profiles[self.profile][name]
        self.trt.api.calls.append(("shape", self.profile, name, shape))
        return len(shape) == len(greatest) and all(a <= b for a, b in zip(shape, greatest, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0 or self.trt.tensors[name].on_host
        self.addresses[name] = address
        self.trt.api.calls.append(("bind", self.profile, name, address))
        return True

    def execute_async_v3(self, stream: int) -> bool:
        api = self.trt.api
        assert set(self.addresses) == set(self.trt.tensors)
        api.calls.append(("run", self.profile, dict(self.addresses)))
        return self.trt.runs_captured if api.capturing else self.trt.runs

    def is_stream_capturable(self, stream: int) -> bool:
        return self.trt.capturable
