"""The pass that removes nodes and functions that nothing uses."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from leptonc.ir.edit import cleanup
from leptonc.passes.base import Pass


class Cleanup(Pass):
    """The last pass. It removes nodes and initializers that nothing reads, and functions that nothing calls."""

    name = "cleanup"
    in_dialect = False

    def run(self, model: ir.Model) -> int:
        before = model.graph.num_nodes()
        cleanup(model)
        common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        return before - model.graph.num_nodes()
