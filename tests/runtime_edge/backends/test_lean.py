"""What the runtime calls of standard TensorRT exists on its real classes.

`tensorrt-lean-cu12-bindings` and its libraries are NVIDIA's own, without a builder; they import without a GPU. They are
looked at in a process of their own: the classes of TensorRT-RTX have the same names.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

import runtime_edge.backends.engine
from tests.runtime_edge.backends.test_api import used_of_tensorrt

# Of TensorRT-RTX alone: what it compiles as it runs, and keeps; `engine.py` calls these for that flavour.
RTX_ONLY = {
    "DynamicShapesKernelSpecializationStrategy",
    "DynamicShapesKernelSpecializationStrategy.EAGER",
    "DynamicShapesKernelSpecializationStrategy.LAZY",
    "IExecutionContext.is_stream_capturable",
    "IRuntimeCache.deserialize",
    "IRuntimeCache.serialize",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IRuntimeConfig.set_runtime_cache",
}
PROGRAM = """
import json, sys
import tensorrt_lean_bindings as trt

def there(name):
    value = trt
    for part in name.split("."):
        value = getattr(value, part, None)
    return value is not None

names = json.load(sys.stdin)
logger = trt.Logger(trt.Logger.ERROR)
print(json.dumps({"version": trt.__version__, "lacking": [name for name in names if not there(name)]}))
"""


def lacking(names: list[str]) -> tuple[str, set[str]]:
    """The version of the real module, and which names it has not."""
    for module in ("tensorrt_lean_bindings", "tensorrt_lean_libs"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} (the extra tensorrt-api) is not installed")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(names), capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return found["version"], set(found["lacking"])


def test_what_the_runtime_calls_exists_on_standard_tensorrt() -> None:
    types = [f"DataType.{name}" for name in runtime_edge.backends.engine.DTYPES.values()]
    version, absent = lacking([*used_of_tensorrt(), *types, "Absent.name"])
    assert int(version.partition(".")[0]) >= 11
    assert absent == RTX_ONLY | {"Absent.name"}
