"""Removes what a capture or a pass left over: duplicate computations, unused nodes, unused initializers."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common


def cleanup(model: ir.Model) -> None:
    """Removes in place nodes that compute the same from the same, that nobody reads, and initializers likewise.

    Graph inputs stay: they are the task's.
    """
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
