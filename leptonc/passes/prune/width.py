"""Cuts features of the residual stream: the basis in which the last ones matter least, and the pass that cuts them.

Ashkboos et al., SliceGPT: Compress Large Language Models by Deleting Rows and Columns, 2024. There each block has a
basis of its own, and matrices on the residual path turn one into the next. Here one basis serves all blocks without new
matrices, and the layers that read the stream are fitted to the features that stay.
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
    """Returns the principal axes of the inputs of the stream's readers, float32 [width, width], the largest first.

    Args:
        moments: Second moments of each reader's inputs, [width, width]. All count the same, whatever their size.
    """
    total: NDArray[np.float64] | float = 0.0
    for moment in moments:
        total = total + moment.astype(np.float64) / max(float(np.trace(moment)), 1e-30)
    _, axes = np.linalg.eigh(np.asarray(total))
    return np.ascontiguousarray(axes[:, ::-1], np.float32)


def projection(table: NDArray[np.float32], kept: int) -> NDArray[np.float32]:
    """Returns P [kept, width], with which the first columns of a table come nearest to the whole table.

    P minimizes the squared error of T_k P y for the logits T y, for every y. The logits' mean does not count, because a
    softmax ignores it.

    Args:
        table: T, a head's weight [vocabulary, width].
        kept: Number of columns that stay, the width of T_k.
    """
    gram = table.T @ table - np.float32(len(table)) * np.outer(mean := table.mean(0), mean)
    gram = gram.astype(np.float64)
    gram[np.diag_indices_from(gram)] += 1e-6 * float(np.trace(gram)) / len(gram) + 1e-30
    return np.linalg.solve(gram[:kept, :kept], gram[:kept]).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class SliceWidthConfig(Config):
    """`kept`: number of features that stay. `before`: number of features. `compensation`: for the record."""

    kept: int
    before: int
    compensation: str = "none"


class SliceWidth(Pass):
    """Cuts the last features of the residual stream out of all values that have them.

    Norms have a mean over fewer features. Their gains and epsilons make up for that, so that cutting zeros changes
    nothing.

    Args:
        config: Number of features that stay.
        weights: New weights, by initializer, in the shape from before the cut. They are read when they are written.
            Default: none.

    Raises:
        InputError: The stream is not one that can be cut; see `leptonc.ir.residual`.
    """

    name = "slice-width"
    config: SliceWidthConfig

    def __init__(self, config: SliceWidthConfig, weights: Mapping[str, Reader] | None = None) -> None:
        super().__init__(config)
        self._weights = weights or {}

    def run(self, model: ir.Model) -> int:
        stream = residual(model)
        for name, read in self._weights.items():
            change(model.graph.initializers[name], read)
        stays = np.arange(stream.size) < self.config.kept
        if not stays.all():
            cut(model.graph, stream.spread, "width", {"width": stays})
        return len(stream.weights())
