"""What healing may change in a graph: initializers, each with a parametrisation.

A parametrisation starts at the weight's own values, and moves in units of the weight's own size, so that one learning
rate suits all of them.
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
_LEAST = -0.9  # least learned number of a scale, which keeps the scale's sign
_HALF = Format(4, 32, True, half=True)
_NORMS = ("RMSNormalization", "LayerNormalization")


Learned = tuple[Tensor, ...]


class Parameter(Protocol):
    """The parametrisation of one initializer.

    Attributes:
        name: Name of the initializer.
        start: The learned numbers at the start.
    """

    name: str
    start: Learned

    def variables(self, learned: Learned) -> Mapping[str, Tensor]:
        """Returns the tensors that a `Graph` runs with, for learned numbers."""

    def stored(self, learned: Learned) -> NDArray[np.float32]:
        """Returns the initializer's new values, as they will be stored."""


class Kind(Protocol):
    """The kind of an initializer's parametrisation, without data."""

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
        values: NDArray[np.float32] = self.variables(learned)[self.name].numpy()
        return values


@dataclass(frozen=True)
class Scales:
    """Scales of a quantized weight. Each is multiplied by 1 + a learned number; codes and zero points are fixed."""

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
        scales: NDArray[np.float32] = self.variables(learned)[self.name].numpy()
        return storable(scales, _HALF) if self._half else scales


@dataclass(frozen=True)
class Zeros:
    """Zero points of a quantized weight; its codes are fixed. Learning sees whole numbers, as they are stored.

    Gradients ignore the rounding and the range of codes (straight-through estimators, Bengio et al., 2013).

    Attributes:
        top: The largest code, and the largest zero point.
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
        zeros: NDArray[np.float32] = (moved + self._base).numpy()
        return zeros


@dataclass(frozen=True)
class LowRank:
    """A matrix a b of low rank that is added to a weight, and folded into it at the end (Hu et al., LoRA, 2021).

    Only linear layers read the weight.

    Attributes:
        rank: Rank of the matrix.
        turned: Whether the weight is stored [in, out], so that a reads the inputs. Otherwise b does. Default: b does.
        start: Start of the part that reads the inputs, float32 [rank, in], rows of norm 1. Default: random directions.
            The other part starts with zeros.
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
        weight: NDArray[np.float32] = (as_tensor(self._value) + a @ b).numpy()
        return weight


def _zeros(shape: torch.Size) -> Tensor:
    """Returns zeros that take no memory: a start is kept as long as its parameter."""
    return torch.zeros(()).expand(shape)


def _size(base: Tensor) -> float:
    return float(base.square().mean().sqrt()) or 1.0


def recoverable(model: ir.Model) -> dict[str, Kind]:
    """Returns the kinds of initializers that can change in a quantized graph without taking more bytes.

    These are scales and zero points of the weights with the fewest bits, gains and biases of norms, and biases of
    linear layers. Weights of 8 bits among weights of 4 are nearly exact already; their gradients would cost as much.
    """
    coded = {name: weight.form for name, v in model.graph.initializers.items() if (weight := quantized_of(v))}
    fewest = min((form.bits for form in coded.values()), default=0)
    kinds: dict[str, Kind] = {}
    for name, form in coded.items():
        if form.bits == fewest:
            kinds[name.removesuffix(CODES) + SCALES] = Scales(form.half)
            if not form.symmetric:
                kinds[name.removesuffix(CODES) + ZEROS] = Zeros(form.top)
    for value in (*_of_norms(model), *(linear.bias for linear in linears(model) if linear.bias is not None)):
        if value.is_initializer() and not str(value.name).startswith("const_"):  # shared constants are no weights
            kinds[str(value.name)] = Free()
    return kinds


def low_rank(model: ir.Model, rank: int) -> dict[str, Kind]:
    """Returns the kinds for a graph in float32: low-rank terms of linear layers, gains and biases.

    A head that is tied to the embedding stays as it is.
    """
    terms: dict[str, Kind] = {
        str(linear.weight.name): LowRank(rank, not linear.transposed) for linear in _floats(model)
    }
    return {**terms, **recoverable(model)}


def whole(model: ir.Model) -> dict[str, Kind]:
    """Returns the kinds for a graph in float32 whose linear layers learn every number. A tied head stays."""
    return {**{str(linear.weight.name): Free() for linear in _floats(model)}, **recoverable(model)}


def _floats(model: ir.Model) -> list[Linear]:
    tables = lookups(model)
    return [linear for linear in linears(model) if linear.dequantize is None and linear.weight not in tables]


def _of_norms(model: ir.Model) -> Iterator[ir.Value]:
    for node in model.graph:
        if node.op_type in _NORMS and not node.domain:
            yield from (value for value in node.inputs[1:] if value is not None)


def put(model: ir.Model, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Gives initializers new values. New parts of a quantized weight count in everything made from the weight."""
    for name, array in arrays.items():
        value = model.graph.initializers[name]
        weight, part = _part(model, name)
        if weight is None:
            value.const_value = _lazy(array, value)
        else:
            weight.put(part, array if part == "scales" else array.astype(np.uint8))


def _part(model: ir.Model, name: str) -> tuple[Quantized | None, str]:
    """Returns the quantized weight that an initializer is a part of, or None, and the part's name."""
    base, _, part = name.rpartition(".")
    codes = model.graph.initializers.get(f"{base}{CODES}") if f".{part}" in (SCALES, ZEROS) else None
    return quantized_of(codes) if codes is not None else None, part


def _lazy(array: NDArray[np.float32], value: ir.Value) -> Any:
    """Returns a tensor of the same kind as the initializer's old one, so that it is stored in the same place."""
    old = value.const_value
    if not isinstance(old, ir.LazyTensor):
        return ir.tensor(array, name=value.name)
    return ir.LazyTensor(
        lambda: ir.tensor(array), dtype=ir.DataType.FLOAT, shape=ir.Shape(array.shape), name=value.name, cache=False,
        metadata_props=dict(old.metadata_props),
    )  # fmt: skip
