"""Small fusions for ONNX Runtime's CPU kernels: residual sums with norms, SiLU."""

from __future__ import annotations

import onnx_ir as ir

from leptonc.backends.onnxruntime.attention import MS
from leptonc.ir import edit
from leptonc.ir.dialect import attribute
from leptonc.passes.base import Pass

SKIP_NORM = "SkipSimplifiedLayerNormalization"


class SkipNorms(Pass):
    """Makes a residual sum and the RMSNormalization that reads it one op, which also gives others the sum.

    It takes sums of two values of the same three-dimensional shape, normalized over their last axis. LayerNormalization
    stays apart: ONNX Runtime's kernel for both takes three to six times as long as the two.
    """

    name = "ort-skip-norms"
    version = 2  # RMSNormalization alone
    in_dialect = False

    def run(self, model: ir.Model) -> int:
        count = 0
        for node in [n for n in model.graph if n.op_type == "RMSNormalization" and not n.domain]:
            total = node.inputs[0]
            add = edit.producer(total, "Add")
            scale = node.inputs[1]
            if add is None or total is None or scale is None or scale.shape is None or len(scale.shape) != 1:
                continue
            left, right = add.inputs
            shapes = [v.shape if v is not None else None for v in (left, right)]
            if any(s is None or len(s) != 3 for s in shapes) or list(shapes[0]) != list(shapes[1]):  # type: ignore[arg-type]
                continue
            if attribute(node, "axis", -1) not in (-1, 2) or any(v.is_initializer() for v in (left, right) if v):
                continue
            others = any(u.node is not node for u in total.uses()) or total.is_graph_output()
            inputs = [left, right, *node.inputs[1:]]
            # The norm takes the place of the sum, so that all readers of the sum come after it.
            values = edit.insert(
                add, SKIP_NORM, inputs, {"epsilon": float(attribute(node, "epsilon", 1e-5))}, domain=MS,
                outputs=4 if others else 1, name=f"{node.name}/{SKIP_NORM}",
            )  # fmt: skip
            edit.replace(node.outputs[0], values[0])
            if others:
                edit.replace(total, values[3])
                for unused in values[1:3]:
                    unused.name = ""
            count += 1
        return count


class SwishToQuickGelu(Pass):
    """Replaces SiLU by QuickGelu with factor one, which has a kernel."""

    name = "ort-silu"
    in_dialect = False

    def run(self, model: ir.Model) -> int:
        count = 0
        for node in [n for n in model.graph if n.op_type == "Swish" and not n.domain]:
            factor = float(attribute(node, "alpha", 1.0))
            (y,) = edit.insert(node, "QuickGelu", [node.inputs[0]], {"alpha": factor}, domain=MS)
            edit.replace(node.outputs[0], y)
            count += 1
        return count
