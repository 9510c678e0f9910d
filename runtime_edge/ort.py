"""ONNX Runtime as a package: the one module that imports it, so that it sends nothing and leaves nothing behind.

From 1.32 on its import writes a device id and a database below `~/.cache/Microsoft` and looks up a host to send events
to; `disable_telemetry_events()` comes after that. It reads `ORT_DISABLE_TELEMETRY` before, so importing this module
sets it, for this process and those that it starts. A program that imports onnxruntime before it imports Lepton has to
set the variable itself.
"""

from __future__ import annotations

import os
from typing import Any

from runtime_edge.errors import MissingDependencyError
from runtime_edge.installation import install_command

_WHOLE = (1, 32)  # what artifacts are built and measured with, and the first that runs all of them
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def load() -> Any:
    """Returns the module `onnxruntime`.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "this artifact runs on ONNX Runtime: expected the package onnxruntime, found none",
            hint=install_command("cpu"),
        ) from error
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def release(version: str) -> tuple[int, int]:
    """Returns the first two numbers of a version of ONNX Runtime."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def lacks(version: str) -> str | None:
    """Returns a hint for a graph that this version refuses and a newer one may run, or None: it is new enough."""
    if release(version) >= _WHOLE:
        return None
    return (
        f"ONNX Runtime {version} has no kernels for a cache of integers and for weights of 2 bits, and opens no graph "
        "of a format before 8: build again without --kv-cache and with --weights int4, or run it with Python 3.11 "
        "or later and ONNX Runtime 1.32 or later"
    )


def errors() -> tuple[type[Exception], ...]:
    """Returns every error of ONNX Runtime: they have no class in common but Exception."""
    load()
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (*own, RuntimeError, ValueError)
