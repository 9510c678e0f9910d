"""Torch operators of a trace for the steps that a lowering must see whole.

They have shapes and no kernels: a model is traced on meta tensors and never run with them. Importing this module
registers them once a process; it needs torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_library: Any = torch.library.Library("lepton", "DEF")  # type: ignore[no-untyped-call]

_library.define(
    "attention(Tensor q, Tensor k, Tensor v, str module, int layer, float scale, float softcap, int window, "
    "bool cached) -> Tensor"
)
_library.define("rotary_tables(Tensor position_ids, str table, int dim) -> (Tensor, Tensor)")
_library.define("rotary(Tensor x, Tensor cos, Tensor sin, bool interleaved, str layout) -> Tensor")
_library.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_library.define("rms_norm(Tensor x, Tensor? weight, float eps, float offset) -> Tensor")


@torch.library.register_fake("lepton::attention", lib=_library)  # type: ignore[untyped-decorator]
def _attention(
    q: Tensor, k: Tensor, v: Tensor, module: str, layer: int, scale: float, softcap: float, window: int, cached: bool
) -> Tensor:
    """Maps queries [batch, heads, length, key_dim] to [batch, length, heads, value_dim], as transformers expects."""
    return q.new_empty((q.shape[0], q.shape[2], q.shape[1], v.shape[3]))


@torch.library.register_fake("lepton::rotary_tables", lib=_library)  # type: ignore[untyped-decorator]
def _rotary_tables(position_ids: Tensor, table: str, dim: int) -> tuple[Tensor, Tensor]:
    shape = (*position_ids.shape, dim)
    return (
        torch.empty(shape, dtype=torch.float32, device=position_ids.device),
        torch.empty(shape, dtype=torch.float32, device=position_ids.device),
    )


@torch.library.register_fake("lepton::rotary", lib=_library)  # type: ignore[untyped-decorator]
def _rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, layout: str) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("lepton::rms_norm", lib=_library)  # type: ignore[untyped-decorator]
def _rms_norm(x: Tensor, weight: Tensor | None, eps: float, offset: float) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("lepton::linear", lib=_library)  # type: ignore[untyped-decorator]
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Replaces torch's own, which takes a third of a trace: its views reason about symbolic shapes one by one."""
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
