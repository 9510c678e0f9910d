"""Weights of a graph for prefill that an artifact does not store: they are made from those of the graph that decodes.

A weight W [out, in] is stored in blocks of 2, 4 or 8 bits. Prompts multiply it as 8-bit integers with one step an
output channel: round(W / step), two neighbouring inputs' paired as `pair` says. Where the graph divides what the layer
reads, input by input, so that 8 bits do, W has its inputs multiplied in return.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from runtime_edge.errors import ArtifactError
from runtime_edge.files import in_threads
from runtime_edge.manifest import Positive, Record, Size
from runtime_edge.stamps import read_regular

SUFFIX = ".derived"  # of the name of each: kernels of ours find in it that a weight is in the order of `kernels.packed`
TOP = 127
PAIR = 128  # 255 * 128 = 32,640 and -32,640 both fit in 16 bits
MAX_BYTES = 16 * 2**20
TWICE = 2  # how often the bytes of blobs may become weights: a weight that two layers read may be made for each
_ROWS = 64  # channels that are made at once: their numbers stay in the processor's cache


class Part(Record, frozen=True, kw_only=True):
    """Where the bytes of a tensor lie."""

    blob: str
    offset: Size


class Weight(Record, frozen=True, kw_only=True):
    """One weight [rows, columns] = [out, in]: `name` is the initializer, int8 [columns, rows], that it becomes.

    `codes` uint8 [rows, blocks, block_size * bits / 8], low bits first; `scales` float16 [rows, blocks]; `zeros` uint8
    [rows, ceil(blocks * bits / 8)], None where the middle code is zero; `steps` float32 [rows]; `inputs` float16
    [columns], what each column is multiplied by, None where by nothing.
    """

    name: str
    rows: Positive
    columns: Positive
    bits: int
    block_size: Positive
    codes: Part
    scales: Part
    steps: Part
    zeros: Part | None = None
    inputs: Part | None = None

    @property
    def blocks(self) -> int:
        """Blocks of a row."""
        return -(-self.columns // self.block_size)

    def parts(self) -> list[tuple[Part, int]]:
        """Every part with its bytes."""
        sized = [
            (self.codes, self.rows * self.blocks * self.block_size * self.bits // 8),
            (self.scales, self.rows * self.blocks * 2),
            (self.steps, self.rows * 4),
            (self.zeros, self.rows * -(-self.blocks * self.bits // 8)),
            (self.inputs, self.columns * 2),
        ]
        return [(part, size) for part, size in sized if part is not None]


class Derived(Record, frozen=True, kw_only=True):
    """What the file of a variant's `derived` holds."""

    weights: tuple[Weight, ...]


def read(path: Path, name: str, sizes: Mapping[str, int]) -> Derived:
    """Reads how weights are made, and checks it; touches no other file.

    Args:
        path: The file.
        name: What messages call it.
        sizes: Bytes of each blob that the weights may be made of.

    Raises:
        ArtifactError: It is not JSON, breaks the schema, or names what is not there.
    """
    data = read_regular(path, name, MAX_BYTES)
    if len(data) > MAX_BYTES:
        raise ArtifactError(f"{name}: expected at most {MAX_BYTES} bytes, found more")
    try:
        derived = msgspec.json.decode(data, type=Derived)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"{name}: expected a list of weights as JSON, found: {error}") from error
    names, codes = set(), 0
    for weight in derived.weights:
        codes += weight.rows * weight.blocks * weight.block_size * weight.bits // 8
        if weight.name in names:
            raise ArtifactError(f"{name}: expected each weight once, found {weight.name!r} twice")
        names.add(weight.name)
        if not weight.name.endswith(SUFFIX):
            raise ArtifactError(f"{name}: expected names that end in {SUFFIX}, found {weight.name!r}")
        if weight.bits not in (2, 4, 8) or weight.block_size * weight.bits % 8:
            raise ArtifactError(
                f"{name}: {weight.name}: expected blocks of 2, 4 or 8 bits and whole bytes, found {weight.block_size} "
                f"of {weight.bits} bits"
            )
        for part, size in weight.parts():
            if part.blob not in sizes:
                raise ArtifactError(f"{name}: {weight.name}: expected a blob of its variant, found {part.blob!r}")
            if part.offset + size > sizes[part.blob]:
                raise ArtifactError(
                    f"{name}: {weight.name}: expected parts within the {sizes[part.blob]} bytes of {part.blob}, found "
                    f"{size} bytes at offset {part.offset}"
                )
    if codes > TWICE * sum(sizes.values()):
        raise ArtifactError(
            f"{name}: expected weights of at most {TWICE} times the {sum(sizes.values())} bytes of the blobs that they "
            f"are made of, found codes of {codes}",
            hint="it was not made by this toolchain, or was changed: build it again with `leptonc build`",
        )
    return derived


def make(path: Path, threads: int, use: Callable[[str, NDArray[np.int8]], None]) -> None:
    """Makes every weight.

    Args:
        path: What says how, in an artifact that was verified.
        threads: Threads that work on it.
        use: Gets each name with its weight int8 [columns, rows], in any order and from any of the threads.

    Raises:
        ArtifactError: A file was changed or removed since it was verified.
    """
    try:
        derived = msgspec.json.decode(path.read_bytes(), type=Derived)
        by_size = sorted(derived.weights, key=lambda weight: weight.rows * weight.columns)
        in_threads(by_size, lambda weight: use(weight.name, integers(path.parent, weight)), threads)
    except (OSError, msgspec.DecodeError) as error:
        raise ArtifactError(f"{path.name}: expected weights that were verified, found: {error}") from error


@np.errstate(all="ignore")  # of numbers that make no sense come integers that make none
def integers(root: Path, weight: Weight) -> NDArray[np.int8]:
    """Returns round(W / step) of one weight, paired, int8 [columns, rows]."""
    rows, blocks, bits = weight.rows, weight.blocks, weight.bits

    def stored(part: Part, dtype: type, *shape: int) -> NDArray[Any]:
        count = int(np.prod(shape))
        return np.fromfile(root / part.blob, dtype, count, offset=part.offset).reshape(shape)

    codes = stored(weight.codes, np.uint8, rows, blocks, weight.block_size * bits // 8)
    ratios = stored(weight.scales, np.float16, rows, blocks).astype(np.float32)
    ratios /= stored(weight.steps, np.float32, rows, 1)
    if weight.zeros is None:
        offsets = ratios * np.float32(2 ** (bits - 1))
    else:
        zeros = stored(weight.zeros, np.uint8, rows, -(-blocks * bits // 8))
        offsets = ratios * _unpacked(zeros, bits, np.empty((rows, zeros.shape[1] * 8 // bits), np.uint8))[:, :blocks]
    factors = None if weight.inputs is None else stored(weight.inputs, np.float16, weight.columns).astype(np.float32)
    paired = np.empty((weight.columns, rows), np.int8)
    unpacked = np.empty((_ROWS, blocks, weight.block_size), np.uint8)
    exact = np.empty(unpacked.shape, np.float32)
    for at in range(0, rows, _ROWS):
        here = slice(at, min(at + _ROWS, rows))
        count = here.stop - at
        w = exact[:count]
        np.multiply(_unpacked(codes[here], bits, unpacked[:count]), ratios[here, :, None], out=w)
        w -= offsets[here, :, None]
        signed = w.reshape(count, -1)[:, : weight.columns]
        if factors is not None:
            signed *= factors
        np.rint(signed, out=signed)
        np.clip(signed, -TOP, TOP, out=signed)
        pair(signed)
        paired[:, here] = signed.T
    return paired


def pair(codes: NDArray[np.float32]) -> None:
    """Makes signed codes [out, in] paired, in place: two that add up to too much give way by halves.

    The last of an odd number of inputs has zero as its neighbour.
    """
    even = codes.shape[1] // 2 * 2
    left, right = codes[:, 0:even:2], codes[:, 1:even:2]
    sums = left + right
    where = np.nonzero(np.abs(sums, out=sums) > PAIR)  # few, and of one sign: others reach 126 together
    over, one = sums[where] - PAIR, left[where]
    # Both end within 127 and of the sign they had: at most half of the sum goes from the smaller, the rest follows.
    sign = np.sign(one)
    first = np.minimum(np.ceil(over / 2), np.abs(one))
    left[where] -= sign * first
    right[where] -= sign * (over - first)


def _unpacked(packed: NDArray[Any], bits: int, out: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns codes of 2, 4 or 8 bits along the last axis, in `out` where they were packed."""
    if bits == 8:
        return packed.astype(np.uint8, copy=False)
    count = 8 // bits
    for at in range(count):
        np.right_shift(packed, at * bits, out=out[..., at::count])
    np.bitwise_and(out, 2**bits - 1, out=out)
    return out
