"""SmoothQuant: scales move from activations, which are hard to quantize, to weights. The graph computes the same.

Xiao et al., SmoothQuant (2022): y = (x / s) (s W), with a scale for each feature of x. The division is free where it
can be folded into the gain of a norm, or into the rows of the linear layer before (`up_proj` before `down_proj`,
`v_proj` before `o_proj`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.ir import edit
from leptonc.ir.dialect import DOMAIN, STORAGE_KEY
from leptonc.ir.structure import Linear, linear_of, linears
from leptonc.passes.base import Config, Pass
from leptonc.passes.quantize.weights import KEY, quantized_of

NORMS = ("RMSNormalization", "LayerNormalization")
GATES = ("Mul",)


@dataclass(frozen=True)
class Place:
    """A value that linear layers read, and that can be divided feature by feature at no cost.

    Attributes:
        x: The value.
        readers: The linear layers that read it. It has no other readers.
        norm: The norm that makes it, or None.
        linear: The linear layer whose outputs become it, or None.
        rows: Index of the value's first feature among that layer's outputs.
        heads: Numbers of query heads and of key/value heads of the features. Features of query heads that share a
            key/value head share a scale. Default: (1, 1), for no heads.
    """

    x: ir.Value
    readers: tuple[Linear, ...]
    norm: ir.Node | None = None
    linear: Linear | None = None
    rows: int = 0
    heads: tuple[int, int] = (1, 1)

    @property
    def width(self) -> int:
        return self.readers[0].shape[1]

    def shared(self, scales: NDArray[Any]) -> NDArray[np.float32]:
        """Returns the nearest scales [width] that can be folded: the geometric mean over heads that share a scale."""
        queries, keys = self.heads
        split = np.log(scales).reshape(keys, queries // keys, -1)
        shared: NDArray[np.float32] = np.exp(
            np.broadcast_to(split.mean(1, keepdims=True), split.shape).reshape(-1)
        ).astype(np.float32)
        return shared

    def source(self, scales: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns scales of the features of the value's source, for scales [width] of the value."""
        queries, keys = self.heads
        return np.ascontiguousarray(scales.reshape(keys, queries // keys, -1)[:, 0].reshape(-1))


def places(model: ir.Model) -> dict[str, Place]:
    """Returns the places where inputs of linear layers can be divided, by the name of the value."""
    candidates = {name: place for name, group in _groups(model).items() if (place := _place(tuple(group))) is not None}
    return {name: place for name, place in candidates.items() if all(_alone(reader.weight) for reader in place.readers)}


def _groups(model: ir.Model) -> dict[str, list[Linear]]:
    """Returns the linear layers that read each value, by the value's name."""
    groups: dict[str, list[Linear]] = {}
    for linear in linears(model):
        groups.setdefault(str(linear.x.name), []).append(linear)
    return groups


def _alone(value: ir.Value | None) -> bool:
    """Whether an initializer is read once, so that it can be changed."""
    return value is None or (value.is_initializer() and len(list(value.uses())) == 1)


def _place(readers: tuple[Linear, ...]) -> Place | None:
    x = readers[0].x
    nodes = {reader.node for reader in readers}
    if x.is_graph_output() or any(use.node not in nodes for use in x.uses()):
        return None
    maker = x.producer()
    if maker is None or maker.domain:
        return None
    if maker.op_type in NORMS:
        gain = maker.inputs[1]
        fits = gain is not None and gain.shape is not None and list(gain.shape) == [readers[0].shape[1]]
        return Place(x, readers, norm=maker) if fits and all(map(_alone, maker.inputs[1:])) else None
    if maker.op_type in GATES:
        return next((place for value in maker.inputs if (place := _behind(x, readers, value)) is not None), None)
    return _attention(x, readers, maker)


def _behind(x: ir.Value, readers: tuple[Linear, ...], value: ir.Value | None) -> Place | None:
    """Returns the place for a product of which a linear layer makes one factor, whole or by a Split."""
    origin = _rows(value)
    if origin is None:
        return None
    linear, start, count = origin
    return Place(x, readers, linear=linear, rows=start) if count == readers[0].shape[1] else None


def _rows(value: ir.Value | None) -> tuple[Linear, int, int] | None:
    """Returns the linear layer that makes a value with a single reader, with first index and number of its outputs."""
    if value is None or edit.only_user(value) is None or value.shape is None:
        return None
    node, start, count = value.producer(), 0, int(value.shape[-1])  # type: ignore[arg-type]
    whole: ir.Value | None = value
    if node is not None and node.op_type == "Split" and not node.domain:
        whole = node.inputs[0]
        if whole is None or whole.shape is None or int(node.attributes["axis"].value) not in (-1, len(whole.shape) - 1):
            return None
        for before in node.outputs[: list(node.outputs).index(value)]:
            start += int(before.shape[-1])  # type: ignore[index, arg-type]
        if edit.only_user(whole) is not node:
            return None
    linear = _maker(whole)
    return None if linear is None else (linear, start, count)


def _maker(value: ir.Value | None) -> Linear | None:
    """Returns the linear layer whose output, with its bias, a value is, or None."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Add" and not node.domain:
        node = next((made for read in node.inputs if (made := edit.producer(read, "MatMul")) is not None), None)
    linear = linear_of(node) if node is not None else None
    if linear is None or linear.y is not value or linear.dequantize is not None:
        return None
    return linear if _alone(linear.weight) and _alone(linear.bias) else None


def _attention(x: ir.Value, readers: tuple[Linear, ...], reshape: ir.Node) -> Place | None:
    """Returns the place for the merged heads of an attention, which are linear in its values' linear layer."""
    turn = edit.producer(reshape.inputs[0], "Transpose") if reshape.op_type == "Reshape" else None
    attention = turn.inputs[0].producer() if turn is not None and turn.inputs[0] is not None else None
    if attention is None or attention.op_type not in ("Attention", "CachedAttention"):
        return None
    if attention.domain not in ("", DOMAIN) or edit.only_user(turn.inputs[0]) is not turn:  # type: ignore[union-attr, arg-type]
        return None
    if edit.only_user(turn.outputs[0]) is not reshape:  # type: ignore[union-attr]
        return None
    query, value = attention.inputs[0], attention.inputs[2]
    if query is None or value is None or query.shape is None or value.shape is None or len(value.shape) != 4:
        return None
    back = edit.producer(value, "Transpose")
    split = edit.producer(back.inputs[0], "Reshape") if back is not None else None
    if split is None or edit.only_user(value) is not attention or edit.only_user(split.outputs[0]) is not back:
        return None
    origin = _rows(split.inputs[0])
    queries, keys = int(query.shape[1]), int(value.shape[1])  # type: ignore[arg-type]
    width = int(value.shape[3])  # type: ignore[arg-type]
    if origin is None or origin[2] != keys * width or readers[0].shape[1] != queries * width or queries % keys:
        return None
    return Place(x, readers, linear=origin[0], rows=origin[1], heads=(queries, keys))


@dataclasses.dataclass(frozen=True)
class SmoothLinearsConfig(Config):
    """`strengths`: strength of smoothing, by path of the first linear layer that reads a value."""

    strengths: tuple[tuple[str, float], ...] = ()


class SmoothLinears(Pass):
    """Divides inputs of linear layers, feature by feature, and multiplies the weights. The graph computes the same.

    Where the division cannot be folded, because the layer before has codes of another graph, a Mul is inserted.

    Args:
        config: The strengths of the scales, for the record.
        scales: float32 [width], by path of the first linear layer that reads the value, as `Place.shared` returns them.
    """

    name = "smooth-linears"
    config: SmoothLinearsConfig

    def __init__(self, config: SmoothLinearsConfig, scales: Mapping[str, NDArray[np.float32]]) -> None:
        super().__init__(config)
        self._scales = scales

    def run(self, model: ir.Model) -> int:
        count, where = 0, places(model)
        for name, group in _groups(model).items():
            scales = self._scales.get(group[0].path)
            if scales is None:
                continue
            place = where.get(name)
            if place is not None:
                fold(place, scales)
            else:
                _divide(group, scales)
            count += 1
        return count


def fold(place: Place, scales: NDArray[np.float32]) -> None:
    """Folds the division of a value by `scales` [width] into its source, and multiplies the weights of its readers."""
    inverse: NDArray[np.float32] = np.reciprocal(place.source(scales))
    if place.norm is not None:
        for value in place.norm.inputs[1:]:
            if value is not None:
                _divided(value, inverse)
    elif place.linear is not None:
        linear = place.linear
        rows = linear.shape[0]
        whole = np.ones(rows, np.float32)
        whole[place.rows : place.rows + len(inverse)] = inverse
        _weigh(linear, rows=whole)
        if linear.bias is not None:
            _divided(linear.bias, whole)
    for reader in place.readers:
        _weigh(reader, columns=scales)


def _divide(readers: Sequence[Linear], scales: NDArray[np.float32]) -> None:
    """Inserts a division of the input of linear layers by `scales` [width], and multiplies their weights."""
    first, x = readers[0].node, readers[0].x
    name = f"{x.name}.smooth"
    inverse = edit.initializer(first.graph, name, ir.tensor(np.reciprocal(scales), name=name))  # type: ignore[arg-type]
    (divided,) = edit.insert(first, "Mul", [x, inverse], name=f"{x.name}/smooth")
    divided.shape, divided.type = x.shape, ir.TensorType(ir.DataType.FLOAT)
    for reader in readers:
        reader.node.replace_input_with(0, divided)
        _weigh(reader, columns=scales)


def _weigh(linear: Linear, **factors: NDArray[np.float32]) -> None:
    """Multiplies a layer's weight by factors of its `rows` [out] or `columns` [in], when the weight is read."""
    for side, factor in factors.items():
        _multiply(linear.weight, factor[:, None] if (side == "rows") == linear.transposed else factor)
    if (codes := quantized_of(linear.weight)) is not None:
        linear.weight.meta[KEY] = codes.multiplied(**factors)


def _divided(value: ir.Value, inverse: NDArray[np.float32]) -> None:
    """Multiplies a gain or a bias, and stores it by another name: another graph may have the old values."""
    _multiply(value, inverse)
    value.meta[STORAGE_KEY] = f"{value.name}.smooth"


def _multiply(value: ir.Value, factors: NDArray[Any]) -> None:
    """Multiplies an initializer by factors that broadcast to it, when it is read."""
    tensor: Any = value.const_value

    def read() -> ir.TensorProtocol:
        product: Callable[..., NDArray[np.float32]] = np.multiply
        return ir.tensor(product(np.asarray(tensor.numpy(), np.float32), factors), name=value.name)

    # Without the key of a checkpoint's own numbers, because these are others.
    value.const_value = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=tensor.shape, name=value.name, cache=False)
