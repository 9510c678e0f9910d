"""Fewer features of the residual stream: the basis in which the last ones matter least, and the pass that cuts them.

Ashkboos et al., SliceGPT: Compress Large Language Models by Deleting Rows and Columns, 2024. There each block has a
basis of its own, and a matrix on the residual path turns one into the next; here one basis serves all, so that no
matrices come in, and what reads the stream is fitted to what is left of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.ir.residual import residual
from leptonc.ir.weights import Reader, change
from leptonc.passes.base import Config, Pass
from leptonc.passes.prune.remove import cut


def principal_axes(moments: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Returns the basis, float32 [width, width], whose axes have ever less of what the stream's readers see.

    Args:
        moments: Second moments of what each reads, [width, width]; each counts the same, whatever its size.
    """
    total: NDArray[np.float64] | float = 0.0
    for each in moments:
        total = total + each.astype(np.float64) / max(float(np.trace(each)), 1e-30)
    _, axes = np.linalg.eigh(np.asarray(total))
    return np.ascontiguousarray(axes[:, ::-1], np.float32)


def projection(table: NDArray[np.float32], kept: int) -> NDArray[np.float32]:
    """Returns P [kept, width]: P y multiplied with the first columns of a table says most of what the table says of y.

    P minimises the squared error of the logits T y, whose mean no softmax sees, over T_k P y for every y.

    Args:
        table: T, a head's weight [vocabulary, width].
        kept: Columns that stay.
    """
    gram = table.T @ table - np.float32(len(table)) * np.outer(mean := table.mean(0), mean)
    gram = gram.astype(np.float64)
    gram[np.diag_indices_from(gram)] += 1e-6 * float(np.trace(gram)) / len(gram) + 1e-30
    return np.linalg.solve(gram[:kept, :kept], gram[:kept]).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class SliceWidthConfig(Config):
    """How many features stay, of how many; `compensation` of the weights around them, for the record."""

    kept: int
    before: int
    compensation: str = "none"


class SliceWidth(Pass):
    """Cuts the last features of the residual stream out of everything that has them.

    Norms divide by the root of a mean over fewer: their gains and epsilons make up for that, so that cutting zeros
    changes nothing.

    Args:
        config: How many stay.
        weights: What takes the place of weights, by initializer, in the shape before the cut; read when it is written.

    Raises:
        InputError: The stream is not one that can be cut; see `leptonc.ir.residual`.
    """

    name = "slice-width"
    config: SliceWidthConfig

    def __init__(self, config: SliceWidthConfig, weights: Mapping[str, Reader] | None = None) -> None:
        super().__init__(config)
        self._weights = weights or {}

    def run(self, model: ir.Model) -> int:
        found = residual(model)
        for name, read in self._weights.items():
            change(model.graph.initializers[name], read)
        stays = np.arange(found.size) < self.config.kept
        if not stays.all():
            cut(model.graph, found.spread, "width", {"width": stays})
        return len(found.weights())
