"""What rounding weights does to each linear layer's own output, seen while the original runs."""

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

TOKENS = 64  # of a run that a layer is looked at with
ENOUGH = 32  # tokens that tell a layer's noise: later runs are not looked at
ROWS = 96  # outputs of a layer that are looked at, spread evenly: others are alike


@dataclass(frozen=True)
class Rounded:
    """A linear layer whose weights were quantized.

    Attributes:
        shape: (out, in) features.
        form: The weights' format.
        codes: Given some rows of the source's weight, float32 [n, in], and the step between them, their codes; None
            where the weight was changed before, so that the original has none like it.
    """

    shape: tuple[int, int]
    form: Format
    codes: Callable[[NDArray[np.float32], int], Codes] | None = None


class OutputNoise:
    """The ratio of a linear layer's output to the error that rounding its weights makes in it, the input being exact.

    It is a mean over tokens of each token's own ratio: the massive activations of a text's first token (Sun et al.,
    Massive Activations in Large Language Models, 2024) are one token's.

    Args:
        layers: The layers, by module path.
    """

    def __init__(self, layers: Mapping[str, Rounded]) -> None:
        self._layers = layers
        self._seen: dict[str, tuple[float, int]] = {}

    def watch(self, model: nn.Module) -> None:
        """Looks at the layers whenever `model` runs from now on."""
        for path, rounded in self._layers.items():
            try:
                module = model.get_submodule(path)
            except AttributeError:  # a layer of the graph's that is no module: nothing is said of it
                continue
            if rounded.codes is not None and isinstance(getattr(module, "weight", None), nn.Parameter):
                module.register_forward_hook(self._hook(path, rounded, rounded.codes))

    def _hook(self, path: str, rounded: Rounded, codes: Callable[..., Codes]) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, args: Any, out: Any) -> None:
            total, count = self._seen.get(path, (0.0, 0))
            weight = module.weight
            if count >= ENOUGH or not isinstance(out, Tensor) or not isinstance(weight, Tensor):
                return
            turned = not isinstance(module, nn.Linear)  # GPT-2's layers have theirs [in, out]
            matrix = weight.T if turned else weight
            x = args[0].reshape(-1, args[0].shape[-1])
            if tuple(matrix.shape) != rounded.shape or x.shape[-1] != rounded.shape[1]:
                return
            some = slice(None, None, max(1, len(x) // TOKENS))
            step = max(1, rounded.shape[0] // ROWS)
            rows = np.ascontiguousarray(matrix[::step].detach().float().numpy())
            off = torch.from_numpy(rows - dequantize(codes(rows, step), rounded.form))
            exact = out.reshape(-1, out.shape[-1])[some, ::step].float()
            bias = module.bias
            if isinstance(bias, Tensor):
                exact = exact - bias[::step]
            error = (x[some].float() @ off.T).square().sum(1).double()
            ratio = error / exact.square().sum(1).double().clamp(min=torch.finfo(torch.float32).tiny)
            self._seen[path] = (total + float(ratio.sum()), count + len(ratio))

        return look

    def decibels(self) -> dict[str, float]:
        """Returns the ratio in dB of each layer that was looked at; layers without an error are left out."""
        means = {path: total / count for path, (total, count) in self._seen.items()}
        return {path: round(-10 * math.log10(mean), 2) for path, mean in means.items() if mean > 0}
