"""The residual stream as a vector space: what writes and reads it, and whether its basis can change."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from leptonc.errors import InputError
from leptonc.ir.groups import residual_stream
from leptonc.ir.spread import Span, Spread, place
from leptonc.ir.structure import Linear, linear_of

# Operators that commute with a rotation of the last axis. Products and norms have rules of their own below.
_LINEAR = frozenset(("Add", "Concat", "Gather", "Identity", "MatMul", "Neg", "Reshape", "Shape", "Slice", "Split",
                     "Sub", "Transpose"))  # fmt: skip
_NORMS = ("RMSNormalization", "LayerNormalization")


@dataclass
class Residual:
    """The residual stream of a decoder.

    Attributes:
        spread: All values that have its features, weights among them.
        size: Number of features.
        norms: The norms over the features, in graph order.
        readers: The linear layers that sum over the features, in graph order.
    """

    spread: Spread
    size: int
    norms: list[ir.Node]
    readers: list[Linear]

    def axes(self, value: ir.Value) -> list[int]:
        """Returns the axes of a value that the features lie along."""
        return sorted({span.axis for span in self.spread.spans.get(value, ())})

    def weights(self) -> list[ir.Value]:
        """Returns the initializers that have the features, without the gains of norms."""
        gains = {value for norm in self.norms for value in norm.inputs[1:]}
        return [value for value in self.spread.initializers() if value not in gains]


def residual(model: ir.Model) -> Residual:
    """Returns the residual stream of a graph of the dialect, whose change of basis can be folded into weights.

    Raises:
        InputError: Something reads or writes the stream that is neither linear nor a norm; the message names it.
    """
    spread = residual_stream(model)
    size = spread.counts["width"]
    nodes = [node for node in model.graph if node in spread.nodes]
    norms = [node for node in nodes if node in spread.norms or node in spread.centred]
    readers = [(node, linear_of(node)) for node in nodes if node in spread.consumers]
    gains = {value for norm in norms for value in norm.inputs[1:]}
    reasons = list(spread.unknown)
    reasons += [f"{place(node)} multiplies it with what is no weight" for node, linear in readers if linear is None]
    for node in nodes:
        reasons += _reasons(node, spread, size)
    for value, spans in spread.initializers().items():
        if value not in gains and not isinstance(value.const_value, ir.LazyTensor):
            reasons.append(f"the constant {value.name} is not the checkpoint's")
        reasons += [f"{value.name} has more than it" for span in spans if not _whole(value, span, size)]
    if reasons:
        raise InputError(
            f"expected a residual stream that norms and linear layers alone read and write, found that {reasons[0]}",
            hint="--rotate and --prune width:PCT are for decoders whose norms come before what reads the stream; "
            "--prune 20% cuts heads and channels of any architecture",
        )
    return Residual(spread, size, norms, [linear for _, linear in readers if linear is not None])


def _whole(value: ir.Value, span: Span, size: int) -> bool:
    return (span.start, span.width) == (0, 1) and value.shape is not None and value.shape[span.axis] == size


def _reasons(node: ir.Node, spread: Spread, size: int) -> list[str]:
    """Returns the reasons why the stream's basis cannot change at a node, if there are any."""
    inputs = [source for source in node.inputs if source is not None]
    within = [source for source in inputs if source in spread.spans]
    reasons = [
        f"{place(node)} takes a part of it"
        for value in (*within, *node.outputs)
        for span in spread.spans.get(value, ())
        if not _whole(value, span, size)
    ]
    if node.op_type in ("Mul", "Div"):
        others = [source for source in inputs if source not in within]
        turned = node.op_type == "Div" and node.inputs[0] not in within
        if len(within) != 1 or turned or any(_size(source) != 1 for source in others):
            reasons.append(f"{place(node)} scales its features apart from each other")
    elif node.op_type in ("Add", "Sub"):
        if len(within) != len(inputs):
            reasons.append(f"{place(node)} adds a number to it")
    elif node.op_type not in (*_LINEAR, *_NORMS):
        reasons.append(f"it runs through {node.op_type} of {place(node)}")
    return reasons


def _size(value: ir.Value) -> int:
    size = 1
    for dim in value.shape if value.shape is not None else (0,):
        size *= dim if isinstance(dim, int) else 0
    return size
