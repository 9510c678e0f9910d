"""What healing may change in a graph: initializers, and how each is parametrised.

Every parametrisation starts from numbers that stand for the weights as they are, and moves in units of the weight's own
size: one learning rate suits them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from leptonc.errors import InputError
from leptonc.heal.graph import MOVED, as_tensor
from leptonc.ir.structure import Linear, linears, lookups
from leptonc.passes.quantize.blocks import Format, Quantized, storable
from leptonc.passes.quantize.weights import quantized_of

SCALES, ZEROS, CODES = ".scales", ".zeros", ".codes"
_LEAST = -0.9  # of what is learned of a scale, so that it keeps its sign
_HALF = Format(4, 32, True, half=True)
_NORMS = ("RMSNormalization", "LayerNormalization")


Learned = tuple[Tensor, ...]


class Parameter(Protocol):
    """One initializer that changes.

    Attributes:
        name: The initializer's.
        start: The numbers that are learned, as they are at first.
    """

    name: str
    start: Learned

    def variables(self, learned: Learned) -> Mapping[str, Tensor]:
        """Returns what a `Graph` runs with, from the learned numbers."""

    def stored(self, learned: Learned) -> NDArray[np.float32]:
        """Returns the initializer's new values, as they will be stored."""


class Kind(Protocol):
    """How an initializer is parametrised: a description, without data."""

    def of(self, value: ir.Value, random: np.random.Generator) -> Parameter:
        """Returns the parametrisation of a graph's initializer."""


@dataclass(frozen=True)
class Free:
    """Every number of an initializer is learned: gains, biases, or whole weights."""

    def of(self, value: ir.Value, random: np.random.Generator) -> Parameter:
        return _Free(value)


class _Free:
    def __init__(self, value: ir.Value) -> None:
        self.name, self._base = str(value.name), as_tensor(value).to(torch.float32)
        self.start: Learned = (_zeros(self._base.shape),)
        self._unit = _size(self._base)

    def variables(self, learned: Learned) -> Mapping[str, Tensor]:
        return {self.name: self._base + self._unit * learned[0]}

    def stored(self, learned: Learned) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.variables(learned)[self.name].numpy()
        return found


@dataclass(frozen=True)
class Scales:
    """The scales of a quantized weight, its codes and zero points fixed; each is multiplied by 1 + what is learned."""

    half: bool = False

    def of(self, value: ir.Value, random: np.random.Generator) -> Parameter:
        return _Scales(value, self.half)


class _Scales:
    def __init__(self, value: ir.Value, half: bool) -> None:
        self.name, self._base, self._half = str(value.name), as_tensor(value), half
        self.start: Learned = (_zeros(self._base.shape),)

    def variables(self, learned: Learned) -> Mapping[str, Tensor]:
        return {self.name: self._base * (1 + learned[0].clamp(min=_LEAST))}

    def stored(self, learned: Learned) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.variables(learned)[self.name].numpy()
        return storable(found, _HALF) if self._half else found


@dataclass(frozen=True)
class Zeros:
    """The zero points of a quantized weight, its codes fixed: whole numbers, as they are stored, while it learns, too.

    What is learned passes the rounding, and the ends of the codes, by as if they were not there (Bengio et al.,
    straight-through estimators, 2013).

    Attributes:
        top: The largest code, which is the largest zero point, too.
    """

    top: int

    def of(self, value: ir.Value, random: np.random.Generator) -> Parameter:
        return _Zeros(value, self.top)


class _Zeros:
    def __init__(self, value: ir.Value, top: int) -> None:
        self.name, self._base, self._top = str(value.name), as_tensor(value).to(torch.uint8), top
        self.start: Learned = (_zeros(self._base.shape),)

    def variables(self, learned: Learned) -> Mapping[str, Tensor]:
        wanted = self._base + (self._top + 1) * learned[0]
        return {f"{self.name}{MOVED}": wanted + (wanted.clamp(0, self._top).round() - wanted).detach() - self._base}

    def stored(self, learned: Learned) -> NDArray[np.float32]:
        (moved,) = self.variables(learned).values()
        found: NDArray[np.float32] = (moved + self._base).numpy()
        return found


@dataclass(frozen=True)
class LowRank:
    """A matrix a b of low rank that is added to a weight, and folded into it at the end (Hu et al., LoRA, 2021).

    The weight is one that nothing but linear layers reads.

    Attributes:
        rank: Of the matrix.
        turned: Whether the weight is stored [in, out], so that a reads the inputs; else b does.
        start: What the part that reads the inputs begins with, float32 [rank, in], rows of norm 1; None for random
            directions. The other begins with zeros.
    """

    rank: int
    turned: bool = False
    start: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"expected a rank of 1 or more, found {self.rank}")

    def of(self, value: ir.Value, random: np.random.Generator) -> Parameter:
        return _LowRank(value, self, random)


class _LowRank:
    def __init__(self, value: ir.Value, kind: LowRank, random: np.random.Generator) -> None:
        self.name, self._value, self._turned = str(value.name), value, kind.turned
        rows, columns = (int(d) for d in value.shape or ())  # type: ignore[arg-type]
        outputs, inputs = (columns, rows) if kind.turned else (rows, columns)
        self._unit = _size(as_tensor(value)) * inputs**0.5
        start = random.standard_normal((kind.rank, inputs)) / inputs**0.5 if kind.start is None else kind.start
        reads = torch.from_numpy(start.astype(np.float32))
        writes = torch.zeros(kind.rank, outputs)
        self.start: Learned = (reads.T, writes) if kind.turned else (writes.T, reads)

    def variables(self, learned: Learned) -> Mapping[str, Tensor]:
        a, b = learned
        a, b = (a, self._unit * b) if self._turned else (self._unit * a, b)
        return {f"{self.name}.low_rank.a": a, f"{self.name}.low_rank.b": b}

    def stored(self, learned: Learned) -> NDArray[np.float32]:
        a, b = self.variables(learned).values()
        found: NDArray[np.float32] = (as_tensor(self._value) + a @ b).numpy()
        return found


def _zeros(shape: torch.Size) -> Tensor:
    """Zeros that take no memory, however many: a start is kept as long as the parameter."""
    return torch.zeros(()).expand(shape)


def _size(base: Tensor) -> float:
    return float(base.square().mean().sqrt()) or 1.0


def recoverable(model: ir.Model) -> dict[str, Kind]:
    """Returns what healing changes in a quantized graph, by initializer: what is stored as it was, whatever its values.

    Scales and zero points of the weights in the fewest bits, gains and biases of norms, and biases of linear layers.
    Weights in 8 bits among those in 4 are as good as exact, and their gradients cost as much.
    """
    coded = {name: weight.form for name, v in model.graph.initializers.items() if (weight := quantized_of(v))}
    fewest = min((form.bits for form in coded.values()), default=0)
    found: dict[str, Kind] = {}
    for name, form in coded.items():
        if form.bits == fewest:
            found[name.removesuffix(CODES) + SCALES] = Scales(form.half)
            if not form.symmetric:
                found[name.removesuffix(CODES) + ZEROS] = Zeros(form.top)
    for value in (*_of_norms(model), *(each.bias for each in linears(model) if each.bias is not None)):
        if value.is_initializer() and not str(value.name).startswith("const_"):  # shared constants are no weights
            found[str(value.name)] = Free()
    return found


def low_rank(model: ir.Model, rank: int) -> dict[str, Kind]:
    """Returns the description of a graph in float32: low-rank terms of linear layers, gains and biases.

    A head that is tied to the embedding stays as it is.
    """
    found: dict[str, Kind] = {str(each.weight.name): LowRank(rank, not each.transposed) for each in _floats(model)}
    return {**found, **recoverable(model)}


def whole(model: ir.Model) -> dict[str, Kind]:
    """Returns the description of a graph in float32 whose linear layers learn whole, but a tied head."""
    return {**{str(each.weight.name): Free() for each in _floats(model)}, **recoverable(model)}


def _floats(model: ir.Model) -> list[Linear]:
    tables = lookups(model)
    return [each for each in linears(model) if each.dequantize is None and each.weight not in tables]


def _of_norms(model: ir.Model) -> Iterator[ir.Value]:
    for node in model.graph:
        if node.op_type in _NORMS and not node.domain:
            yield from (value for value in node.inputs[1:] if value is not None)


def put(model: ir.Model, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Gives initializers new values; of a quantized weight's parts, everything that is made from the weight learns."""
    for name, array in arrays.items():
        value = model.graph.initializers[name]
        weight, part = _part(model, name)
        if weight is None:
            value.const_value = _lazy(array, value)
        else:
            weight.put(part, array if part == "scales" else array.astype(np.uint8))


def _part(model: ir.Model, name: str) -> tuple[Quantized | None, str]:
    """The quantized weight that an initializer is a part of, if it is, and which."""
    base, _, part = name.rpartition(".")
    codes = model.graph.initializers.get(f"{base}{CODES}") if f".{part}" in (SCALES, ZEROS) else None
    return quantized_of(codes) if codes is not None else None, part


def _lazy(array: NDArray[np.float32], value: ir.Value) -> Any:
    """A tensor of the kind that the initializer had, so that it is stored in the same place."""
    old = value.const_value
    if not isinstance(old, ir.LazyTensor):
        return ir.tensor(array, name=value.name)
    return ir.LazyTensor(
        lambda: ir.tensor(array), dtype=ir.DataType.FLOAT, shape=ir.Shape(array.shape), name=value.name, cache=False,
        metadata_props=dict(old.metadata_props),
    )  # fmt: skip
