"""What the backend uses of TensorRT and of CUDA exists on the real classes."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType

import pytest

import runtime_edge.backends.engine
import runtime_edge.cuda

# What holds an object of the API in `engine.py`, by the class that it holds.
HOLDERS = {
    "self._engine": "ICudaEngine",
    "engine": "ICudaEngine",
    "self._context": "IExecutionContext",
    "context": "IExecutionContext",
    "self._runtime": "Runtime",
    "config": "IRuntimeConfig",
    "self._jit_cache": "IRuntimeCache",
    "kinds": "DynamicShapesKernelSpecializationStrategy",
}
MODULE = ("trt", "self.trt")


def used_of_tensorrt() -> set[str]:
    found = set()
    for node in ast.walk(tree(runtime_edge.backends.engine)):
        if not isinstance(node, ast.Attribute):
            continue
        owner = ast.unparse(node.value)
        if owner in HOLDERS:
            found.add(f"{HOLDERS[owner]}.{node.attr}")
        elif owner in MODULE:
            found.add(node.attr)
        elif owner.startswith(tuple(f"{name}." for name in MODULE)):
            found.add(f"{owner.rpartition('.')[2]}.{node.attr}")
    return found | {"IExecutionContext.is_stream_capturable"}


def used_of_cuda() -> set[str]:
    """Functions by name in `self._call("…")`, and whatever follows `self.api.`."""
    found = set()
    for node in ast.walk(tree(runtime_edge.cuda)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self._call":
            name = node.args[0]
            if isinstance(name, ast.Constant):
                found.add(str(name.value))
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("self.api."):
            found.add(ast.unparse(node).removeprefix("self.api."))
    return found


def tree(module: ModuleType) -> ast.Module:
    return ast.parse(Path(str(module.__file__)).read_text())


def missing(module: object, names: set[str]) -> list[str]:
    lacking = []
    for name in sorted(names):
        value = module
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is None:
            lacking.append(name)
    return lacking


def test_the_search_finds_what_is_used() -> None:
    assert {
        "Runtime.deserialize_cuda_engine",
        "ICudaEngine.create_execution_context",
        "ICudaEngine.get_tensor_profile_shape",
        "ICudaEngine.device_memory_size_v2",
        "ICudaEngine.weight_streaming_budget_v2",
        "TensorLocation.HOST",
        "IExecutionContext.set_input_shape",
        "IExecutionContext.set_tensor_address",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.set_optimization_profile_async",
        "IExecutionContext.set_device_memory",
        "ExecutionContextAllocationStrategy.USER_MANAGED",
        "IRuntimeConfig.set_runtime_cache",
        "IRuntimeCache.serialize",
        "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
        "TensorIOMode.INPUT",
        "Runtime",
        "DynamicShapesKernelSpecializationStrategy.EAGER",
    } <= used_of_tensorrt()
    assert {
        "cudaMalloc",
        "cudaFree",
        "cudaHostAlloc",
        "cudaFreeHost",
        "cudaMemcpyAsync",
        "cudaMemsetAsync",
        "cudaGraphLaunch",
        "cudaStreamBeginCapture",
        "cudaStreamEndCapture",
        "cudaMemGetInfo",
        "cudaError_t.cudaSuccess",
        "cudaMemcpyKind.cudaMemcpyDeviceToHost",
        "cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal",
    } <= used_of_cuda()


def test_what_is_used_of_tensorrt_exists() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX (the extra rtx) is not installed")
    assert missing(trt, used_of_tensorrt()) == []
    types = runtime_edge.backends.engine.DTYPES.values()
    assert missing(trt.DataType, set(types)) == []


def test_what_is_used_of_cuda_exists() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings (the extra rtx) is not installed")
    assert missing(runtime, used_of_cuda()) == []
    codes = {*runtime_edge.cuda._NO_DRIVER, "cudaErrorMemoryAllocation"}
    assert missing(runtime.cudaError_t, codes) == []


def test_handles_are_numbers_that_tensorrt_takes() -> None:
    """Streams go to TensorRT as integers; a graph that capture did not make is None or zero."""
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings (the extra rtx) is not installed")
    assert int(runtime.cudaStream_t(7)) == 7
    assert int(runtime.cudaGraph_t(0)) == 0
    status, text = runtime.cudaGetErrorString(runtime.cudaError_t.cudaErrorMemoryAllocation)
    assert (status, text) == (runtime.cudaError_t.cudaSuccess, b"out of memory")


def test_without_a_driver_the_real_runtime_is_refused_in_our_words() -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings (the extra rtx) is not installed")
    from runtime_edge.errors import MissingDependencyError
    from runtime_edge.tensorrt.device import gpu

    try:
        gpu()
    except MissingDependencyError:
        with pytest.raises(MissingDependencyError, match="expected an NVIDIA GPU and its driver, found cudaError"):
            runtime_edge.cuda.Cuda()
    else:
        assert runtime_edge.cuda.Cuda().free_memory() > 0
