"""Follows a dimension of one value through the graph to all values that share it, and have to be cut with it.

Each operator has a rule. For the units of one of its values it yields the other values that have them, and where. Where
a rule does not know, the units cannot be cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.ir.dialect import attribute, module_of
from leptonc.ir.edit import constant

ELEMENTWISE = frozenset(  # as text: one word an op
    """
    Abs Add Cast Clip Cos Div Erf Exp Gelu Identity Log Max Min Mul Neg Pow Reciprocal Relu Sigmoid Sign Sin Softplus
    Sqrt Sub Swish Tanh Where
    """.split()  # noqa: SIM905
)
ATTENTION = ("CachedAttention", "Attention")


@dataclass(frozen=True)
class Span:
    """Units along an axis of a value: unit u has the indices start + u * width up to start + (u + 1) * width.

    Attributes:
        axis: Counted from the front.
        start: Index of the first unit.
        width: Indices of one unit.
        space: What the units are: "channels", "heads", "groups" or "width".
    """

    axis: int
    start: int
    width: int
    space: str

    def on(self, axis: int, start: int | None = None, width: int | None = None) -> Span:
        """Returns the same units at another place."""
        return Span(axis, self.start if start is None else start, self.width if width is None else width, self.space)


Place = tuple[ir.Value, Span]


@dataclass
class Spread:
    """Everything that a few spans were followed to.

    Attributes:
        counts: Number of units of each space.
        spans: Where the units are in each value, initializers among them.
        nodes: Operators that the units run through.
        consumers: Matrix products that sum over the units.
        norms: RMSNormalizations over the units, whose mean changes with a cut.
        centred: LayerNormalizations over the units, which cannot be cut.
        unknown: Reasons why the units cannot be cut; empty where they can.
    """

    counts: dict[str, int]
    spans: dict[ir.Value, set[Span]] = field(default_factory=dict)
    nodes: dict[ir.Node, None] = field(default_factory=dict)
    consumers: dict[ir.Node, None] = field(default_factory=dict)
    norms: dict[ir.Node, None] = field(default_factory=dict)
    centred: dict[ir.Node, None] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def follow(self, places: list[Place]) -> Spread:
        """Follows spans in both directions until nothing is new."""
        waiting = list(places)
        while waiting:
            value, span = waiting.pop()
            known = self.spans.setdefault(value, set())
            if span in known:
                continue
            known.add(span)
            if value.is_graph_output() and not str(value.name).startswith("present."):
                self.unknown.append(f"it reaches the output {value.name}")
            made = value.producer()
            around = [made] if made is not None else []
            if not is_constant(value):  # equal constants are one initializer, and of no layer
                around += [use.node for use in value.uses()]
            for node in dict.fromkeys(around):
                self.nodes[node] = None
                rule = _RULES.get(node.op_type)
                try:
                    if rule is None:
                        raise _Unknown(f"it runs through {node.op_type} of {place(node)}")
                    waiting += rule(self, node, value, span)
                except _Unknown as reason:
                    self.unknown.append(str(reason))
        return self

    def initializers(self) -> dict[ir.Value, set[Span]]:
        """Returns the weights among the values, with their spans."""
        return {value: spans for value, spans in self.spans.items() if value.is_initializer()}

    def axes(self) -> set[tuple[ir.Value, int]]:
        """Returns the axes of values that are not weights."""
        return {(v, span.axis) for v, spans in self.spans.items() if not v.is_initializer() for span in spans}


def indices_of(span: Span, units: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the indices along the span's axis that units have, in order."""
    indices: NDArray[np.int64] = (span.start + span.width * units[:, None] + np.arange(span.width)).reshape(-1)
    return indices


def is_constant(value: ir.Value) -> bool:
    """Whether a value is a small constant, which unrelated nodes may share."""
    return value.is_initializer() and value.const_value is not None and not isinstance(value.const_value, ir.LazyTensor)


class _Unknown(Exception):
    """A rule does not know where the units are."""


def place(node: ir.Node) -> str:
    """Returns the place of a node, for a message."""
    return module_of(node) or "the graph"


def _rank(value: ir.Value) -> int:
    if value.shape is None:
        raise _Unknown(f"the shape of {value.name} is not known")
    return len(value.shape)


def _same(node: ir.Node, span: Span) -> Iterator[Place]:
    if node.inputs[0] is not None:
        yield node.inputs[0], span
    yield node.outputs[0], span


def _transpose(spread: Spread, node: ir.Node, value: ir.Value, span: Span) -> Iterator[Place]:
    permutation = list(node.attributes["perm"].value)
    x, y = node.inputs[0], node.outputs[0]
    if value is y and x is not None:
        yield x, span.on(permutation[span.axis])
    else:
        yield y, span.on(permutation.index(span.axis))


def _rotary(spread: Spread, node: ir.Node, value: ir.Value, span: Span) -> Iterator[Place]:
    if span.axis != 1 or value not in (node.inputs[0], node.outputs[0]) or _rank(value) != 4:
        raise _Unknown(f"it cuts into a head of {place(node)}")
    yield from _same(node, span)


def _gather(spread: Spread, node: ir.Node, value: ir.Value, span: Span) -> Iterator[Place]:
    table, y = node.inputs[0], node.outputs[0]
    rows = int(attribute(node, "axis", 0)) == 0 and table is not None and _rank(table) == 2
    if not rows or table is None or value is node.inputs[1] or span.axis != _rank(value) - 1:
        raise _Unknown(f"it runs through a Gather of {place(node)}")
    yield table, span.on(1)
    yield y, span.on(_rank(y) - 1)


def _attention(spread: Spread, node: ir.Node, value: ir.Value, span: Span) -> Iterator[Place]:
    """Heads of queries and of what comes out; groups of keys, values and caches."""
    if span.axis != 1:
        raise _Unknown(f"it cuts into a head of {place(node)}")
    queries, others = heads_and_groups(node)
    if value not in (*queries, *others):
        raise _Unknown(f"it is the mask of {place(node)}")
    yield from ((shared, span) for shared in (queries if value in queries else others))


def heads_and_groups(node: ir.Node) -> tuple[list[ir.Value], list[ir.Value]]:
    """Returns the values of an attention that have query heads, and the values that have key/value heads."""
    inputs = [value for value in node.inputs[:5] if value is not None]
    others = [*inputs[1:3], *((*inputs[3:5], *node.outputs[1:]) if node.domain else ())]
    return [inputs[0], node.outputs[0]], others


def _elementwise(spread: Spread, node: ir.Node, value: ir.Value, span: Span) -> Iterator[Place]:
    behind = span.axis - _rank(value)  # shapes are broadcast from the last axis on
    for other in (*node.inputs, *node.outputs):
        if other is not None and other is not value:
            rank = _rank(other)
            if -behind <= rank and other.shape is not None and other.shape[behind] != 1:
                yield other, span.on(rank + behind)


def _matmul(spread: Spread, node: ir.Node, value: ir.Value, span: Span) -> Iterator[Place]:
    x, weight, y = node.inputs[0], node.inputs[1], node.outputs[0]
    if x is None or weight is None or _rank(weight) != 2:
        raise _Unknown(f"it runs through a product of activations of {place(node)}")
    if value is weight:
        if span.axis == 0:
            spread.consumers[node] = None
        yield (x, span.on(_rank(x) - 1)) if span.axis == 0 else (y, span.on(_rank(y) - 1))
    elif span.axis < _rank(value) - 1:
        yield from _same(node, span)
    elif value is x:
        spread.consumers[node] = None
        yield weight, span.on(0)
    else:
        yield weight, span.on(1)


def _norm(spread: Spread, node: ir.Node, value: ir.Value, span: Span) -> Iterator[Place]:
    x, y = node.inputs[0], node.outputs[0]
    last = _rank(y) - 1
    if value in (x, y) and span.axis != last:
        yield from _same(node, span)
        return
    (spread.norms if node.op_type == "RMSNormalization" else spread.centred)[node] = None
    yield from _same(node, span.on(last))
    yield from ((scale, span.on(0)) for scale in node.inputs[1:] if scale is not None)


def _parts(spread: Spread, node: ir.Node, value: ir.Value, span: Span) -> Iterator[Place]:
    """Split, Slice and Concat: one value has others side by side."""
    whole, axis, parts = parts_of(node)
    if span.axis != axis:
        yield from ((other, span) for other in (whole, *(part for part, _, _ in parts)))
    elif value is not whole:
        yield from ((whole, span.on(axis, span.start + start)) for part, start, _ in parts if part is value)
    else:
        stop = span.start + span.width * spread.counts[span.space]
        for part, first, last in parts:
            if first <= span.start and stop <= last:
                yield part, span.on(axis, span.start - first)
            elif span.start < last and first < stop:
                raise _Unknown(f"{node.op_type} of {place(node)} parts it")


def parts_of(node: ir.Node) -> tuple[ir.Value, int, list[tuple[ir.Value, int, int]]]:
    """Returns the whole of a Split, Slice or Concat, the axis, and each part with its first and its end index."""
    whole = node.outputs[0] if node.op_type == "Concat" else node.inputs[0]
    if whole is None or whole.shape is None:
        raise _Unknown(f"the shape of a value of {place(node)} is not known")
    if node.op_type == "Slice":
        bounds = [constant(bound) for bound in node.inputs[1:]]
        first, last, axes, *steps = [b.reshape(-1) if b is not None else None for b in bounds]
        if first is None or last is None or axes is None or any(s is None or s[0] != 1 for s in steps):
            raise _Unknown(f"it runs through a Slice of {place(node)} whose bounds are not known")
        axis, size = int(axes[0]) % len(whole.shape), whole.shape[int(axes[0])]
        if len(axes) != 1 or not isinstance(size, int):
            return whole, axis if len(axes) == 1 else -1, [(node.outputs[0], 0, 0)]
        start, stop = (int(b[0]) + size * (int(b[0]) < 0) for b in (first, last))
        return whole, axis, [(node.outputs[0], start, min(stop, size))]
    axis = int(attribute(node, "axis", 0)) % len(whole.shape)
    parts, at = [], 0
    for part in node.inputs if node.op_type == "Concat" else node.outputs:
        if part is not None and part.shape is not None:
            size = part.shape[axis]
            wide = size if isinstance(size, int) else 0  # a size that is known when it runs is that of no unit
            parts.append((part, at, at + wide))
            at += wide
    return whole, axis, parts


def _reshape(spread: Spread, node: ir.Node, value: ir.Value, span: Span) -> Iterator[Place]:
    """One axis becomes two, or two one; the others stay."""
    x, y = node.inputs[0], node.outputs[0]
    if x is None or x.shape is None or y.shape is None:
        raise _Unknown(f"the shape of a value of {place(node)} is not known")
    if len(x.shape) == len(y.shape) and list(x.shape) == list(y.shape):
        yield from _same(node, span)
        return
    apart, merged = (y, x) if len(y.shape) > len(x.shape) else (x, y)
    many, one = list(apart.shape), list(merged.shape)  # type: ignore[arg-type]
    at = next((i for i in range(len(one)) if many[i] != one[i]), len(one) - 1)
    if (
        len(many) != len(one) + 1
        or many[at + 2 :] != one[at + 1 :]
        or not all(isinstance(d, int) for d in many[at : at + 2])
    ):
        raise _Unknown(f"it runs through a Reshape of {place(node)}")
    inner = int(many[at + 1])  # type: ignore[arg-type]
    if value is merged:
        if span.axis != at:
            yield apart, span.on(span.axis + (span.axis > at))
        elif span.width % inner or span.start % inner:
            raise _Unknown(f"it cuts into a head of {place(node)}")
        else:
            yield apart, span.on(at, span.start // inner, span.width // inner)
    elif span.axis == at + 1:
        raise _Unknown(f"it cuts into a head of {place(node)}")
    elif span.axis == at:
        yield merged, span.on(at, span.start * inner, span.width * inner)
    else:
        yield merged, span.on(span.axis - (span.axis > at))


def _nothing(spread: Spread, node: ir.Node, value: ir.Value, span: Span) -> Iterator[Place]:
    """A shape that is read: the axes whose sizes the graph asks for at run time are not those that are cut."""
    yield from ()


_RULES: dict[str, Callable[[Spread, ir.Node, ir.Value, Span], Iterator[Place]]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise), **dict.fromkeys(ATTENTION, _attention),
    **dict.fromkeys(("RMSNormalization", "LayerNormalization"), _norm),
    **dict.fromkeys(("Split", "Slice", "Concat"), _parts),
    "Gather": _gather, "MatMul": _matmul, "Reshape": _reshape, "RotaryEmbedding": _rotary, "Shape": _nothing,
    "Transpose": _transpose,
}  # fmt: skip
