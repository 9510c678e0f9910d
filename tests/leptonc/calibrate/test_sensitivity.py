"""What rounding one linear layer does to the output, and what a budget buys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from leptonc.calibrate.output_change import divergence
from leptonc.calibrate.sensitivity import Sensitivity, raise_within, sensitivities
from leptonc.errors import InputError
from leptonc.passes.quantize.blocks import Format, dequantize, round_to_nearest
from leptonc.sources import open_source
from tests.leptonc import models

FORM = Format(4, 16, False)


def test_divergence_is_that_of_float64() -> None:
    random = np.random.default_rng(0)
    x = (random.standard_normal((3, 5, 400)) * 4).astype(np.float32)
    y = x + (random.standard_normal(x.shape) * 0.01).astype(np.float32)
    p, q = (np.exp(each.astype(np.float64)) for each in (x, y))
    p, q = (each / each.sum(-1, keepdims=True) for each in (p, q))
    assert divergence(x, y, logits=True) == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-2)
    assert divergence(x, x, logits=True) == pytest.approx(0, abs=1e-9)
    wanted = (np.square(y - x).sum(-1) / np.square(x).sum(-1)).mean()
    assert divergence(x, y, logits=False) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "memory", "table"),
    [("tiny-llama", 0, None), ("tiny-llama3", 2**30, FORM), ("tiny-gemma2", 0, FORM)],
)
def test_sensitivities_are_those_of_the_whole_model(
    name: str, memory: int, table: Format | None, tmp_path: Path
) -> None:
    """Reference: transformers' model with one weight replaced at a time, an embedding and a tied head together."""
    windows = [np.asarray(models.token_ids(24, seed), np.int64) for seed in (1, 2)]
    with open_source(f"sample:{name}") as source:
        model = models.capture(source, max_seq_len=64).model
        found = sensitivities(model, windows, lambda _: FORM, tmp_path, table=table, memory=memory)
    reference = models.reference(name)

    def logits() -> np.ndarray:
        with torch.no_grad():
            return np.stack([reference(torch.from_numpy(w[None])).logits[0].double().numpy() for w in windows])

    before = logits()
    before -= np.log(np.exp(before).sum(-1, keepdims=True))
    tied = reference.lm_head.weight is reference.model.embed_tokens.weight
    assert tied == (name != "tiny-llama3")
    kinds = (torch.nn.Linear, torch.nn.Embedding) if table is not None else torch.nn.Linear
    named = [n for n, m in reference.named_modules() if isinstance(m, kinds) and (n != "lm_head" or not tied)]
    assert [each.path for each in found] == named
    for each in found:
        weight = reference.get_submodule(each.path).weight
        kept = weight.data
        weight.data = torch.from_numpy(dequantize(round_to_nearest(kept.numpy(), FORM), FORM))
        after = logits()
        weight.data = kept
        after -= np.log(np.exp(after).sum(-1, keepdims=True))
        wanted = (np.exp(before) * (before - after)).sum(-1).mean()
        assert each.error == pytest.approx(wanted, rel=2e-2, abs=1e-8), each.path
        assert each.shape == tuple(weight.shape)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with open_source("sample:tiny-llama") as source:
        model = models.capture(source, max_seq_len=64).model
        norm = next(v for n, v in model.graph.initializers.items() if n.endswith("input_layernorm.weight"))
        import onnx_ir as ir

        norm.const_value = ir.tensor(np.full(norm.const_value.shape.numpy(), np.nan, np.float32), name=norm.name)  # type: ignore[union-attr]
        with pytest.raises(InputError, match="finite values of logits"):
            sensitivities(model, [np.arange(8, 24)], lambda _: FORM, tmp_path)


def test_a_budget_buys_what_gains_most_for_a_byte() -> None:
    layers = [Sensitivity("a", (1, 10), 1.0), Sensitivity("b", (1, 100), 5.0), Sensitivity("c", (1, 10), 0.2)]

    def extra(each: Sensitivity) -> int:
        return each.shape[1]

    assert raise_within(layers, extra, 0) == ((), 0)
    assert raise_within(layers, extra, 20) == (("a", "c"), 20)
    assert raise_within(layers, extra, 112) == (("a", "b"), 110)
    assert raise_within(layers, extra, 1000) == (("a", "b", "c"), 120)
