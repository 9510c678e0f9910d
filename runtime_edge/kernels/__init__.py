"""Kernels of our own that run in the place of ONNX Runtime's: libraries in C, compiled where the package is installed.

`library.c` is what ONNX Runtime loads; each kernel is an operator (`operator.c`) of ONNX Runtime's name, so a session
that registers a library runs its graph as it is. `attention.c` is GroupQueryAttention: `many.c` and `bfloat16.c`
attend with many queries, `few.c` with few, `rows.c` has what all do to a row. `product.c` is MatMulIntegerToFloat,
which `multiply.c` computes. The libraries need Linux and x86-64, one AVX-512 and one AVX2 alone; bfloat16 and products
need AMX. Where none was compiled or can run, ONNX Runtime's own kernels do the same.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime_edge.errors import RequestError
from runtime_edge.installation import checkout, install_command
from runtime_edge.manifest import Decoder
from runtime_edge.probe import cpu_field

VARIABLE = "LEPTON_KERNELS"
NOTE = "not-compiled.note"  # written by `setup.py`, and by who packs a wheel without kernels
PRODUCT = "product.int8"
_ATTENTION = "attention."
MOST_DIM, DIM_MULTIPLE = 256, 32  # of a head
_BEST = "_kernels"
_LIBRARIES = {  # and what they need, the best first
    _BEST: ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"),
    "_kernels_avx2": ("avx2", "fma"),
}
_TILES = ("amx_tile", "amx_int8", "amx_bf16", "avx512_bf16", "avx512_vnni")  # no CPU has some of them alone


def chosen(decoder: Decoder | None, activations: str) -> tuple[str, ...]:
    """Names of our kernels that a graph is best run with, for `register`; none where they do not run.

    Attention of a decoder is in float32, as in ONNX Runtime's kernel. Where products have 8-bit activations already
    (`activations` of the graph is int8) and the CPU multiplies tiles, it is in bfloat16 for 16 queries and more, 8 bits
    of precision as well, sums in float32; and those products are ours, exact as ONNX Runtime's are.

    Raises:
        RequestError: `LEPTON_KERNELS` has a value that is not known.
    """
    if lacking() is not None:
        return ()
    integers = activations == "int8" and tiles()
    attention = [_ATTENTION + ("bfloat16" if integers else "float32")] if decoder is not None and _fits(decoder) else []
    return (*attention, *([PRODUCT] if integers else []))


def attends(names: Sequence[str]) -> bool:
    """Whether attention over the cache is one of the kernels that `chosen` returned."""
    return any(name.startswith(_ATTENTION) for name in names)


def register(options: Any, names: Sequence[str]) -> None:
    """Has sessions of these `onnxruntime.SessionOptions` run kernels that `chosen` returned."""
    if names:
        options.add_session_config_entry("lepton.kernels", " ".join(names))
        options.register_custom_ops_library(str(library()))


def packed(weight: NDArray[np.int8]) -> NDArray[np.int8]:
    """Returns a derived weight int8 [in, out] in the order of our product, which then needs no copy; else as it is.

    Of the same shape, at a multiple of 64 bytes. The product expects it of each weight whose sides are multiples of 64
    and 32 and whose name ends in `derived.SUFFIX`.
    """
    depth, width = weight.shape
    if depth % 64 or width % 32:
        return weight
    room = np.empty(weight.size + 64, np.int8)
    copy = room[-room.ctypes.data % 64 :][: weight.size].reshape(weight.shape)
    ctypes.CDLL(str(library())).lepton_pack(
        ctypes.c_void_p(weight.ctypes.data), ctypes.c_int64(depth), ctypes.c_int64(width),
        ctypes.c_void_p(copy.ctypes.data),
    )  # fmt: skip
    return copy


def lacking() -> str | None:
    """Why our kernels do not run in this process; None where they do.

    Raises:
        RequestError: `LEPTON_KERNELS` has a value that is not known.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "onnxruntime":
        return f"{VARIABLE}=onnxruntime"
    if wanted not in ("", "avx2"):
        raise RequestError(f"{VARIABLE}: expected onnxruntime, avx2, or nothing, found {wanted!r}")
    if library() is not None:
        return None
    compiled = list(_compiled().values())
    if not compiled:
        return f"not compiled: {_note() or 'that needs Linux on x86-64, and GCC 11 or Clang 12, at installation'}"
    return f"this CPU has no {', '.join(name for name in compiled[-1] if name not in _features())}"


def may_compile() -> str | None:
    """Why this machine lacks kernels that its CPU could run, and how it gets them; None where it lacks none."""
    runs = any(_features().issuperset(needed) for needed in _LIBRARIES.values())
    if not runs or _compiled() or sys.platform != "linux":
        return None
    anew = f"run `{install_command()}`" if checkout() else "make its wheel anew"
    return f"{_note() or 'they were not compiled'}: install GCC 11 or Clang 12, or later, and {anew}"


def library() -> Path | None:
    """The best library that is compiled and that this CPU runs; None where there is none."""
    return next((path for path, needed in _compiled().items() if _features().issuperset(needed)), None)


def _compiled() -> dict[Path, tuple[str, ...]]:
    """Libraries that are there, and what they need."""
    least = os.environ.get(VARIABLE) == "avx2"
    libraries = {_path(name): needed for name, needed in _LIBRARIES.items() if name != _BEST or not least}
    return {path: needed for path, needed in libraries.items() if path is not None}


def _note() -> str:
    """Why the installation compiled none, as it wrote down; an empty text where it did not."""
    try:
        return (Path(__file__).parent / NOTE).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


@functools.cache
def _path(name: str) -> Path | None:
    module = importlib.util.find_spec(f"{__name__}.{name}")
    return None if module is None or module.origin is None else Path(module.origin)


def tiles() -> bool:
    """Whether the CPU has AMX for 8-bit integers and bfloat16, and the system lets this process use it."""
    path = library()
    return path is not None and path == _path(_BEST) and _features().issuperset(_TILES) and _permitted(path)


@functools.cache
def _permitted(path: Path) -> bool:
    return bool(ctypes.CDLL(str(path)).lepton_tiles())


@functools.cache
def _features() -> frozenset[str]:
    return frozenset(cpu_field("flags").split())


def _fits(decoder: Decoder) -> bool:
    widths = {width for layer in decoder.cache for width in (layer.key_dim, layer.value_dim)}
    return decoder.cache_dtype == "float32" and all(w % DIM_MULTIPLE == 0 and w <= MOST_DIM for w in widths)
