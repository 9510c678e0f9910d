"""Kernels of our own that run in the place of ONNX Runtime's: a library in C, compiled where the package is installed.

`attention.c` is an operator for ONNX Runtime; `many.c` attends with many queries, `few.c` with few, `rows.c` has what
both do to a row. A session that registers the library runs its graph as it is. The library needs Linux, x86-64 and
AVX-512; where it was not compiled or cannot run, ONNX Runtime's own kernel does the same.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path
from typing import Any

from runtime_edge.errors import RequestError
from runtime_edge.manifest import Decoder
from runtime_edge.probe import cpu_field

VARIABLE = "LEPTON_KERNELS"
MOST_DIM, DIM_MULTIPLE = 256, 32  # of a head
_VECTORS = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma")
_TILES = ("amx_tile", "amx_bf16", "avx512_bf16")


def attention(decoder: Decoder, activations: str) -> str | None:
    """The number format in which our kernel multiplies in a decoder's attention; None where it does not run.

    It is float32, as in ONNX Runtime's kernel. Where products have 8-bit activations already (`activations` of the
    graph is int8) and the CPU multiplies tiles of bfloat16, it is bfloat16 for 16 queries and more: 8 bits of
    precision as well, sums in float32.

    Raises:
        RequestError: `LEPTON_KERNELS` has a value that is not known.
    """
    if lacking() is not None or not _fits(decoder):
        return None
    return "bfloat16" if activations == "int8" and tiles() else "float32"


def register(options: Any, format: str) -> None:
    """Has sessions of these `onnxruntime.SessionOptions` attend with our kernel, in what `attention` returned."""
    options.add_session_config_entry("lepton.attention", format)
    options.register_custom_ops_library(str(library()))


def lacking() -> str | None:
    """Why our kernels do not run in this process; None where they do.

    Raises:
        RequestError: `LEPTON_KERNELS` has a value that is not known.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "onnxruntime":
        return f"{VARIABLE}=onnxruntime"
    if wanted:
        raise RequestError(f"{VARIABLE}: expected onnxruntime, or nothing, found {wanted!r}")
    if library() is None:
        return "not compiled: that needs Linux on x86-64, and GCC 11 or Clang 12, while lepton-edge is installed"
    missing = [feature for feature in _VECTORS if feature not in _features()]
    return f"this CPU has no {', '.join(missing)}" if missing else None


@functools.cache
def library() -> Path | None:
    """The compiled library; None where there is none."""
    found = importlib.util.find_spec("runtime_edge.kernels._attention")
    return None if found is None or found.origin is None else Path(found.origin)


@functools.cache
def tiles() -> bool:
    """Whether the CPU has AMX for bfloat16, and the system lets this process use it."""
    path = library()
    if path is None or not _features().issuperset(_TILES):
        return False
    import ctypes

    return bool(ctypes.CDLL(str(path)).lepton_tiles())


@functools.cache
def _features() -> frozenset[str]:
    return frozenset(cpu_field("flags").split())


def _fits(decoder: Decoder) -> bool:
    widths = {width for layer in decoder.cache for width in (layer.key_dim, layer.value_dim)}
    return decoder.cache_dtype == "float32" and all(w % DIM_MULTIPLE == 0 and w <= MOST_DIM for w in widths)
