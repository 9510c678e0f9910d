"""GGML's storage types, and how each becomes float32."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leptonc.errors import InputError, require
from leptonc.sources.base import Array
from leptonc.sources.mapped import bfloat16_to_float32

# Values that are dequantized at a time: temporaries stay in the processor's caches.
_GROUP_VALUES = 2**18


@dataclass(frozen=True)
class GgmlType:
    """A storage type of GGML: `block` values take `bytes` bytes."""

    number: int
    name: str
    block: int
    bytes: int


@functools.cache
def types() -> Mapping[int, GgmlType]:
    """Returns all types by the number that a file has for them: those of the package `gguf`.

    Raises:
        MissingExtraError: The package is not installed.
    """
    sizes = require("gguf", extra="compiler", needed_by="a GGUF file").GGML_QUANT_SIZES
    return {int(kind): GgmlType(int(kind), kind.name, *size) for kind, size in sizes.items()}


_PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "|i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}


def dequantize(raw: NDArray[np.uint8], kind: GgmlType, shape: tuple[int, ...], label: str) -> Array:
    """Turns a tensor's stored bytes into values.

    Args:
        raw: The bytes, `math.prod(shape) / kind.block * kind.bytes` of them.
        kind: How they are stored.
        shape: Of the result; the last dimension is a multiple of `kind.block`.
        label: Names the tensor in the error.

    Returns:
        float32 (a view of `raw` where that is what is stored and it is aligned), or the stored integers.

    Raises:
        InputError: The package `gguf` does not dequantize the type.
    """
    if kind.name in _PLAIN:
        stored = raw.view(_PLAIN[kind.name]).reshape(shape)
        if kind.name in ("F16", "F64"):
            return stored.astype(np.float32)
        return stored if stored.flags.aligned else stored.copy()
    if kind.name == "BF16":
        return bfloat16_to_float32(raw.view("<u2").reshape(shape))
    return _dequantize_blocks(raw, kind, shape, label)


def _dequantize_blocks(raw: NDArray[np.uint8], kind: GgmlType, shape: tuple[int, ...], label: str) -> Array:
    gguf = require("gguf", extra="compiler", needed_by="a GGUF file")
    blocks = raw.reshape(-1, kind.bytes)
    result = np.empty((len(blocks), kind.block), dtype=np.float32)
    group = max(1, _GROUP_VALUES // kind.block)
    qtype = gguf.GGMLQuantizationType(kind.number)
    try:
        for start in range(0, len(blocks), group):
            # As one row: the library takes rows by sixteen, each turn with its own temporaries.
            some = blocks[start : start + group]
            result[start : start + group] = gguf.quants.dequantize(some.reshape(1, -1), qtype).reshape(len(some), -1)
    except NotImplementedError as error:
        raise InputError(
            f"{label} has the type {kind.name}, which cannot be dequantized",
            hint="give a GGUF in F16, BF16, Q8_0, Q4_K or another common type",
        ) from error
    return result.reshape(shape)
