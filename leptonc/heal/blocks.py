"""Quantized weights in torch: dequantized while a layer runs, with gradients for their scales and zero points alone."""

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
        levels: The levels. A short last block is filled with zeros.
        columns: Number of the weight's inputs.
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

    def dense(self, scales: Tensor, moved: Tensor | None = None) -> Tensor:
        """Returns the dequantized weight, float32 [out, in].

        Args:
            scales: float32 [out, blocks]; or [out] where a row is one block.
            moved: Distance of zero points from those of the levels, float32 [out, blocks]. Default: they are the same.
        """
        weight = torch.mul(self._moved(moved), scales.reshape(*self.levels.shape[:2], 1)).flatten(1)
        return weight if weight.shape[1] == self.columns else weight[:, : self.columns]

    def _moved(self, moved: Tensor | None) -> Tensor:
        return self.levels if moved is None else self.levels - moved.reshape(*self.levels.shape[:2], 1)

    def linear(self, x: Tensor, scales: Tensor, moved: Tensor | None = None) -> Tensor:
        """Returns x W^T, [..., out]."""
        product: Tensor = _Linear.apply(x, scales, moved, self)  # type: ignore[no-untyped-call]
        return product

    def rows(self, ids: Tensor, scales: Tensor, moved: Tensor | None = None) -> Tensor:
        """Returns rows of the weight, [*ids, in]."""
        picked = torch.where(ids < 0, ids + self.levels.shape[0], ids).reshape(-1)

        def of(part: Tensor) -> Tensor:
            return F.embedding(picked, part.reshape(self.levels.shape[:2])).unsqueeze(-1)

        levels = self.levels[picked] if moved is None else self.levels[picked] - of(moved)
        rows_of_ids = (levels * of(scales)).flatten(1)[:, : self.columns]
        return rows_of_ids.reshape(*ids.shape, self.columns)


class _Linear(torch.autograd.Function):
    """x W^T. The backward pass dequantizes again, so that no dequantized weight is kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: Tensor, moved: Tensor | None, weight: Blocks) -> Tensor:
        ctx.weight = weight
        ctx.save_for_backward(x, scales, moved)
        return F.linear(x, weight.dense(scales, moved))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, scales, moved = ctx.saved_tensors
        weight: Blocks = ctx.weight
        to_x = grad @ weight.dense(scales, moved) if ctx.needs_input_grad[0] else None
        to_scales = to_moved = None
        if any(ctx.needs_input_grad[1:3]):
            whole = grad.flatten(0, -2).T @ x.flatten(0, -2)  # of the weight, [out, in]
            rows, blocks, size = weight.levels.shape
            if blocks * size != weight.columns:
                whole = F.pad(whole, (0, blocks * size - weight.columns))
            whole = whole.view(rows, blocks, size)
            if moved is not None and ctx.needs_input_grad[2]:
                to_moved = -(whole.sum(-1) * scales.reshape(rows, blocks)).reshape(moved.shape)
            to_scales = whole.mul_(weight._moved(moved)).sum(-1).reshape(scales.shape)
        return to_x, to_scales, to_moved, None


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
