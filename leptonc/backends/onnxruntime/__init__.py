"""ONNX Runtime on the CPU: the ordered lowerings from the IR dialect to its kernels."""

from __future__ import annotations

import onnx_ir as ir

from leptonc.backends.onnxruntime.attention import (
    MS,
    AttentionToMultiHead,
    CachedAttentionToGroupQuery,
    PackQueryKeyValue,
)
from leptonc.backends.onnxruntime.fusions import SkipNorms, SwishToQuickGelu
from leptonc.backends.onnxruntime.linear import EmbeddingToKernels, LinearToKernels
from leptonc.passes.base import Pass
from leptonc.passes.cleanup import Cleanup
from leptonc.passes.fuse_linears import FuseLinears
from leptonc.passes.last_logits import LastLogits

WEIGHTS = ("fp32", "int8", "int4")


def lowerings() -> tuple[Pass, ...]:
    """Returns the passes that lower a graph of the dialect, in order."""
    return (
        LastLogits(),
        FuseLinears(),
        CachedAttentionToGroupQuery(),
        PackQueryKeyValue(),
        AttentionToMultiHead(),
        EmbeddingToKernels(),
        LinearToKernels(),
        SkipNorms(),
        SwishToQuickGelu(),
        Cleanup(),
    )


def finish(model: ir.Model) -> None:
    """Declares the operator sets that the lowered graph uses."""
    model.graph.opset_imports[MS] = 1
