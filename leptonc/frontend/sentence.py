"""The steps that sentence-transformers runs after an encoder, as modules that are traced with it.

Texts are padded on the right, as the runtime pads them: a text's tokens are the first of its row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from leptonc.errors import InputError
from leptonc.sources.base import EMBEDDING, TOKENS, SentenceModule

_LEAST = 1e-9  # lower bound of a sum of weights
_MASKED = -1e9  # stands for minus infinity, which half precision rounds it to


class Pooling(nn.Module):
    """Pools a text's token vectors into one: a single token's, the maximum, a weighted mean, or some of them joined."""

    def __init__(self, pooling_mode: list[str], include_prompt: bool, **_: Any) -> None:
        super().__init__()
        self.modes, self.include_prompt = pooling_mode, include_prompt

    def forward(self, tokens: Tensor, args: Mapping[str, Tensor]) -> Tensor:
        """Returns float32 [batch, modes x width] of tokens float32 [batch, length, width]."""
        whole = args["attention_mask"].unsqueeze(-1).to(tokens.dtype)
        mask = whole if self.include_prompt else args["pooling_mask"].unsqueeze(-1).to(tokens.dtype)
        parts = [self._pooled(mode, tokens, whole, mask) for mode in self.modes]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _pooled(self, mode: str, tokens: Tensor, whole: Tensor, mask: Tensor) -> Tensor:
        if mode == "cls" and self.include_prompt:
            return tokens[:, 0]
        if mode == "max":
            return tokens.masked_fill(mask == 0, _MASKED).amax(1)
        if mode == "mean":
            return (tokens * mask).sum(1) / mask.sum(1).clamp(min=_LEAST)
        if mode == "mean_sqrt_len_tokens":
            return (tokens * mask).sum(1) / mask.sum(1).clamp(min=_LEAST).sqrt()
        places = torch.arange(tokens.shape[1], device=tokens.device).to(tokens.dtype)[None, :, None]
        if mode == "weightedmean":
            weights = mask * (places + 1)
            return (tokens * weights).sum(1) / weights.sum(1).clamp(min=_LEAST)
        length = whole.sum(1, keepdim=True)
        at = length - mask.sum(1, keepdim=True) if mode == "cls" else length - 1
        return (tokens * (places == at).to(tokens.dtype)).sum(1)


class Dense(nn.Module):
    """A linear layer with an activation. A residual one adds its input to the result."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool, activation_function: str, use_residual: bool, **_: Any
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation = getattr(nn, activation_function)()
        self.adds = use_residual
        if use_residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)

    def forward(self, x: Tensor, args: Mapping[str, Tensor]) -> Tensor:
        """Returns float32 [..., out_features] of x float32 [..., in_features]."""
        y: Tensor = self.activation(self.linear(x))
        return y if not self.adds else y + (self.residual(x) if hasattr(self, "residual") else x)


class LayerNorm(nn.Module):
    """A layer norm over the embedding."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dimension)

    def forward(self, x: Tensor, args: Mapping[str, Tensor]) -> Tensor:
        """Returns x normed, float32 [..., dimension]."""
        result: Tensor = self.norm(x)
        return result


class Normalize(nn.Module):
    """Division by the L2 norm."""

    def __init__(self, **_: Any) -> None:
        super().__init__()

    def forward(self, x: Tensor, args: Mapping[str, Tensor]) -> Tensor:
        """Returns x with norms of 1, float32 of the same shape."""
        return nn.functional.normalize(x, p=2.0, dim=-1)


_STEPS: dict[str, type[nn.Module]] = {
    "Pooling": Pooling, "Dense": Dense, "LayerNorm": LayerNorm, "Normalize": Normalize,
}  # fmt: skip


def check_widths(chain: tuple[SentenceModule, ...], width: int) -> None:
    """Checks that each step reads as many numbers as the one before it makes.

    Args:
        chain: The steps.
        width: Numbers of the encoder's output for a token.

    Raises:
        InputError: The widths of two steps differ.
    """
    widths = {TOKENS: width}
    for step in chain:
        options = step.options
        size = widths[options.get("module_input_name", TOKENS if step.kind == "Pooling" else EMBEDDING)]
        name = {"Dense": "in_features", "LayerNorm": "dimension"}.get(step.kind)
        if name is not None and options[name] != size:
            raise InputError(
                f"{step.kind}: expected {name} to be {size}, which the modules before it make, found {options[name]}",
                hint="check the pooling modes in 1_Pooling/config.json, each of which adds to the width, and the "
                "module's own config.json",
            )
        out_width = size * len(options["pooling_mode"]) if step.kind == "Pooling" else options.get("out_features", size)
        widths[options.get("module_output_name", EMBEDDING)] = out_width


class SentenceSteps(nn.Module):
    """All steps after an encoder. A step reads one named value and writes one; the first reads the tokens."""

    def __init__(self, chain: tuple[SentenceModule, ...]) -> None:
        super().__init__()
        self.chain = chain
        for index, step in enumerate(chain):  # a number alone would be a layer's: see `ir.structure.layer_of`
            self.add_module(f"step{index}", _STEPS[step.kind](**step.options))

    def forward(self, tokens: Tensor, args: Mapping[str, Tensor]) -> Tensor:
        """Returns the embedding, float32 [batch, dim], of tokens float32 [batch, length, width]."""
        values = {TOKENS: tokens}
        for index, step in enumerate(self.chain):
            reads = step.options.get("module_input_name", TOKENS if step.kind == "Pooling" else EMBEDDING)
            output = self.get_submodule(f"step{index}")(values[reads], args)
            values[step.options.get("module_output_name", EMBEDDING)] = output
        return values[EMBEDDING]
