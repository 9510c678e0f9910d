"""Probes: forms are found by what a module computes, and whatever computes anything else is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from leptonc.frontend.probe import NormForm, RotaryForm, half_table, rms_norm_form, rotary_form, rotate


class Norm(nn.Module):
    """A root-mean-square norm with an offset, and a mistake where one is asked for."""

    def __init__(self, eps: float, offset: float = 0.0, *, weighted: bool = True, mistake: str = "") -> None:
        super().__init__()
        self.eps, self.offset, self.mistake = eps, offset, mistake
        if weighted:
            self.weight = nn.Parameter(torch.zeros(24))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.pow(2).sum(-1, keepdim=True) / (x.shape[-1] - (self.mistake == "mean"))
        eps = self.eps * (1.5 if self.mistake == "eps" else 1)
        y = x * torch.rsqrt(mean + eps)
        if self.mistake == "clamp":
            y = y.clamp(-2.5, 2.5)
        if hasattr(self, "weight"):
            y = y * (self.weight + self.offset)
        return y * (1.0001 if self.mistake == "scale" else 1)


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norms_are_found(eps: float, offset: float) -> None:
    assert rms_norm_form(Norm(eps, offset)) == NormForm(eps, offset, weighted=True)


def test_a_norm_without_a_weight() -> None:
    assert rms_norm_form(Norm(1e-6, weighted=False)) == NormForm(1e-6, 0.0, weighted=False)


def test_norms_on_the_meta_device() -> None:
    with torch.device("meta"):
        module = Norm(1e-5, 1.0)
    assert rms_norm_form(module) == NormForm(1e-5, 1.0, weighted=True)
    assert module.weight.is_meta


@pytest.mark.parametrize("mistake", ["mean", "eps", "scale", "clamp"])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norm_that_is_off_by_a_little(mistake: str, offset: float) -> None:
    assert rms_norm_form(Norm(1e-5, offset, mistake=mistake)) is None


@pytest.mark.parametrize(
    "module",
    [
        nn.LayerNorm(24),
        nn.LayerNorm(24, bias=False),
        nn.LayerNorm(24, elementwise_affine=False),
        nn.GroupNorm(2, 24),
        Norm(1e-5, 0.5),
        nn.Sequential(Norm(1e-5)),
        nn.Identity(),
    ],
    ids=lambda module: str(module).split("\n")[0],
)
def test_other_modules_are_refused(module: nn.Module) -> None:
    assert rms_norm_form(module) is None


def test_transformers_norms() -> None:
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    assert rms_norm_form(LlamaRMSNorm(24, eps=1e-5)) == NormForm(1e-5, 0.0, weighted=True)
    assert rms_norm_form(Gemma3RMSNorm(24, eps=1e-6)) == NormForm(1e-6, 1.0, weighted=True)


# Rotary embeddings

HEADS, KV_HEADS, DIM, LENGTH = 4, 2, 16, 5


def angles(width: int) -> Tensor:
    """[1, length, width / 2] of positions 1 to 5."""
    found: Tensor = torch.arange(1, LENGTH + 1)[None, :, None] / 100.0 ** (torch.arange(width // 2) * 2 / width)
    return found


def tables(width: int, layout: str) -> tuple[Tensor, Tensor]:
    once = angles(width)
    full = {
        "once": once,
        "halves": torch.cat([once, once], -1),
        "pairs": once.repeat_interleave(2, -1),
    }[layout]
    return full.cos(), full.sin()


def turned(x: np.ndarray[Any, Any], width: int, interleaved: bool) -> np.ndarray[Any, Any]:
    """Rotates pairs of float64 numbers as complex ones: another way than the code's."""
    turn = np.exp(1j * angles(width).numpy().astype(np.float64))[:, None]
    out = x.astype(np.float64).copy()
    pairs = (
        (slice(0, width, 2), slice(1, width, 2)) if interleaved else (slice(0, width // 2), slice(width // 2, width))
    )
    product = (out[..., pairs[0]] + 1j * out[..., pairs[1]]) * turn
    out[..., pairs[0]], out[..., pairs[1]] = product.real, product.imag
    return out


def applying(width: int, interleaved: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    def apply(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        q, k = (torch.from_numpy(turned(x.numpy(), width, interleaved)).float() for x in (q, k))
        return q, k

    return apply


def form_of(apply: Callable[..., Any], cos: Tensor, sin: Tensor) -> RotaryForm | None:
    return rotary_form(apply, (2, HEADS, 7, DIM), (2, KV_HEADS, 7, DIM), cos, sin)


@pytest.mark.parametrize("layout", ["once", "halves", "pairs"])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("width", [DIM, DIM // 2])
def test_rotations_are_found(width: int, interleaved: bool, layout: str) -> None:
    """Whole heads and parts of heads, with each layout of the tables."""
    assert form_of(applying(width, interleaved), *tables(width, layout)) == RotaryForm(interleaved, layout)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("width", [DIM, DIM // 2])
def test_rotate_is_a_complex_product(width: int, interleaved: bool) -> None:
    x = torch.randn(1, HEADS, LENGTH, DIM, generator=torch.Generator().manual_seed(1))
    got = rotate(x, *tables(width, "once"), interleaved=interleaved).numpy()
    assert np.abs(got - turned(x.numpy(), width, interleaved)).max() <= 1e-6
    assert np.array_equal(got[..., width:], x.numpy()[..., width:])
    assert np.abs(got[..., :width] - x.numpy()[..., :width]).max() > 0.1


@pytest.mark.parametrize("layout", ["once", "halves", "pairs"])
def test_half_tables_hold_each_angle_once(layout: str) -> None:
    cos, _ = tables(DIM, layout)
    assert torch.equal(half_table(cos, RotaryForm(False, layout)), angles(DIM).cos())


def test_other_rotations_are_refused() -> None:
    cos, sin = tables(DIM, "halves")
    right = applying(DIM, False)

    def backwards(q: Tensor, k: Tensor, c: Tensor, s: Tensor) -> Any:
        return right(q, k, c, s)[0], 2 * k - right(q, k, c, s)[1]

    def scaled(q: Tensor, k: Tensor, c: Tensor, s: Tensor) -> Any:
        return tuple(1.001 * x for x in right(q, k, c, s))

    def keys_only(q: Tensor, k: Tensor, c: Tensor, s: Tensor) -> Any:
        return q, right(q, k, c, s)[1]

    def raises(*_: Tensor) -> Any:
        raise ValueError("needs more")

    others: list[Callable[..., Any]] = [
        backwards, scaled, keys_only, raises, lambda q, k, c, s: (q, k), lambda q, k, c, s: right(q, k, c, s)[0],
    ]  # fmt: skip
    assert form_of(right, cos, sin) == RotaryForm(False, "halves")
    assert [form_of(apply, cos, sin) for apply in others] == [None] * len(others)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", RotaryForm(False, "halves")),
        ("cohere", RotaryForm(True, "pairs")),
        ("glm", RotaryForm(True, "halves")),
    ],
)
def test_transformers_rotations(family: str, expected: RotaryForm) -> None:
    from importlib import import_module

    file = import_module(f"transformers.models.{family}.modeling_{family}")
    cos, sin = tables(DIM, expected.layout)
    assert form_of(file.apply_rotary_pos_emb, cos, sin) == expected
