"""SmoothQuant: what makes activations hard to quantize is moved into the weights, and the graph computes the same.

Xiao et al., SmoothQuant (2022): y = (x / s) (s W), a scale for each feature of x. The division costs nothing where it
can be folded into what makes x: the gain of a norm, the rows of the linear layer before (`up_proj` before `down_proj`,
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
    """Where a value that linear layers read can be divided, feature by feature, at no cost.

    Attributes:
        x: The value.
        readers: The linear layers that read it; nothing else does.
        norm: The norm that makes it, or None.
        linear: The linear layer whose outputs `rows` become it, or None.
        rows: Where in that layer's outputs its features begin.
        heads: Query heads, and key/value heads, that the features are split in: features of query heads that share a
            key/value head share a scale. (1, 1) where there are none.
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
        """Returns the nearest scales [width] that can be folded: the geometric mean over heads that share one."""
        queries, keys = self.heads
        split = np.log(scales).reshape(keys, queries // keys, -1)
        found: NDArray[np.float32] = np.exp(
            np.broadcast_to(split.mean(1, keepdims=True), split.shape).reshape(-1)
        ).astype(np.float32)
        return found

    def source(self, scales: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the scales [source's features] of what makes the value, of its scales [width]."""
        queries, keys = self.heads
        return np.ascontiguousarray(scales.reshape(keys, queries // keys, -1)[:, 0].reshape(-1))


def places(model: ir.Model) -> dict[str, Place]:
    """Returns where the inputs of linear layers can be divided, by the name of the value."""
    found = {name: place for name, group in _groups(model).items() if (place := _place(tuple(group))) is not None}
    return {name: place for name, place in found.items() if all(_alone(each.weight) for each in place.readers)}


def _groups(model: ir.Model) -> dict[str, list[Linear]]:
    """The linear layers that read each value, by its name."""
    groups: dict[str, list[Linear]] = {}
    for linear in linears(model):
        groups.setdefault(str(linear.x.name), []).append(linear)
    return groups


def _alone(value: ir.Value | None) -> bool:
    """Whether an initializer is read once, so that it can be changed."""
    return value is None or (value.is_initializer() and len(list(value.uses())) == 1)


def _place(readers: tuple[Linear, ...]) -> Place | None:
    x = readers[0].x
    nodes = {each.node for each in readers}
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
    """A factor of a product that a linear layer makes, whole or split from others."""
    found = _rows(value)
    if found is None:
        return None
    linear, start, count = found
    return Place(x, readers, linear=linear, rows=start) if count == readers[0].shape[1] else None


def _rows(value: ir.Value | None) -> tuple[Linear, int, int] | None:
    """Returns the linear layer that makes a value which one node reads, and which of its outputs it is made of."""
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
    """The linear layer whose output, bias and all, a value is."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Add" and not node.domain:
        node = next((made for read in node.inputs if (made := edit.producer(read, "MatMul")) is not None), None)
    linear = linear_of(node) if node is not None else None
    if linear is None or linear.y is not value or linear.dequantize is not None:
        return None
    return linear if _alone(linear.weight) and _alone(linear.bias) else None


def _attention(x: ir.Value, readers: tuple[Linear, ...], reshape: ir.Node) -> Place | None:
    """Heads merged again after attention: the values that went in are linear in the layer before."""
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
    found = _rows(split.inputs[0])
    queries, keys = int(query.shape[1]), int(value.shape[1])  # type: ignore[arg-type]
    width = int(value.shape[3])  # type: ignore[arg-type]
    if found is None or found[2] != keys * width or readers[0].shape[1] != queries * width or queries % keys:
        return None
    return Place(x, readers, linear=found[0], rows=found[1], heads=(queries, keys))


@dataclasses.dataclass(frozen=True)
class SmoothLinearsConfig(Config):
    """`strengths`: path of the first linear layer that reads a value, with the strength that it is smoothed by."""

    strengths: tuple[tuple[str, float], ...] = ()


class SmoothLinears(Pass):
    """Divides what linear layers read, feature by feature, and multiplies their weights: the graph computes the same.

    A value whose maker cannot be changed, because its weights are another graph's codes, is divided by a product.

    Args:
        config: The strengths that the scales came from, for the record.
        scales: float32 [width] by the path of the first linear layer that reads the value; each must be what
            `Place.shared` makes of it.
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
    """Folds the division of a value by `scales` [width] into what makes it, and their product into what reads it."""
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
    """Divides what linear layers read by `scales` [width], in the graph, and multiplies their weights."""
    first, x = readers[0].node, readers[0].x
    name = f"{x.name}.smooth"
    inverse = edit.initializer(first.graph, name, ir.tensor(np.reciprocal(scales), name=name))  # type: ignore[arg-type]
    (divided,) = edit.insert(first, "Mul", [x, inverse], name=f"{x.name}/smooth")
    divided.shape, divided.type = x.shape, ir.TensorType(ir.DataType.FLOAT)
    for reader in readers:
        reader.node.replace_input_with(0, divided)
        _weigh(reader, columns=scales)


def _weigh(linear: Linear, **factors: NDArray[np.float32]) -> None:
    """Multiplies a layer's weight by factors of its `rows` [out], or of its `columns` [in], when it is read."""
    for of, each in factors.items():
        _multiply(linear.weight, each[:, None] if (of == "rows") == linear.transposed else each)
    if (codes := quantized_of(linear.weight)) is not None:
        linear.weight.meta[KEY] = codes.multiplied(**factors)


def _divided(value: ir.Value, inverse: NDArray[np.float32]) -> None:
    """Multiplies a gain or a bias, and marks it: another graph may have it, by the same name, as it was."""
    _multiply(value, inverse)
    value.meta[STORAGE_KEY] = f"{value.name}.smooth"


def _multiply(value: ir.Value, factors: NDArray[Any]) -> None:
    """Multiplies an initializer by what broadcasts to it, when it is read."""
    tensor: Any = value.const_value

    def read() -> ir.TensorProtocol:
        product: Callable[..., NDArray[np.float32]] = np.multiply
        return ir.tensor(product(np.asarray(tensor.numpy(), np.float32), factors), name=value.name)

    # Where the numbers came from is not said: they are no longer the checkpoint's.
    value.const_value = ir.LazyTensor(
        read, dtype=ir.DataType.FLOAT, shape=tensor.shape, name=value.name, cache=False
    )
