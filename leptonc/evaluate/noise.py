"""Measures the error that rounding weights makes in each linear layer's output, while the original runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leptonc.passes.quantize.blocks import Codes, Format, dequantize
from leptonc.passes.quantize.weights import ROWS

TOKENS = 64  # most tokens of a run that a layer is measured with
ENOUGH = 32  # tokens that suffice for a layer: later runs are not measured


@dataclass(frozen=True)
class Rounded:
    """A linear layer whose weights were quantized.

    Attributes:
        shape: (out, in) features.
        form: The weights' format.
        codes: Returns the codes of some rows of the source's weight, given the rows, float32 [n, in], and the step
            between them. Default: none, the weight was changed before, so that the original has none like it.
        off: The energy of the rounding error in the weight itself, as a part of the weight's. Default: none, a method
            chose the codes.
    """

    shape: tuple[int, int]
    form: Format
    codes: Callable[[NDArray[np.float32], int], Codes] | None = None
    off: float | None = None


class OutputNoise:
    """Measures a linear layer's output against the error that rounding the weights makes in it, for exact inputs.

    The result is a mean of the tokens' own ratios, so that the massive activations of a text's first token (Sun et al.,
    Massive Activations in Large Language Models, 2024) count as one token's.

    Args:
        layers: The layers, by module path.
    """

    def __init__(self, layers: Mapping[str, Rounded]) -> None:
        self._layers = layers
        self._seen: dict[str, tuple[float, int]] = {}

    def watch(self, model: nn.Module) -> None:
        """Measures the layers whenever `model` runs after this call."""
        for path, rounded in self._layers.items():
            try:
                module = model.get_submodule(path)
            except AttributeError:  # a layer of the graph that is no module is not measured
                continue
            if rounded.codes is not None and isinstance(getattr(module, "weight", None), nn.Parameter):
                module.register_forward_hook(self._hook(path, rounded, rounded.codes))

    def _hook(self, path: str, rounded: Rounded, codes: Callable[..., Codes]) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, args: Any, out: Any) -> None:
            weight = module.weight
            if isinstance(out, Tensor) and isinstance(weight, Tensor) and not self._enough(path):
                # GPT-2's layers have theirs [in, out]
                matrix = weight if isinstance(module, nn.Linear) else weight.T
                self._look(path, rounded, codes, args[0], matrix)

        return look

    def see(self, path: str, x: NDArray[np.float32], weight: Callable[[], NDArray[np.float32]]) -> None:
        """Measures a layer of a graph with its input `x`, float32 [..., in]; `weight` reads its weight [out, in]."""
        rounded = self._layers.get(path)
        if rounded is not None and rounded.codes is not None and not self._enough(path):
            self._look(path, rounded, rounded.codes, torch.from_numpy(x), torch.from_numpy(weight()))

    def _enough(self, path: str) -> bool:
        return self._seen.get(path, (0.0, 0))[1] >= ENOUGH

    def _look(self, path: str, rounded: Rounded, codes: Callable[..., Codes], x: Tensor, matrix: Tensor) -> None:
        x = x.reshape(-1, x.shape[-1])
        if tuple(matrix.shape) != rounded.shape or x.shape[-1] != rounded.shape[1]:
            return
        x = x[:: max(1, len(x) // TOKENS)].float()
        step = max(1, rounded.shape[0] // ROWS)
        rows = np.ascontiguousarray(matrix[::step].detach().float().numpy())
        exact = x @ torch.from_numpy(rows).T
        error = x @ torch.from_numpy(rows - dequantize(codes(rows, step), rounded.form)).T
        size = exact.square().sum(1).double().clamp(min=torch.finfo(torch.float32).tiny)
        ratio = error.square().sum(1).double() / size
        total, count = self._seen.get(path, (0.0, 0))
        self._seen[path] = (total + float(ratio.sum()), count + len(ratio))

    def decibels(self) -> dict[str, float]:
        """Returns the ratio in dB of each measured layer; layers without an error are left out."""
        means = {path: total / count for path, (total, count) in self._seen.items()}
        return {path: round(-10 * math.log10(mean), 2) for path, mean in means.items() if mean > 0}
