"""Quantized weights in torch: dequantized while a layer runs, with gradients for their scales alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from leptonc.passes.quantize.blocks import Quantized


@dataclass(frozen=True)
class Blocks:
    """Levels int8 (or int16) [out, blocks, size], codes less their zero points: a weight is a level times a scale.

    Attributes:
        levels: The levels; a short last block is filled with zeros.
        columns: Inputs that the weight has.
    """

    levels: Tensor
    columns: int

    @staticmethod
    def of(weight: Quantized) -> Blocks:
        """Reads the codes of a quantized weight."""
        codes, _, zeros = weight.parts()
        size, (rows, columns) = weight.form.size, weight.shape
        blocks = -(-columns // size)
        small = weight.form.symmetric or weight.form.bits < 8
        levels = np.zeros((rows, blocks * size), np.int8 if small else np.int16)
        levels[:, :columns] = codes.astype(np.int16) - (
            weight.form.middle if zeros is None else np.repeat(zeros, size, 1)[:, :columns].astype(np.int16)
        )
        return Blocks(torch.from_numpy(levels.reshape(rows, blocks, size)), columns)

    def dense(self, scales: Tensor) -> Tensor:
        """Returns float32 [out, in] for scales float32 [out, blocks]; one block a row may be [out]."""
        found = torch.mul(self.levels, scales.reshape(*self.levels.shape[:2], 1)).flatten(1)
        return found if found.shape[1] == self.columns else found[:, : self.columns]

    def linear(self, x: Tensor, scales: Tensor) -> Tensor:
        """Returns x W^T, [..., out]."""
        found: Tensor = _Linear.apply(x, scales, self)  # type: ignore[no-untyped-call]
        return found

    def rows(self, ids: Tensor, scales: Tensor) -> Tensor:
        """Returns rows of the weight, [*ids, in]."""
        picked = torch.where(ids < 0, ids + self.levels.shape[0], ids).reshape(-1)
        spread = F.embedding(picked, scales.reshape(self.levels.shape[:2])).unsqueeze(-1)
        found = (self.levels[picked] * spread).flatten(1)[:, : self.columns]
        return found.reshape(*ids.shape, self.columns)


class _Linear(torch.autograd.Function):
    """x W^T; backward dequantizes again, so that no weight waits for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: Tensor, weight: Blocks) -> Tensor:
        ctx.weight = weight
        ctx.save_for_backward(x, scales)
        return F.linear(x, weight.dense(scales))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, scales = ctx.saved_tensors
        weight: Blocks = ctx.weight
        to_x = grad @ weight.dense(scales) if ctx.needs_input_grad[0] else None
        to_scales = None
        if ctx.needs_input_grad[1]:
            whole = grad.flatten(0, -2).T @ x.flatten(0, -2)  # of the weight, [out, in]
            rows, blocks, size = weight.levels.shape
            if blocks * size != weight.columns:
                whole = F.pad(whole, (0, blocks * size - weight.columns))
            to_scales = whole.view(rows, blocks, size).mul_(weight.levels).sum(-1).reshape(scales.shape)
        return to_x, to_scales, None


@dataclass(frozen=True)
class LowRank:
    """A matrix a b of low rank that is added to a weight [out, in]: a [out, rank], b [rank, in]."""

    a: Tensor
    b: Tensor

    def linear(self, x: Tensor) -> Tensor:
        """Returns x (a b)^T."""
        return F.linear(F.linear(x, self.b), self.a)

    def turned(self, x: Tensor) -> Tensor:
        """Returns x a b, for a weight that is stored [in, out]."""
        return x @ self.a @ self.b
