"""2:4 sparse weights: of each four consecutive inputs of an output, at most two have a weight that is not zero.

Sparse tensor cores skip the other two. TensorRT wants the pattern along the inputs, which a product sums over (NVIDIA
TensorRT, Sparsity: every four input channels must have at least two zeros).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.errors import InputError
from leptonc.ir.dialect import DialectError
from leptonc.ir.structure import Linear, layer_of, linears, weight_of
from leptonc.passes.base import Config, Pass
from leptonc.passes.columns import Factor, decide, energy, factorize
from leptonc.report.pruning import DenseLayer
from leptonc.report.variant import SparseMatrix

PATTERN = "2:4"
GROUP, KEPT = 4, 2  # consecutive inputs, and how many of their weights may be other than zero
METHODS = ("sparsegpt", "magnitude")
_BUG = "this is a bug in Lepton; please report it"


def why_dense(linear: Linear) -> str:
    """Returns why a linear layer stays dense; "" for one that gets the pattern."""
    if not layer_of(linear.path):
        return "it is outside the layers"
    columns = linear.shape[1]
    return f"its {columns} inputs do not divide by {GROUP}" if columns % GROUP else ""


def violations(weight: NDArray[Any]) -> int:
    """Returns the number of groups of a weight [out, in] that have more weights other than zero than allowed."""
    columns = weight.shape[1] - weight.shape[1] % GROUP  # a short last group does not count
    counts = np.count_nonzero(weight[:, :columns].reshape(len(weight), -1, GROUP), axis=2)
    return int(np.count_nonzero(counts > KEPT))


def magnitude(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Keeps the two largest weights of each group; float32 [out, in], whose inputs divide by four."""
    grouped = np.array(weight, np.float32).reshape(len(weight), -1, GROUP)
    least = np.argsort(np.abs(grouped), axis=2, kind="stable")[..., : GROUP - KEPT]
    np.put_along_axis(grouped, least, 0, axis=2)
    return grouped.reshape(weight.shape)


def sparsegpt(weight: NDArray[np.float32], hessian: NDArray[Any], factor: Factor | None = None) -> NDArray[np.float32]:
    """Gives a weight the pattern; the weights that stay make up for those that go.

    Frantar and Alistarh, SparseGPT (2023): inputs are decided in their order. In each group an output loses the two
    weights with the least w^2 / [H^-1]_jj, where the inverse is that of the inputs left. The weights of later inputs
    make up for it.

    Args:
        weight: float32 [out, in], whose inputs divide by four.
        hessian: Second moments of the inputs, [in, in].
        factor: Factor of the moments, inputs in their own order. Default: it is computed.

    Returns:
        The weights, or those of `magnitude` where their error is less on these inputs.
    """
    plain = magnitude(weight)
    factor = factorize(hessian, largest_first=False) if factor is None else factor
    if factor is None:
        return plain
    rest = np.array(weight.T, np.float32, order="C")
    scale = np.diag(factor.upper)[:, None]
    gone = np.empty((GROUP, len(weight)), np.bool_)

    def choose(at: int) -> NDArray[np.float32]:
        if at % GROUP == 0:
            cost = np.abs(rest[at : at + GROUP] / scale[at : at + GROUP])
            gone[:] = False
            np.put_along_axis(gone, np.argsort(cost, axis=0, kind="stable")[: GROUP - KEPT], True, axis=0)
        return np.where(gone[at % GROUP], np.float32(0), rest[at])

    decide(rest, factor, choose, GROUP)
    solved = np.ascontiguousarray(rest.T)
    return solved if energy(weight - solved, hessian) <= energy(weight - plain, hessian) else plain


@dataclasses.dataclass(frozen=True)
class SparsifyConfig(Config):
    """`method`: one of `METHODS`, which chose the weights that go. `pattern`: for the record."""

    method: str
    pattern: str = PATTERN


class Sparsify(Pass):
    """Gives linear layers weights with the pattern. Other layers stay as they are; see `why_dense`.

    Args:
        config: Method and pattern, for the record.
        weights: Functions that read a layer's new weight, as the graph has it, by initializer.
    """

    name = "sparsify"
    config: SparsifyConfig

    def __init__(self, config: SparsifyConfig, weights: Mapping[str, Callable[[], NDArray[np.float32]]]) -> None:
        super().__init__(config)
        self._weights = weights

    def run(self, model: ir.Model) -> int:
        for name, read in self._weights.items():
            value = model.graph.initializers[name]
            # Without the key of a source's own weight, because its values are others.
            value.const_value = ir.LazyTensor(
                lambda read=read: ir.tensor(np.ascontiguousarray(read(), np.float32)),  # type: ignore[misc]
                dtype=ir.DataType.FLOAT, shape=ir.Shape(value.shape or ()), name=name, cache=False,
            )  # fmt: skip
        return len(self._weights)


def candidates(model: ir.Model) -> list[Linear]:
    """Returns the linear layers that get the pattern.

    Raises:
        InputError: There are none.
    """
    layers = [linear for linear in linears(model) if not why_dense(linear)]
    if not layers:
        raise InputError(
            f"expected linear layers whose inputs divide by {GROUP}, to have {PATTERN} weights, found none in "
            f"{len(linears(model))}",
            hint="--prune 25% cuts channels of any model",
        )
    return layers


def nonzero(model: ir.Model) -> int:
    """Returns the number of weights other than zero in the linear layers of all layers. Each weight is read once."""
    layers = {str(linear.weight.name): linear for linear in linears(model) if layer_of(linear.path)}
    return sum(int(np.count_nonzero(weight_of(linear))) for linear in layers.values())


def dense_layers(model: ir.Model) -> list[DenseLayer]:
    """Returns path and reason of the linear layers that stay dense."""
    return [DenseLayer(path=linear.path, why=why) for linear in linears(model) if (why := why_dense(linear))]


class CheckSparsity(Pass):
    """Checks the pattern in the weights or codes that a lowered graph stores for its backend.

    Codes are symmetric: the code of a zero is 0.

    Args:
        model: The captured graph, whose linear layers must be in the lowered graph.

    Attributes:
        rows: For each linear layer its path, whether it is sparse or why not, the stored type, the number of groups of
            four, of groups with more than two weights other than zero, and of weights other than zero.

    Raises:
        DialectError: `run` did not find a layer, or its pattern: an error of Lepton's own.
    """

    name = "check-sparsity"
    in_dialect = False

    def __init__(self, model: ir.Model) -> None:
        super().__init__()
        self._expected = {linear.path for linear in candidates(model)}
        self.rows: list[SparseMatrix] = []

    def run(self, model: ir.Model) -> int:
        for linear in linears(model):
            weight, why = weight_of(linear), why_dense(linear)
            broken = violations(weight)
            if not why and broken:
                text = f"{linear.path}: expected {PATTERN} weights, found {broken} groups beyond"
                raise DialectError(text, hint=_BUG)
            self.rows.append(
                SparseMatrix(
                    path=linear.path, sparse=not why, why=why or None, stored=str(linear.weight.dtype).lower(),
                    groups=weight.size // GROUP, beyond_pattern=broken, nonzero=int(np.count_nonzero(weight)),
                )
            )  # fmt: skip
        lost = sorted(self._expected - {row.path for row in self.rows})
        if lost:
            raise DialectError(f"expected {', '.join(lost)} in the lowered graph, found none", hint=_BUG)
        return 0
