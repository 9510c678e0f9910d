"""Finds out by experiment what a module computes, instead of trusting its name.

Each probe runs the model's own code on a few random numbers and compares the result with the standard operators'
definitions. What matches none of them is traced as it stands, which is slower and still right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# float32 round-off of a few operations on numbers near one; any other formula is off by far more.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class NormForm:
    """`y = x / sqrt(mean(x^2) + eps) * (weight + offset)`; Zhang & Sennrich 2019, arXiv:1910.07467."""

    eps: float
    offset: float
    weighted: bool


def rms_norm_form(module: nn.Module) -> NormForm | None:
    """Returns the form of `module` as a root-mean-square norm over the last axis, or None where it is not one."""
    weight = getattr(module, "weight", None)
    epsilons = {v for k, v in vars(module).items() if "eps" in k and isinstance(v, float)}
    if any(True for _ in module.children()) or not epsilons:
        return None
    parameters = dict(module.named_parameters(recurse=False))
    if set(parameters) - {"weight"} or (weight is not None and weight.dim() != 1):
        return None
    generator = torch.Generator().manual_seed(0)
    dim = weight.shape[0] if weight is not None else 16
    # Small numbers show a wrong epsilon; the others have a common size.
    x = torch.randn(4, 3, dim, generator=generator) * torch.tensor([1e-3, 1e-2, 1.0, 10.0]).view(4, 1, 1)
    w = torch.rand(dim, generator=generator) + 0.5
    try:
        with torch.no_grad(), torch.device("cpu"):
            output = torch.func.functional_call(module, {"weight": w} if parameters else {}, (x,))
    except (RuntimeError, TypeError, ValueError):
        return None
    if not isinstance(output, Tensor) or output.shape != x.shape:
        return None
    for eps in sorted(epsilons):
        unit = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
        for offset in (0.0, 1.0) if parameters else (0.0,):
            expected = unit * (w + offset) if parameters else unit
            if torch.allclose(output, expected, rtol=TOLERANCE, atol=TOLERANCE):
                return NormForm(eps, offset, bool(parameters))
    return None


@dataclass(frozen=True)
class RotaryForm:
    """How an `apply_rotary_pos_emb` rotates: pairs side by side (interleaved), or halves against each other."""

    interleaved: bool
    layout: str  # of the model's tables: "once" (each angle once), "halves" (a b a b) or "pairs" (a a b b)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Applies ONNX RotaryEmbedding-23 to x [batch, heads, length, head_dim], tables [batch, length, rotary_dim / 2].

    Su et al. 2021, arXiv:2104.09864.
    """
    width = cos.shape[-1] * 2
    turned, rest = x[..., :width], x[..., width:]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        out = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
    else:
        a, b = turned.chunk(2, dim=-1)
        out = torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
    return torch.cat((out, rest), dim=-1)


def half_table(table: Tensor, form: RotaryForm) -> Tensor:
    """Returns the table with each angle once: [..., rotary_dim / 2]."""
    if form.layout == "once":
        return table
    return table[..., 0::2] if form.layout == "pairs" else table[..., : table.shape[-1] // 2]


def rotary_form(
    apply: Callable[..., Any], q_shape: tuple[int, ...], k_shape: tuple[int, ...], cos: Tensor, sin: Tensor
) -> RotaryForm | None:
    """Returns the standard rotation that `apply(q, k, cos, sin)` performs, or None where it is none of them.

    Args:
        apply: The model's own function.
        q_shape: Shape of its queries, [batch, heads, length, head_dim].
        k_shape: Shape of its keys, likewise.
        cos: Rows of the model's table of cosines, [1, length, width].
        sin: The same rows of the table of sines.
    """
    generator = torch.Generator().manual_seed(0)
    length = cos.shape[1]
    q = torch.randn(1, q_shape[1], length, q_shape[3], generator=generator)
    k = torch.randn(1, k_shape[1], length, k_shape[3], generator=generator)
    try:
        with torch.no_grad():
            rotated = apply(q, k, cos, sin)
    except (RuntimeError, TypeError, ValueError):
        return None
    if not (isinstance(rotated, tuple) and len(rotated) == 2):
        return None
    for form in (RotaryForm(i, layout) for layout in ("halves", "pairs", "once") for i in (False, True)):
        c, s = half_table(cos, form), half_table(sin, form)
        if 2 * c.shape[-1] > min(q_shape[3], k_shape[3]):
            continue
        expected = (rotate(q, c, s, form.interleaved), rotate(k, c, s, form.interleaved))
        if all(
            g.shape == w.shape and torch.allclose(g, w, rtol=TOLERANCE, atol=TOLERANCE)
            for g, w in zip(rotated, expected, strict=True)
        ):
            return form
    return None
