"""A graph of the dialect as a function of torch tensors, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from leptonc.errors import InputError
from leptonc.heal.blocks import Blocks, LowRank
from leptonc.heal.ops import TABLE
from leptonc.ir.dialect import module_of
from leptonc.ir.structure import Linear, linear_of
from leptonc.passes.quantize.blocks import Quantized
from leptonc.passes.quantize.weights import quantized_of

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Step:
    """One node: the function that computes it, the names that it reads and writes, and the values to drop after it."""

    run: Callable[[Sequence[Any]], Any]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    done: tuple[str, ...]


class Graph:
    """A function from some values of a graph of the dialect to others.

    Quantized linear layers and embeddings are computed from their codes, which are dequantized while a layer runs, and
    not kept. Their scales and zero points get gradients.

    Args:
        model: The graph. It is not changed. Weights are read lazily, so the model must live as long.
        outputs: Names of values to compute. Default: the graph's first output.
        inputs: Names of values inside the graph that are given; the nodes before them do not run. Default: none.
        keep: Whether an initializer that was read stays in memory. Otherwise each run reads it anew. Default: it stays.

    Raises:
        InputError: The graph has an operator that is not in `TABLE`; the message names its module.
    """

    def __init__(
        self, model: ir.Model, outputs: Sequence[str] | None = None, inputs: Sequence[str] = (), *, keep: bool = True
    ) -> None:
        Quantized.forget()  # weights of another graph may have the same names
        self.outputs = tuple(outputs) if outputs is not None else (str(model.graph.outputs[0].name),)
        self._initializers, self._keep = model.graph.initializers, keep
        self._kept: dict[str, Tensor] = {}
        self._blocks: dict[str, Blocks] = {}
        nodes = _needed(model, self.outputs, set(inputs))
        _check(nodes)
        steps = [_step(node) for node in _skipping_weights(nodes)]
        last: dict[str, int] = {}
        for at, (_, reads, _) in enumerate(steps):
            last.update(dict.fromkeys(reads, at))
        stays = {*self.outputs, *self._initializers, ""}
        self._steps = [
            _Step(run, reads, writes, tuple({n for n in reads if last[n] == at} - stays))
            for at, (run, reads, writes) in enumerate(steps)
        ]
        made = {name for step in self._steps for name in step.writes}
        self.computed = frozenset(made)
        read = {name for step in self._steps for name in step.reads} | set(self.outputs)
        known = {*self._initializers, *made, ""}
        self.inputs = tuple(sorted(n for n in read if n not in known and not n.endswith((_LOW_RANK, MOVED))))
        self.weights = tuple(name for name in self._initializers if name in read)

    def __call__(self, inputs: Values, variables: Values | None = None) -> tuple[Tensor, ...]:
        """Runs the graph.

        Args:
            inputs: Inputs by name.
            variables: Tensors in the place of initializers, by name, which may need gradients. The product of
                `NAME.low_rank.a` [out, rank] and `NAME.low_rank.b` [rank, in] is added to a linear layer's weight. A
                value that the graph computes is multiplied by `NAME.gate`. Zero points move by `NAME.moved`.
                Default: none.

        Returns:
            The outputs, in order.
        """
        return self.many([inputs], variables)[0]

    def many(self, inputs: Sequence[Values], variables: Values | None = None) -> list[tuple[Tensor, ...]]:
        """Runs the graph on several inputs, a node at a time, so that each initializer is read once for all."""
        variables = variables or {}
        runs: list[dict[str, Any]] = [dict(text) for text in inputs]
        for step in self._steps:
            read = {name: self._read(name, variables) for name in step.reads if name not in runs[0]}
            for held in runs:
                made = step.run([held[name] if name in held else read[name] for name in step.reads])
                held.update(zip(step.writes, made if isinstance(made, tuple) else (made,), strict=False))
                for name in step.writes:
                    if f"{name}{GATE}" in variables:
                        held[name] = held[name] * variables[f"{name}{GATE}"]
                for name in step.done:
                    held.pop(name, None)
        return [tuple(held[n] if n in held else self._read(n, variables) for n in self.outputs) for held in runs]

    def _read(self, name: str, variables: Values) -> Any:
        if not name:
            return None
        if name.endswith(MOVED):
            return variables.get(name)
        value = self._initializers.get(name.partition(_LOW_RANK)[0])
        if value is None:
            raise KeyError(f"nothing gives {name}")
        if name.endswith(_LOW_RANK):
            pair = [variables.get(f"{name}.{part}") for part in ("a", "b")]
            return LowRank(pair[0], pair[1]) if pair[0] is not None and pair[1] is not None else None
        if name in variables:
            return variables[name]
        weight = quantized_of(value)
        if weight is not None:
            if name not in self._blocks:
                self._blocks[name] = Blocks.of(weight)
            return self._blocks[name]
        if name in self._kept:
            return self._kept[name]
        tensor = as_tensor(value)
        if self._keep:
            self._kept[name] = tensor
        return tensor


_LOW_RANK, GATE, MOVED = ".low_rank", ".gate", ".moved"


def as_tensor(value: ir.Value) -> Tensor:
    """Reads an initializer as a tensor. Types that numpy lacks become float32."""
    if value.const_value is None:
        raise ValueError(f"{value.name} has no data")
    array = value.const_value.numpy()
    if array.dtype.kind not in "fiub" or array.dtype.name not in _KNOWN:
        array = array.astype(np.float32)
    return writable(array)


def writable(array: NDArray[Any]) -> Tensor:
    """Returns an array as a tensor. An array that is read-only is copied, because torch wants to write."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


_KNOWN = {"float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"}


def check_operators(model: ir.Model) -> None:
    """Refuses a graph with operators that are not in `TABLE`.

    Raises:
        InputError: There is such an operator; the message names it and its module.
    """
    _check(list(model.graph))


def _check(nodes: Sequence[ir.Node]) -> None:
    lost = [node for node in nodes if (node.domain, node.op_type) not in TABLE]
    if lost:
        op = f"{lost[0].domain}.{lost[0].op_type}" if lost[0].domain else lost[0].op_type
        raise InputError(
            f"{module_of(lost[0]) or 'the graph'}: expected operators that healing can differentiate, found {op} "
            f"({len(lost)} of {len(nodes)} nodes)",
            hint="build without --heal",
        )


def _needed(model: ir.Model, outputs: Sequence[str], inputs: set[str]) -> list[ir.Node]:
    """Returns the nodes between the inputs and the outputs, in graph order."""
    wanted, nodes = set(outputs) - inputs, []
    for node in reversed(list(model.graph)):
        if any(value.name in wanted for value in node.outputs):
            nodes.append(node)
            wanted.update(str(v.name) for v in node.inputs if v is not None and v.name not in inputs)
    return nodes[::-1]


def _skipping_weights(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """Leaves out nodes that only transpose and dequantize weights: linear layers and embeddings read the codes."""
    covered: set[ir.Node] = set()
    fused: set[ir.Node] = set()
    for node in nodes:
        if _fusable(linear_of(node)) or _looks_up(node):
            fused.add(node)
    inside = set(nodes)
    for node in reversed(nodes):
        if node.op_type in ("Transpose", "DequantizeLinear"):
            users = [use.node for use in node.outputs[0].uses() if use.node in inside]
            if users and not node.outputs[0].is_graph_output() and all(u in fused or u in covered for u in users):
                covered.add(node)
    return [node for node in nodes if node not in covered]


def _looks_up(node: ir.Node) -> bool:
    """Whether a node reads rows of a matrix of quantized codes."""
    if node.op_type != "Gather" or node.domain or node.inputs[0] is None:
        return False
    made = node.inputs[0].producer()
    return made is not None and made.op_type == "DequantizeLinear" and int(_axis(node)) == 0 and _coded(made)


def _axis(node: ir.Node) -> int:
    axis = node.attributes.get("axis")
    return int(axis.value) if axis is not None else 0


def _fusable(linear: Linear | None) -> bool:
    return linear is not None and (linear.dequantize is None or _coded(linear.dequantize))


def _coded(dequantize: ir.Node) -> bool:
    codes = dequantize.inputs[0]
    return codes is not None and codes.is_initializer() and quantized_of(codes) is not None


def _step(node: ir.Node) -> tuple[Callable[[Sequence[Any]], Any], tuple[str, ...], tuple[str, ...]]:
    writes = tuple(str(value.name) for value in node.outputs)
    linear = linear_of(node)
    if linear is not None and _fusable(linear):
        weight, turned = str(linear.weight.name), linear.transposed
        read = (str(linear.x.name), weight, *_grid(linear.dequantize), f"{weight}{_LOW_RANK}")
        return lambda inputs: _linear(inputs, turned), read, writes
    if _looks_up(node):
        made = node.inputs[0].producer()  # type: ignore[union-attr]
        codes = made.inputs[0]  # type: ignore[union-attr]
        ids = node.inputs[1]
        return _rows, (str(codes.name), str(ids.name), *_grid(made)), writes  # type: ignore[union-attr]
    if node.op_type == "DequantizeLinear" and _coded(node):
        names = (str(node.inputs[0].name), *_grid(node))  # type: ignore[union-attr]
        return lambda inputs: inputs[0].dense(*inputs[1:]), names, writes
    function = TABLE[node.domain, node.op_type]
    reads = tuple(str(value.name) if value is not None else "" for value in node.inputs)
    return lambda inputs: function(node, inputs), reads, writes


def _grid(dequantize: ir.Node | None) -> tuple[str, str]:
    """Returns the names of a weight's scales, and of the movement of its zero points."""
    _, scales, zeros = [*dequantize.inputs, None][:3] if dequantize is not None else (None, None, None)
    return str(scales.name) if scales is not None else "", f"{zeros.name}{MOVED}" if zeros is not None else ""


def _linear(inputs: Sequence[Any], turned: bool) -> Tensor:
    x, weight, scales, moved, low_rank = inputs
    y: Tensor
    if isinstance(weight, Blocks):
        y = weight.linear(x, scales, moved)
    else:
        y = F.linear(x, weight) if turned else torch.matmul(x, weight)
    if low_rank is not None:
        y = y + (low_rank.linear(x) if turned else low_rank.turned(x))
    return y


def _rows(inputs: Sequence[Any]) -> Tensor:
    weight, ids, scales, moved = inputs
    rows: Tensor = weight.rows(ids, scales, moved)
    return rows
