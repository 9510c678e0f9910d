"""Block-wise integer weights: how numbers become codes, scales and zero points, which are computed lazily.

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

# Elements that are quantized at a time, so that temporaries stay small for any matrix.
CHUNK = 2**21


@dataclass(frozen=True)
class Format:
    """A block format.

    Attributes:
        bits: Bits of a code: 2, 4 or 8.
        size: Weights of a block, along the input.
        symmetric: Whether the zero point is the middle code.
        positive: Whether scales of a symmetric format are above zero, as TensorRT wants them. Default: any sign.
        half: Whether scales are numbers that float16 holds, so that they take half the bytes. Default: any float32.
        paired: Whether the products of two neighbouring codes with unsigned bytes never overflow 16 bits; see
            `leptonc.passes.quantize.channels`. Default: they may.
    """

    bits: int
    size: int
    symmetric: bool
    positive: bool = False
    half: bool = False
    paired: bool = False

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        """Returns the bytes of codes, scales and zero points of a weight [out, in], as ONNX Runtime packs them."""
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
    """Returns the nearest scales that the format can store. No scale becomes zero.

    Raises:
        InputError: A scale is larger than float16 holds.
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
    nonzero = np.where((scales != 0) & (np.abs(scales) < np.abs(least)), least, scales)
    stored: NDArray[Any] = nonzero.astype(np.float16).astype(scales.dtype)
    return stored


def chunks(weight: NDArray[Any], elements: int = CHUNK) -> Iterator[slice]:
    """Yields slices of rows of a weight [out, in] that have so many elements, so that temporaries stay small."""
    step = max(1, elements // weight.shape[1])
    yield from (slice(at, at + step) for at in range(0, len(weight), step))


def round_to_nearest(weight: NDArray[Any], form: Format) -> Codes:
    """Quantizes each block to the nearest codes of its own range.

    A symmetric block puts its largest magnitude, with its sign, on the end of the code range that has one code more (as
    GGML's Q4_0 does), so that all 2^bits codes are used. With scales above zero, a positive largest magnitude takes the
    other end. An asymmetric block spans [min(w, 0), max(w, 0)].

    Args:
        weight: float32 [out, in]. The last block of a row may be short.
        form: The format.
    """
    rows, columns = weight.shape
    blocks = -(-columns // form.size)
    codes = np.empty((rows, columns), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    zeros = None if form.symmetric else np.empty((rows, blocks), np.uint8)
    for chunk in chunks(weight):
        part = np.asarray(weight[chunk], np.float32)
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
        # A block of zeros has no scale. A scale that is too small to invert counts as that.
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=np.abs(scale) > np.finfo(np.float32).tiny)
        part = part * inverse[..., None]
        np.rint(part, out=part)
        part += zero[..., None]
        np.clip(part, 0, form.top, out=part)
        codes[chunk] = part.reshape(n, -1)[:, :columns]
        scales[chunk] = scale
        if zeros is not None:
            zeros[chunk] = zero
    return Codes(codes, scales, zeros)


def dequantize(parts: Codes, form: Format) -> NDArray[np.float32]:
    """Returns float32 [out, in], as `DequantizeLinear` defines it."""
    (rows, columns), blocks = parts.codes.shape, parts.scales.shape[1]
    short = blocks * form.size - columns
    weight = (np.pad(parts.codes, ((0, 0), (0, short))) if short else parts.codes).astype(np.float32)
    whole = weight.reshape(rows, blocks, form.size)
    whole -= np.float32(form.middle) if parts.zeros is None else parts.zeros[..., None]
    whole *= parts.scales[..., None]
    return np.ascontiguousarray(weight[:, :columns])


class Quantized:
    """A quantized weight that is computed when its parts are read. The result that was read last is kept.

    Codes, scales and zero points are written one after the other. Without the kept result they would be computed three
    times; with the results of all weights kept, a model would be in memory.

    Attributes:
        shape: (out, in).
        form: The format.
        key: Name of the content: two weights with one key are one weight.
        rows, columns: Factors, float32 [out] and [in], by which a graph multiplies the numbers of codes that it shares
            with others. None: it does not.
    """

    _last: tuple[Quantized, Codes] | None = None

    def __init__(self, shape: tuple[int, int], form: Format, key: str, compute: Callable[[], Codes]) -> None:
        self.shape, self.form, self.key, self._compute = shape, form, key, compute
        self.rows: NDArray[np.float32] | None = None
        self.columns: NDArray[np.float32] | None = None

    def parts(self) -> Codes:
        """Returns codes, scales and zero points."""
        last = Quantized._last
        if last is None or last[0] is not self:  # another model may have the same key
            # The old result is dropped first, so that two weights are never in memory at once.
            Quantized._last = last = None
            last = (self, self._compute())
            Quantized._last = last
        return last[1]

    def exact(self) -> NDArray[np.float32]:
        """Returns the dequantized weight with its factors, float32 [out, in]."""
        weight = dequantize(self.parts(), self.form)
        if self.columns is not None:
            weight *= self.columns
        if self.rows is not None:
            weight *= self.rows[:, None]
        return weight

    def multiplied(
        self, *, rows: NDArray[np.float32] | None = None, columns: NDArray[np.float32] | None = None
    ) -> Quantized:  # fmt: skip
        """Returns a weight of the same codes whose numbers are also multiplied by `rows` [out] and `columns` [in]."""
        product = Quantized(self.shape, self.form, self.key, self._compute)
        product.rows, product.columns = _product(self.rows, rows), _product(self.columns, columns)
        return product

    def put(self, part: str, values: NDArray[Any]) -> None:
        """Replaces `scales` or `zeros` [out, blocks] of the weight. The other parts stay."""
        compute = self._compute
        self._compute = lambda: compute()._replace(**{part: values.reshape(self.shape[0], -1)})
        Quantized.forget()

    @staticmethod
    def forget() -> None:
        """Drops the kept result."""
        Quantized._last = None

    @staticmethod
    def stack(parts: Sequence[Quantized]) -> Quantized:
        """Returns the weight with the rows of all `parts`, in order. These have one format, width and `columns`."""

        def compute() -> Codes:
            codes = [p._compute() for p in parts]
            zeros = [c.zeros for c in codes if c.zeros is not None]
            return Codes(
                np.concatenate([c.codes for c in codes]), np.concatenate([c.scales for c in codes]),
                np.concatenate(zeros) if zeros else None,
            )  # fmt: skip

        shape = (sum(p.shape[0] for p in parts), parts[0].shape[1])
        stacked = Quantized(shape, parts[0].form, "+".join(p.key for p in parts), compute)
        stacked.columns = parts[0].columns
        if any(p.rows is not None for p in parts):
            factors = [np.ones(p.shape[0], np.float32) if p.rows is None else p.rows for p in parts]
            stacked.rows = np.concatenate(factors)
        return stacked


def _product(a: NDArray[np.float32] | None, b: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
    return b if a is None else a if b is None else a * b
