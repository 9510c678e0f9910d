"""Another basis for the residual stream, folded into the weights around it: the graph computes the same.

Ashkboos et al., SliceGPT (2024), and QuaRot (2024): a norm without a gain does not mind a rotation of its input, and
what reads and writes the stream is linear, so that an orthogonal matrix goes into the weights of both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.errors import InputError
from leptonc.ir import edit
from leptonc.ir.dialect import attribute, module_of
from leptonc.ir.residual import Residual, residual
from leptonc.ir.spread import place
from leptonc.ir.structure import Linear, linear_of, weight_of
from leptonc.ir.weights import SOURCE_KEY, Reader, add_bias, append_linear, change, lazy, tensor_of
from leptonc.passes.base import Config, Pass


class FoldNorms(Pass):
    """Makes every norm of the residual stream an RMSNormalization whose gains are all one.

    1. Where norms subtract the mean, everything that writes the stream has its own mean taken off instead.
    2. Gains and biases go into the linear layers that read a norm. Where they cannot (a head that is tied to the
       embedding; a norm before an addition), a linear layer of its own takes them.

    Raises:
        InputError: The stream is not one whose basis can change; see `leptonc.ir.residual`.
    """

    name = "fold-norms"

    def run(self, model: ir.Model) -> int:
        found = residual(model)
        if found.spread.centred:
            _centre(model.graph, found)
        for norm in found.norms:
            _fold(model.graph, norm)
        return len(found.norms)


@dataclasses.dataclass(frozen=True)
class RotateConfig(Config):
    """`basis`: how the new basis was chosen, for the record."""

    basis: str


class Rotate(Pass):
    """Gives the residual stream another basis; its norms have no gains (`FoldNorms`).

    Args:
        config: For the record.
        basis: Orthogonal, float32 [width, width]; column j is the new feature j.
    """

    name = "rotate"
    config: RotateConfig

    def __init__(self, config: RotateConfig, basis: NDArray[np.float32]) -> None:
        super().__init__(config)
        self._basis = basis

    def run(self, model: ir.Model) -> int:
        found = residual(model)
        for value in found.weights():
            _turn(value, found.axes(value), self._basis)
        return len(found.weights())


def random_basis(size: int, seed: int) -> NDArray[np.float32]:
    """Returns an orthogonal matrix, float32 [size, size], drawn evenly from all there are (Mezzadri, 2007)."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))
    return np.asarray(q * np.sign(np.diag(r)), np.float32)


def _turn(value: ir.Value, axes: list[int], matrix: NDArray[np.float32]) -> None:
    """Multiplies a weight by a matrix [width, width] along axes, when it is read."""
    old = tensor_of(value)

    def read() -> NDArray[np.float32]:
        array: NDArray[np.float32] = np.asarray(old.numpy(), np.float32)
        for axis in axes:
            array = np.moveaxis(np.moveaxis(array, axis, -1) @ matrix, -1, axis)
        return array

    change(value, read)


def _fold(graph: ir.Graph, norm: ir.Node) -> None:
    y, width = norm.outputs[0], int(norm.outputs[0].shape[-1])  # type: ignore[index, arg-type]
    gain = tensor_of(norm.inputs[1])  # type: ignore[arg-type]
    bias = tensor_of(norm.inputs[2]) if len(norm.inputs) > 2 and norm.inputs[2] is not None else None
    readers = list(_own_readers(y))
    if readers:
        for linear in readers:
            if bias is not None:
                add_bias(graph, linear, weight_of(linear) @ np.asarray(bias.numpy(), np.float32))
            _scale(linear, lambda: np.asarray(gain.numpy(), np.float32))
    else:
        take = (lambda: bias.numpy()) if bias is not None else None
        append_linear(graph, norm, f"{module_of(norm)}.gain", lambda: np.diag(gain.numpy()), width, take)
    # Each norm has gains of its own still: smoothing and scaling fold into those.
    name = f"{norm.name}.gain"
    ones = edit.initializer(graph, name, lazy(name, lambda: np.ones(width, np.float32), [width], {SOURCE_KEY: name}))
    epsilon = float(attribute(norm, "epsilon", 1e-5))
    (plain,) = edit.insert(
        norm, "RMSNormalization", [norm.inputs[0], ones], {"axis": -1, "epsilon": epsilon}, name=f"{norm.name}/plain"
    )
    edit.replace(y, plain)


def _own_readers(y: ir.Value) -> Iterator[Linear]:
    """Yields the linear layers that read a value, if nothing else does, and nothing else their weights."""
    found = [linear_of(use.node) for use in y.uses()]
    if y.is_graph_output() or not all(each is not None and each.x is y and _alone(each) for each in found):
        return
    yield from (each for each in found if each is not None)


def _alone(linear: Linear) -> bool:
    turned = linear.node.inputs[1]
    return linear.dequantize is None and all(
        value is None or len(list(value.uses())) == 1 for value in (linear.weight, turned)
    )


def _scale(linear: Linear, factors: Reader) -> None:
    """Multiplies the inputs' side of a weight."""
    old = tensor_of(linear.weight)
    if linear.transposed:
        change(linear.weight, lambda: old.numpy() * factors())
    else:
        change(linear.weight, lambda: old.numpy() * factors()[:, None])


def _centre(graph: ir.Graph, found: Residual) -> None:
    """Takes the mean over features off everything that writes the stream, which every norm would take off anyway."""
    behind = _behind_norms(found)
    stream = {v for v in found.spread.spans if not v.is_initializer() and v not in behind and not _is_weight(v)}
    direct = [each for each in found.readers if each.x in stream]
    if found.spread.norms or direct:
        who = place(direct[0].node) if direct else place(next(iter(found.spread.norms)))
        raise InputError(
            f"expected a residual stream that LayerNormalization alone reads, found that {who} does",
            hint="--prune 20% cuts heads and channels of any architecture",
        )
    centring = np.eye(found.size, dtype=np.float32) - np.float32(1 / found.size)
    written = {value: None for made in stream if (node := made.producer()) is not None for value in _weights_of(node)}
    read = {each.weight for each in found.readers}
    for value in written:
        if value not in found.spread.spans:
            continue
        if value not in read:
            _turn(value, found.axes(value), centring)
            continue
        for node in [use.node for use in value.uses() if use.node.op_type == "Gather"]:
            append_linear(graph, node, f"{module_of(node)}.centre", lambda: centring, found.size)


def _behind_norms(found: Residual) -> set[ir.Value]:
    """Values that norms make, and what follows of them, up to the products that read them."""
    behind: set[ir.Value] = set()
    waiting = [node.outputs[0] for node in found.spread.centred]
    while waiting:
        value = waiting.pop()
        behind.add(value)
        for node in (use.node for use in value.uses()):
            if node.op_type in ("Add", "Sub"):
                raise InputError(
                    f"expected norms before what reads the residual stream, found one in it, before {place(node)}",
                    hint="--prune 20% cuts heads and channels of any architecture",
                )
            if node.op_type != "MatMul":
                waiting += [each for each in node.outputs if each in found.spread.spans and each not in behind]
    return behind


def _is_weight(value: ir.Value) -> bool:
    made = value.producer()
    return made is not None and made.op_type == "Transpose" and bool(made.inputs[0] and made.inputs[0].is_initializer())


def _weights_of(node: ir.Node) -> Iterator[ir.Value]:
    """Yields the initializers that a node puts into the stream: rows of a table, a layer's weight, a bias."""
    linear = linear_of(node)
    if linear is not None:
        yield linear.weight
    yield from (each for each in node.inputs if each is not None and each.is_initializer())
