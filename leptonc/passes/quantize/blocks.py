"""Block-wise integer weights: how numbers become codes, scales and zero points, and how those are kept lazily.

A weight W [out, in] is cut into blocks of `size` along `in`. In a block, w ~ scale * (code - zero), with codes that are
unsigned integers of `bits` bits; symmetric weights have the zero in the middle of the codes' range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from leptonc.errors import InputError

# Rows are quantized so many elements at a time: temporaries stay small whatever the matrix.
CHUNK = 2**21


@dataclass(frozen=True)
class Format:
    """A block format: `bits` 2, 4 or 8, blocks of `size` along the input, zero in the middle where symmetric.

    `positive` asks a symmetric format for scales above zero, as TensorRT wants them; `half` for scales that float16
    can hold, so that they are stored in half the bytes; `paired` for codes that products with unsigned bytes of two
    neighbours never overflow 16 bits with, see `leptonc.passes.quantize.channels`.
    """

    bits: int
    size: int
    symmetric: bool
    positive: bool = False
    half: bool = False
    paired: bool = False

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        """Bytes of codes, scales and zero points of a weight [out, in], packed as ONNX Runtime's kernels take them."""
        rows, columns = shape
        blocks = -(-columns // self.size)
        zeros = 0 if self.symmetric else -(-blocks * self.bits // 8)
        return rows * (blocks * (self.size * self.bits // 8 + (2 if self.half else 4)) + zeros)

    def fills(self, columns: int) -> bool:
        """Whether blocks and, where they are stored, bytes of zero points fill a row of so many weights."""
        return columns % self.size == 0 and (self.symmetric or columns // self.size * self.bits % 8 == 0)

    @property
    def middle(self) -> int:
        return int(2 ** (self.bits - 1))

    @property
    def top(self) -> int:
        return int(2**self.bits - 1)


class Codes(NamedTuple):
    """Codes uint8 [out, in], scales float32 [out, blocks], zeros uint8 [out, blocks] (None: all in the middle)."""

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8] | None


def storable(scales: NDArray[Any], form: Format) -> NDArray[Any]:
    """Returns the nearest scales that the format can store; one that is not zero stays so.

    Raises:
        InputError: One is larger than float16 holds.
    """
    if not form.half:
        return scales
    limits = np.finfo(np.float16)
    largest = float(np.abs(scales).max(initial=0))
    if largest > limits.max:
        raise InputError(
            f"expected scales of weights up to {limits.max:g}, which float16 holds, found {largest:g}",
            hint="the checkpoint has weights of that size: --weights fp32 keeps them",
        )
    least = np.copysign(limits.smallest_subnormal, scales)
    kept = np.where((scales != 0) & (np.abs(scales) < np.abs(least)), least, scales)
    found: NDArray[Any] = kept.astype(np.float16).astype(scales.dtype)
    return found


def chunks(weight: NDArray[Any], elements: int = CHUNK) -> Iterator[slice]:
    """Yields rows of a weight [out, in], so many elements at a time: temporaries stay small whatever the matrix."""
    step = max(1, elements // weight.shape[1])
    yield from (slice(at, at + step) for at in range(0, len(weight), step))


def round_to_nearest(weight: NDArray[Any], form: Format) -> Codes:
    """Quantizes each block to the nearest codes of its own range.

    Symmetric blocks put their largest magnitude, with its sign, on the end of the code range that has one code more
    (as GGML's Q4_0 does), so that all 2^bits codes are used; with scales above zero, the end with fewer codes is taken
    where the largest is positive. Asymmetric ones span [min(w, 0), max(w, 0)].

    Args:
        weight: float32 [out, in]; the last block may be short.
        form: The format.
    """
    rows, columns = weight.shape
    blocks = -(-columns // form.size)
    codes = np.empty((rows, columns), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    zeros = None if form.symmetric else np.empty((rows, blocks), np.uint8)
    for some in chunks(weight):
        part = np.asarray(weight[some], np.float32)
        n = part.shape[0]
        if blocks * form.size != columns:
            part = np.pad(part, ((0, 0), (0, blocks * form.size - columns)))
        part = part.reshape(n, blocks, form.size)
        if form.symmetric:
            low, high = part.min(-1), part.max(-1)
            extreme = np.where(-low >= high, low, high)
            scale = extreme / np.float32(-form.middle)
            if form.positive:
                scale = np.where(scale < 0, extreme / np.float32(form.middle - 1), scale)
            scale = storable(scale, form)
            zero = np.full_like(scale, form.middle)
        else:
            low, high = np.minimum(part.min(-1), 0), np.maximum(part.max(-1), 0)
            scale = storable((high - low) / np.float32(form.top), form)
            with np.errstate(divide="ignore", invalid="ignore"):
                zero = np.where(scale > 0, np.rint(-low / scale), 0).astype(np.float32)
        # A block of zeros has no scale; and a scale too small to invert is one of zeros.
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=np.abs(scale) > np.finfo(np.float32).tiny)
        part = part * inverse[..., None]
        np.rint(part, out=part)
        part += zero[..., None]
        np.clip(part, 0, form.top, out=part)
        codes[some] = part.reshape(n, -1)[:, :columns]
        scales[some] = scale
        if zeros is not None:
            zeros[some] = zero
    return Codes(codes, scales, zeros)


def dequantize(parts: Codes, form: Format) -> NDArray[np.float32]:
    """Returns float32 [out, in], as `DequantizeLinear` defines it."""
    (rows, columns), blocks = parts.codes.shape, parts.scales.shape[1]
    short = blocks * form.size - columns
    found = (np.pad(parts.codes, ((0, 0), (0, short))) if short else parts.codes).astype(np.float32)
    whole = found.reshape(rows, blocks, form.size)
    whole -= np.float32(form.middle) if parts.zeros is None else parts.zeros[..., None]
    whole *= parts.scales[..., None]
    return np.ascontiguousarray(found[:, :columns])


class Quantized:
    """A quantized weight that is computed when its parts are asked for; the last one asked for is kept.

    Codes, scales and zero points are written one after the other: without the one kept result they would be computed
    three times, with all of them kept a model would be in memory.

    Attributes:
        shape: (out, in).
        form: The format.
        key: Names the content: two weights of one key are one weight.
        rows, columns: What a graph that others share the codes with multiplies their numbers by, float32 [out] and
            [in]; None for nothing.
    """

    _last: tuple[Quantized, Codes] | None = None

    def __init__(self, shape: tuple[int, int], form: Format, key: str, compute: Callable[[], Codes]) -> None:
        self.shape, self.form, self.key, self._compute = shape, form, key, compute
        self.rows: NDArray[np.float32] | None = None
        self.columns: NDArray[np.float32] | None = None

    def parts(self) -> Codes:
        """Returns codes, scales and zero points."""
        last = Quantized._last
        if last is None or last[0] is not self:  # a key is a name: another model may have it too
            # Dropped first, so that two weights are never in memory at once.
            Quantized._last = last = None
            last = (self, self._compute())
            Quantized._last = last
        return last[1]

    def exact(self) -> NDArray[np.float32]:
        """Returns the weight as numbers, float32 [out, in]."""
        found = dequantize(self.parts(), self.form)
        if self.columns is not None:
            found *= self.columns
        if self.rows is not None:
            found *= self.rows[:, None]
        return found

    def multiplied(
        self, *, rows: NDArray[np.float32] | None = None, columns: NDArray[np.float32] | None = None
    ) -> Quantized:  # fmt: skip
        """Returns the weight of the same codes whose numbers are multiplied by what is given, too."""
        found = Quantized(self.shape, self.form, self.key, self._compute)
        found.rows, found.columns = _product(self.rows, rows), _product(self.columns, columns)
        return found

    def put(self, part: str, values: NDArray[Any]) -> None:
        """Gives the weight other `scales` or `zeros` [out, blocks]; the other parts stay."""
        compute = self._compute
        self._compute = lambda: compute()._replace(**{part: values.reshape(self.shape[0], -1)})
        Quantized.forget()

    @staticmethod
    def forget() -> None:
        """Drops the result that is kept."""
        Quantized._last = None

    @staticmethod
    def stack(parts: Sequence[Quantized]) -> Quantized:
        """Returns the weight with the rows of all `parts`, in order; they have one format, width and `columns`."""

        def compute() -> Codes:
            each = [p._compute() for p in parts]
            zeros = [c.zeros for c in each if c.zeros is not None]
            return Codes(
                np.concatenate([c.codes for c in each]), np.concatenate([c.scales for c in each]),
                np.concatenate(zeros) if zeros else None,
            )  # fmt: skip

        shape = (sum(p.shape[0] for p in parts), parts[0].shape[1])
        found = Quantized(shape, parts[0].form, "+".join(p.key for p in parts), compute)
        found.columns = parts[0].columns
        if any(p.rows is not None for p in parts):
            found.rows = np.concatenate([np.ones(p.shape[0], np.float32) if p.rows is None else p.rows for p in parts])
        return found


def _product(a: NDArray[np.float32] | None, b: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
    return b if a is None else a if b is None else a * b
