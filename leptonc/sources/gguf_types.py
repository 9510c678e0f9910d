"""GGML's storage types, and how each becomes float32."""

from __future__ import annotations

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
    """A type of ggml.h: `block` values take `bytes` bytes."""

    number: int
    name: str
    block: int
    bytes: int


_TABLE = (
    GgmlType(0, "F32", 1, 4),
    GgmlType(1, "F16", 1, 2),
    GgmlType(2, "Q4_0", 32, 18),
    GgmlType(3, "Q4_1", 32, 20),
    GgmlType(6, "Q5_0", 32, 22),
    GgmlType(7, "Q5_1", 32, 24),
    GgmlType(8, "Q8_0", 32, 34),
    GgmlType(9, "Q8_1", 32, 40),
    GgmlType(10, "Q2_K", 256, 84),
    GgmlType(11, "Q3_K", 256, 110),
    GgmlType(12, "Q4_K", 256, 144),
    GgmlType(13, "Q5_K", 256, 176),
    GgmlType(14, "Q6_K", 256, 210),
    GgmlType(15, "Q8_K", 256, 292),
    GgmlType(16, "IQ2_XXS", 256, 66),
    GgmlType(17, "IQ2_XS", 256, 74),
    GgmlType(18, "IQ3_XXS", 256, 98),
    GgmlType(19, "IQ1_S", 256, 50),
    GgmlType(20, "IQ4_NL", 32, 18),
    GgmlType(21, "IQ3_S", 256, 110),
    GgmlType(22, "IQ2_S", 256, 82),
    GgmlType(23, "IQ4_XS", 256, 136),
    GgmlType(24, "I8", 1, 1),
    GgmlType(25, "I16", 1, 2),
    GgmlType(26, "I32", 1, 4),
    GgmlType(27, "I64", 1, 8),
    GgmlType(28, "F64", 1, 8),
    GgmlType(29, "IQ1_M", 256, 56),
    GgmlType(30, "BF16", 1, 2),
    GgmlType(34, "TQ1_0", 256, 54),
    GgmlType(35, "TQ2_0", 256, 66),
    GgmlType(39, "MXFP4", 32, 17),
)
TYPES = {kind.number: kind for kind in _TABLE}
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
        InputError: no method is known for the type.
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
    gguf = require("gguf", extra="compiler", needed_by="a quantized GGUF file")
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
