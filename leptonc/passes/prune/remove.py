"""The pass that cuts units and blocks out of a graph: weights, shapes, head counts, caches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.ir import edit
from leptonc.ir.dialect import attribute
from leptonc.ir.groups import Block, groups
from leptonc.ir.spread import Span, Spread, indices_of, is_constant, parts_of
from leptonc.ir.weights import Reader, add_bias, change, tensor_of
from leptonc.passes.base import Config, Pass
from leptonc.passes.prune.plan import Cut, by_block

Masks = Mapping[str, NDArray[np.bool_]]


@dataclasses.dataclass(frozen=True)
class PruneConfig(Config):
    """What is cut.

    Attributes:
        cuts: Units and blocks.
        method: The method that chose them, for the record. Default: a plan.
        compensation: How the weights that stay make up for them, for the record. Default: not at all.
    """

    cuts: tuple[Cut, ...]
    method: str = "plan"
    compensation: str = "none"


class Prune(Pass):
    """Cuts heads, groups, channels and blocks out of a graph.

    1. A weight is cut when it is read, so that none is held. A compensated weight takes its place first.
    2. Shapes follow: the targets of Reshape, sizes of Split, bounds of Slice, caches.
    3. An RMSNormalization over cut units has a mean over fewer values. Its scale and epsilon make up for that, so that
       cutting zeros changes nothing.
    4. A block that goes whole leaves the residual stream as it is. Its cache goes too, and later caches are renumbered.

    Args:
        config: What is cut.
        weights: Compensated weights by initializer, in the shape from before the cut. They are read when they are
            written. Default: none.
        biases: Values added to the outputs of consuming linear layers, float32 [out], by module path. Default: none.
    """

    name = "prune"
    config: PruneConfig

    def __init__(
        self, config: PruneConfig, weights: Mapping[str, Reader] | None = None,
        biases: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(config)
        self._weights, self._biases = weights or {}, biases or {}

    def run(self, model: ir.Model) -> int:
        all_groups = groups(model)
        all_groups.require()
        stay = by_block(all_groups, self.config.cuts)
        for name, read in self._weights.items():
            value = model.graph.initializers[name]
            change(value, read)
        for block in all_groups.blocks:
            for linear in block.consumers:
                if linear.path in self._biases:
                    add_bias(model.graph, linear, self._biases[linear.path])
        dropped: list[Block] = []
        for name, masks in stay.items():
            block = all_groups.block(name)
            if masks is None:
                dropped.append(block)
            elif not all(mask.all() for mask in masks.values()):
                cut(model.graph, block.spread, block.name, masks)
        for block in dropped:
            _drop(model.graph, block)
        _renumber(model.graph)
        return len(stay)


def _kept(value: ir.Value, spans: Sequence[Span], masks: Masks) -> dict[int, NDArray[np.int64]]:
    """Returns the indices of a value that stay, by axis, for axes that lose some."""
    masks_of: dict[int, NDArray[np.bool_]] = {}
    for span in spans:
        size = int(value.shape[span.axis])  # type: ignore[index, arg-type]
        here = masks_of.setdefault(span.axis, np.ones(size, np.bool_))
        here[indices_of(span, np.flatnonzero(~masks[span.space]))] = False
    return {axis: np.flatnonzero(mask) for axis, mask in masks_of.items() if not mask.all()}


def cut(graph: ir.Graph, spread: Spread, name: str, masks: Masks) -> None:
    """Cuts units out of all values that have them.

    Args:
        graph: The graph, which is changed in place.
        spread: The values and nodes that have the units.
        name: Name of the block, for constants that it gets of its own.
        masks: Units of each space that stay, bool [units].
    """
    kept = {v: _kept(v, sorted(s, key=lambda e: (e.axis, e.start)), masks) for v, s in spread.spans.items()}
    kept = {value: axes for value, axes in kept.items() if axes}
    for node in spread.nodes:
        if node.op_type == "Slice":
            _slice(graph, node, kept)
    for node in spread.norms:
        _norm(graph, node, name, kept)
    for value, axes in kept.items():
        if value.is_initializer() and is_constant(value):
            _constant(graph, value, axes, spread, name)
    for value, axes in kept.items():
        shape = list(value.shape)  # type: ignore[arg-type]
        for axis, stays in axes.items():
            shape[axis] = len(stays)
        value.shape = ir.Shape(shape)
        if value.is_initializer() and not is_constant(value):
            change(value, _taker(tensor_of(value), axes))
    _follow(graph, spread.nodes, kept)


def _follow(graph: ir.Graph, nodes: Iterable[ir.Node], kept: Mapping[ir.Value, Any]) -> None:
    """Gives Reshape and Split the sizes of their outputs."""
    for node in nodes:
        touched = [value for value in node.outputs if value in kept]
        if node.op_type == "Reshape" and touched:
            target, shape = edit.constant(node.inputs[1]), touched[0].shape
            if target is None or shape is None:
                raise ValueError(f"{node.name}: the shape is computed")
            new = [int(d) if t > 0 and isinstance(d, int) else int(t) for t, d in zip(target, shape, strict=True)]
            node.replace_input_with(1, edit.ints(graph, new))
        elif node.op_type == "Split" and touched:
            _, axis, _ = parts_of(node)
            sizes = [int(value.shape[axis]) for value in node.outputs]  # type: ignore[index, arg-type]
            node.replace_input_with(1, edit.ints(graph, sizes))


def _taker(tensor: Any, axes: Mapping[int, NDArray[np.int64]]) -> Reader:
    def read() -> NDArray[np.float32]:
        array: NDArray[np.float32] = tensor.numpy()
        for axis, stays in axes.items():
            array = np.take(array, stays, axis)
        return array

    return read


def _slice(graph: ir.Graph, node: ir.Node, kept: Mapping[ir.Value, Mapping[int, NDArray[np.int64]]]) -> None:
    """Moves the bounds of a Slice to their places among the indices that stay."""
    whole, axis, parts = parts_of(node)
    stays = kept.get(whole, {}).get(axis)
    if stays is not None:
        _, first, last = parts[0]
        for slot, bound in ((1, first), (2, last)):
            node.replace_input_with(slot, edit.ints(graph, [int(np.searchsorted(stays, bound))]))


def _norm(graph: ir.Graph, node: ir.Node, whole: str, kept: Mapping[ir.Value, Mapping[int, NDArray[np.int64]]]) -> None:
    """Keeps x / sqrt(sum / before + eps) * w with a mean over fewer: w * sqrt(before / after), eps * before / after."""
    x, scale = node.inputs[0], node.inputs[1]
    if x is None or scale is None or x not in kept or x.shape is None:
        return
    (stays,) = kept[x].values()
    before = int(x.shape[-1])  # type: ignore[arg-type]
    ratio = len(stays) / before
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", float(attribute(node, "epsilon", 1e-5)) / ratio)
    factor, old = np.float32(math.sqrt(1 / ratio)), tensor_of(scale)
    if is_constant(scale):
        name = f"{scale.name}.{whole}"
        new = edit.initializer(graph, name, ir.tensor(old.numpy()[stays] * factor, name=name))
        node.replace_input_with(1, new)
    else:
        change(scale, lambda: old.numpy() * factor)


def _constant(
    graph: ir.Graph, value: ir.Value, axes: Mapping[int, NDArray[np.int64]], spread: Spread, whole: str
) -> None:
    """Gives these nodes a constant of their own in the place of one that they share with others."""
    array = tensor_of(value).numpy()
    for axis, stays in axes.items():
        array = np.take(array, stays, axis)
    name = f"{value.name}.{whole}"
    new = edit.initializer(graph, name, ir.tensor(array, name=name))
    for node in spread.nodes:
        for slot, source in enumerate(node.inputs):
            if source is value:
                node.replace_input_with(slot, new)


def _drop(graph: ir.Graph, block: Block) -> None:
    if block.add is None:
        raise ValueError(f"{block.name} adds to nothing")
    node, at = block.add
    other = node.inputs[1 - at]
    if other is None:
        raise ValueError(f"{node.name} adds to nothing")
    edit.replace(node.outputs[0], other)
    gone = {id(value) for attention in block.attentions for value in attention.outputs}
    caches = {id(value) for attention in block.attentions if attention.domain for value in attention.inputs[3:5]}
    for values, names in ((graph.outputs, gone), (graph.inputs, caches)):
        for value in [value for value in values if id(value) in names]:
            values.remove(value)


def _renumber(graph: ir.Graph) -> None:
    """Numbers caches from 0 without gaps, in their order."""
    for values in (graph.inputs, graph.outputs):
        caches = [v for v in values if str(v.name).startswith(("past_key_values.", "present."))]
        for i, value in enumerate(caches):
            stem, _, kind = str(value.name).split(".")
            value.name = f"{stem}.{i // 2}.{kind}"
