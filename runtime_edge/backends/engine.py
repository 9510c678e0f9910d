"""A TensorRT engine that was deserialized: its tensors are what the task has, its contexts share one workspace.

NVIDIA TensorRT Python API: Runtime, ICudaEngine, IExecutionContext (10.3 and later), and of TensorRT-RTX
IRuntimeConfig and IRuntimeCache. Nothing is allocated by TensorRT while it runs: contexts get their memory from here.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime_edge.cuda import Cuda, DeviceMemoryError
from runtime_edge.errors import EngineError
from runtime_edge.manifest import Engine
from runtime_edge.tensorrt import flavours
from runtime_edge.tensorrt.callbacks import Log, logger

DTYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int64": "INT64"}
_MB = 10**6
_MAX_JIT_CACHE_BYTES = 2**31

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Memory:
    """GPU memory that a model needs, in bytes. The cache is that of `length` tokens; 0 where there is none."""

    weights: int = 0
    cache: int = 0
    workspace: int = 0
    length: int = 0

    def error(self, name: str, free: int) -> DeviceMemoryError:
        """Says what is needed, what is free, and the length that would fit."""
        parts = [("weights", self.weights), (f"a cache of {self.length} tokens", self.cache)]
        parts += [("workspace", self.workspace)]
        needs = ", ".join(f"{what} {size / _MB:,.1f}" for what, size in parts if size)
        needed = self.weights + self.cache + self.workspace
        fits = self.fitting_length(free)
        if fits:
            hint = f"{fits} tokens would fit: build with `--max-seq-len {fits}`, or free memory on the GPU"
        else:
            hint = "build with smaller weights (`--weights int4`), or free memory on the GPU"
            if self.length:
                hint = f"no length would fit: {hint}"
        return DeviceMemoryError(
            f"{name}: expected {needed / _MB:,.1f} MB of free GPU memory ({needs}), found {free / _MB:,.1f} MB",
            hint=hint,
        )

    def fitting_length(self, free: int) -> int:
        """The most tokens whose cache fits beside the rest: a multiple of 64 where there are so many, at least 0."""
        if not self.length or not self.cache:
            return 0
        room = max(0, free - self.weights - self.workspace)
        fits = min(self.length, room * self.length // self.cache)
        return fits // 64 * 64 or fits

    def check(self, name: str, free: int) -> None:
        """Raises `error` where that is more than is free."""
        if self.weights + self.cache + self.workspace > free:
            raise self.error(name, free)


class LoadedEngine:
    """An engine on the GPU; contexts made of it run on streams of their own.

    Args:
        plan: The plan, whose hash was checked.
        record: What the manifest says of the engine.
        memory: What its task needs beside weights and workspace.
        jit_cache: Where TensorRT-RTX keeps the kernels it compiles for this GPU. With None it keeps none.
        trt: The flavour's module. Default: it is imported.
        cuda: The GPU. Default: it is opened here.

    Raises:
        MissingDependencyError: TensorRT, cuda-bindings or the driver is missing.
        EngineError: TensorRT refuses the plan.
        DeviceMemoryError: The GPU has too little memory.
    """

    def __init__(
        self,
        plan: Path,
        record: Engine,
        memory: Memory,
        jit_cache: Path | None,
        trt: Any = None,
        cuda: Cuda | None = None,
    ) -> None:
        self.name = plan.name
        flavour = flavours.flavour(record.spec.flavour)
        self.trt: Any = flavours.import_module(flavour) if trt is None else trt
        self.cuda = Cuda() if cuda is None else cuda
        self._title = f"{flavour.title} {flavours.module_version(self.trt)}"
        self._log = Log()
        self._logger = logger(self.trt, self._log)  # must live as long as what is made with it
        size = plan.stat().st_size
        if not size:
            raise EngineError(f"{self.name}: expected a plan, found an empty file")
        if record.spec.strip:  # it would load, and compute with nothing
            raise EngineError(
                f"{self.name}: expected a plan that has its weights, found an engine spec that leaves them out",
                hint="build the artifact with `strip` off",
            )
        if not record.spec.weight_streaming:
            # A plan is its weights and little more. Asked before anything is copied: a GPU that ran out of memory
            # halfway says much less.
            Memory(size, memory.cache, 0, memory.length).check(self.name, self.cuda.free_memory())
        self._weights = size
        self._runtime: Any = None
        self._engine: Any = self._deserialize(plan)
        if record.spec.weight_streaming:
            self._stream_weights(memory.cache)
        self.workspace_bytes = int(self._engine.device_memory_size_v2)
        self.compiles = flavour.compiles_on_device
        self._jit_path = jit_cache if self.compiles else None
        self._jit_cache: Any = None
        self._jit_known = b""
        self._profiles = {profile.name: index for index, profile in enumerate(record.spec.profiles)}
        profiles = int(self._engine.num_optimization_profiles)
        if profiles != len(self._profiles):
            raise EngineError(f"{self.name}: expected {len(self._profiles)} profiles, found {profiles}")

    def expect(self, inputs: Tensors, outputs: Tensors) -> None:
        """Raises `EngineError` unless these are the engine's tensors: type and shape by name, -1 where it varies."""
        engine, trt = self._engine, self.trt
        modes = {trt.TensorIOMode.INPUT: ("inputs", inputs), trt.TensorIOMode.OUTPUT: ("outputs", outputs)}
        tensors: dict[Any, set[str]] = {mode: set() for mode in modes}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            tensors[engine.get_tensor_mode(name)].add(name)
        for mode, (what, expected) in modes.items():
            if tensors[mode] != set(expected):
                missing, extra = sorted(set(expected) - tensors[mode]), sorted(tensors[mode] - set(expected))
                raise EngineError(
                    f"{self.name}: expected the {what} that its task has, found {len(missing)} missing {missing[:3]} "
                    f"and {len(extra)} unknown {extra[:3]}"
                )
            for name, (dtype, shape) in expected.items():
                actual = engine.get_tensor_dtype(name), tuple(engine.get_tensor_shape(name))
                if actual != (getattr(trt.DataType, DTYPES[dtype]), shape):
                    raise EngineError(
                        f"{self.name}: {name}: expected {dtype} {list(shape)}, found {actual[0]} {list(actual[1])}"
                    )

    def wants_on_host(self, name: str) -> bool:
        """Whether a tensor is read by the CPU, because shapes depend on it."""
        return bool(self._engine.get_tensor_location(name) == self.trt.TensorLocation.HOST)

    def greatest(self, profile: str, tensor: str) -> tuple[int, ...]:
        """The greatest shape of an input in a profile."""
        shapes = self._engine.get_tensor_profile_shape(tensor, self._profile(profile))
        return tuple(shapes[2])

    def context(self, profile: str, stream: Any, workspace: int, *, one_shape: bool) -> Context:
        """Returns a context for a profile; contexts that never run at the same time may share a workspace.

        Args:
            profile: The profile's name.
            stream: The stream that it will run on.
            workspace: Address of `workspace_bytes` bytes.
            one_shape: It will run one shape only: kernels that are compiled here are compiled for it at once.
        """
        index = self._profile(profile)
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(
            self._runtime_config(strategy, one_shape) if self.compiles else strategy
        )
        if context is None:
            raise self.fault("to make an execution context")
        self.done(context.set_optimization_profile_async(index, int(stream)), f"to take profile {profile!r}")
        self.cuda.wait(stream)
        context.set_device_memory(workspace, self.workspace_bytes)
        return Context(self, context, stream)

    def done(self, succeeded: bool, what: str) -> None:
        """Raises `EngineError` where a call of TensorRT returned False."""
        if not succeeded:
            raise self.fault(what)

    def fault(self, what: str) -> EngineError:
        """An error with what TensorRT logged."""
        return EngineError(f"{self.name}: expected {self._title} {what}, found: {self._log.reasons()}")

    def memory(self, memory: Memory) -> Memory:
        """The same with this engine's workspace, for a state that is opened beside its weights."""
        return Memory(0, memory.cache, self.workspace_bytes, memory.length)

    def keep_kernels(self) -> None:
        """Writes the kernels that were compiled since the last time into the device's cache, for the next load."""
        if self._jit_cache is None or self._jit_path is None:
            return
        data = bytes(self._jit_cache.serialize())
        if data != self._jit_known:
            _keep(self._jit_path, data)
            self._jit_known = data

    def close(self) -> None:
        """Keeps the compiled kernels, and lets go of the engine; contexts must be gone."""
        self.keep_kernels()
        self._jit_cache = self._engine = self._runtime = None

    def _profile(self, name: str) -> int:
        if name not in self._profiles:
            raise EngineError(f"{self.name}: expected a profile {name!r}, found {', '.join(self._profiles)}")
        return self._profiles[name]

    def _deserialize(self, plan: Path) -> Any:
        try:
            self._runtime = self.trt.Runtime(self._logger)
        except (TypeError, RuntimeError) as error:  # the bindings' own for a null pointer
            raise self.fault("to start") from error
        with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise EngineError(
                self.fault("to load the plan").message,
                hint="a plan runs with the version and the GPU it was built for: run `lepton-edge finish` here",
            )
        return engine

    def _stream_weights(self, cache: int) -> None:
        """Keeps on the GPU what fits beside cache and workspace; the rest is read from the host in every run."""
        engine = self._engine
        room = self.cuda.free_memory() - cache - int(engine.device_memory_size_v2)
        budget = max(
            0, min(int(engine.streamable_weights_size), room, int(engine.get_weight_streaming_automatic_budget()))
        )
        engine.weight_streaming_budget_v2 = budget

    def _runtime_config(self, strategy: Any, one_shape: bool) -> Any:
        trt = self.trt
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        kinds = trt.DynamicShapesKernelSpecializationStrategy
        # One shape: compiled before it runs, so that a graph captures the fast kernels. Any length of prompt: the
        # general kernels serve while those for a length are compiled beside.
        config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER if one_shape else kinds.LAZY
        if self._jit_cache is None:
            self._jit_cache = config.create_runtime_cache()
            self._jit_known = _kept(self._jit_path)
            if self._jit_known:
                self._jit_cache.deserialize(self._jit_known)  # False: of another driver or GPU; compiled anew
        config.set_runtime_cache(self._jit_cache)
        return config


class Context:
    """An execution context on its stream; every refusal of TensorRT raises `EngineError`."""

    def __init__(self, owner: LoadedEngine, context: Any, stream: Any) -> None:
        self._owner = owner
        self._context = context
        self._stream = stream
        self._shapes: dict[str, tuple[int, ...]] = {}

    def shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Sets an input's shape."""
        if self._shapes.get(name) != shape:
            self._owner.done(self._context.set_input_shape(name, shape), f"to take {list(shape)} for {name}")
            self._shapes[name] = shape

    def bind(self, name: str, address: int) -> None:
        """Sets a tensor's address."""
        self._owner.done(self._context.set_tensor_address(name, address), f"to bind {name}")

    def enqueue(self) -> None:
        """Puts a run into the stream."""
        self._owner.done(self._context.execute_async_v3(int(self._stream)), "to run")

    def capturable(self) -> bool:
        """Whether a run can be captured in a graph; True where this version of TensorRT does not say."""
        asked = getattr(self._context, "is_stream_capturable", None)
        return asked is None or bool(asked(int(self._stream)))


def _kept(path: Path | None) -> bytes:
    """Compiled kernels from the device's cache; empty where there are none."""
    try:
        if path is None or path.stat().st_size > _MAX_JIT_CACHE_BYTES:
            return b""
        return path.read_bytes()
    except OSError:
        return b""


def _keep(path: Path, data: bytes) -> None:
    """Writes compiled kernels beside their place and renames; a full or read-only disk costs time, and is no error."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError:
        return
