"""Another basis for the residual stream, folded into the weights around it: the graph computes the same.

Ashkboos et al., SliceGPT (2024), and QuaRot (2024): a norm without a gain commutes with a rotation of its input, and
the layers that read and write the stream are linear, so that an orthogonal matrix can be folded into their weights.
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

    1. Where norms subtract the mean, the mean is subtracted from all weights that write the stream instead.
    2. Gains and biases are folded into the linear layers that read a norm. Where they cannot be folded (a head that is
       tied to the embedding; a norm before an addition), a new linear layer gets them.

    Raises:
        InputError: The stream is not one whose basis can change; see `leptonc.ir.residual`.
    """

    name = "fold-norms"

    def run(self, model: ir.Model) -> int:
        stream = residual(model)
        if stream.spread.centred:
            _centre(model.graph, stream)
        for norm in stream.norms:
            _fold(model.graph, norm)
        return len(stream.norms)


@dataclasses.dataclass(frozen=True)
class RotateConfig(Config):
    """`basis`: name of the new basis, for the record."""

    basis: str


class Rotate(Pass):
    """Gives the residual stream another basis. `FoldNorms` comes before it.

    Args:
        config: The basis' name, for the record.
        basis: An orthogonal matrix, float32 [width, width]. Column j is the new feature j.
    """

    name = "rotate"
    config: RotateConfig

    def __init__(self, config: RotateConfig, basis: NDArray[np.float32]) -> None:
        super().__init__(config)
        self._basis = basis

    def run(self, model: ir.Model) -> int:
        stream = residual(model)
        for value in stream.weights():
            _turn(value, stream.axes(value), self._basis)
        return len(stream.weights())


def random_basis(size: int, seed: int) -> NDArray[np.float32]:
    """Returns a random orthogonal matrix, float32 [size, size], of uniform distribution (Mezzadri, 2007)."""
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
    # Each norm keeps gains of its own, into which smoothing and scaling can be folded.
    name = f"{norm.name}.gain"
    ones = edit.initializer(graph, name, lazy(name, lambda: np.ones(width, np.float32), [width], {SOURCE_KEY: name}))
    epsilon = float(attribute(norm, "epsilon", 1e-5))
    (plain,) = edit.insert(
        norm, "RMSNormalization", [norm.inputs[0], ones], {"axis": -1, "epsilon": epsilon}, name=f"{norm.name}/plain"
    )
    edit.replace(y, plain)


def _own_readers(y: ir.Value) -> Iterator[Linear]:
    """Yields the linear layers that read a value, if nothing else reads it, or their weights."""
    readers = [linear_of(use.node) for use in y.uses()]
    if y.is_graph_output() or not all(reader is not None and reader.x is y and _alone(reader) for reader in readers):
        return
    yield from (reader for reader in readers if reader is not None)


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


def _centre(graph: ir.Graph, space: Residual) -> None:
    """Subtracts the mean over features from all weights that write the stream, as every norm would do later."""
    behind = _behind_norms(space)
    stream = {v for v in space.spread.spans if not v.is_initializer() and v not in behind and not _is_weight(v)}
    direct = [reader for reader in space.readers if reader.x in stream]
    if space.spread.norms or direct:
        who = place(direct[0].node) if direct else place(next(iter(space.spread.norms)))
        raise InputError(
            f"expected a residual stream that LayerNormalization alone reads, found that {who} does",
            hint="--prune 20% cuts heads and channels of any architecture",
        )
    centring = np.eye(space.size, dtype=np.float32) - np.float32(1 / space.size)
    written = {value: None for made in stream if (node := made.producer()) is not None for value in _weights_of(node)}
    read = {reader.weight for reader in space.readers}
    for value in written:
        if value not in space.spread.spans:
            continue
        if value not in read:
            _turn(value, space.axes(value), centring)
            continue
        for node in [use.node for use in value.uses() if use.node.op_type == "Gather"]:
            append_linear(graph, node, f"{module_of(node)}.centre", lambda: centring, space.size)


def _behind_norms(space: Residual) -> set[ir.Value]:
    """Returns values that norms make, and values computed from these, up to the products that read them."""
    behind: set[ir.Value] = set()
    waiting = [node.outputs[0] for node in space.spread.centred]
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
                waiting += [value for value in node.outputs if value in space.spread.spans and value not in behind]
    return behind


def _is_weight(value: ir.Value) -> bool:
    made = value.producer()
    return made is not None and made.op_type == "Transpose" and bool(made.inputs[0] and made.inputs[0].is_initializer())


def _weights_of(node: ir.Node) -> Iterator[ir.Value]:
    """Yields the initializers with which a node writes the stream: a table, a layer's weight, a bias."""
    linear = linear_of(node)
    if linear is not None:
        yield linear.weight
    yield from (value for value in node.inputs if value is not None and value.is_initializer())
