"""This machine's GPU, asked of the driver's own library: nothing has to be installed for it.

NVIDIA CUDA Driver API: cuInit, cuDriverGetVersion, cuDeviceGet, cuDeviceGetName, cuDeviceGetAttribute,
cuDeviceTotalMem.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

from runtime_edge.errors import MissingDependencyError
from runtime_edge.tensorrt import flavours

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_NAME_BYTES = 256
_HINT = "install NVIDIA's driver; on a Jetson it comes with JetPack, in a container it needs `--runtime nvidia`"


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, compute capability (`8.7`), memory in bytes, and the CUDA version of the driver (`12.6`)."""

    name: str
    compute_capability: str
    memory: int
    driver: str


@dataclass(frozen=True)
class Device:
    """What decides which plans run here: the GPU's compute capability and the exact version of TensorRT."""

    capability: str
    version: str


def gpu(index: int = 0) -> Gpu:
    """Returns a GPU of this machine; no context is made on it.

    Raises:
        MissingDependencyError: There is no driver, or no GPU that it can use.
    """
    try:
        library = ctypes.CDLL(_LIBRARY)
        number = ctypes.c_int()
        _call(library.cuInit, 0)
        _call(library.cuDriverGetVersion, ctypes.byref(number))
        driver = f"{number.value // 1000}.{number.value % 1000 // 10}"
        handle = ctypes.c_int()
        _call(library.cuDeviceGet, ctypes.byref(handle), index)
        name = ctypes.create_string_buffer(_NAME_BYTES)
        _call(library.cuDeviceGetName, name, _NAME_BYTES, handle)
        numbers = []
        for attribute in (_MAJOR, _MINOR):
            _call(library.cuDeviceGetAttribute, ctypes.byref(number), attribute, handle)
            numbers.append(str(number.value))
        memory = ctypes.c_size_t()
        _call(library.cuDeviceTotalMem_v2, ctypes.byref(memory), handle)
    except (OSError, AttributeError) as error:  # AttributeError: a library of that name, and not the driver's
        raise MissingDependencyError(f"expected a GPU of NVIDIA and its driver, found: {error}", hint=_HINT) from error
    return Gpu(name.value.decode("utf-8", "replace"), ".".join(numbers), memory.value, driver)


def _call(function: Any, *arguments: object) -> None:
    status = function(*arguments)
    if status != 0:
        raise OSError(f"{function.__name__} failed with CUDA error {status}")


def this_device(flavour: flavours.Flavour) -> Device:
    """Returns what decides which plans of a flavour run on this machine.

    Raises:
        MissingDependencyError: There is no GPU, or the flavour is not installed.
        EngineError: The flavour's version is not supported.
    """
    module = flavours.import_module(flavour)
    return Device(gpu().compute_capability, flavours.module_version(module))
