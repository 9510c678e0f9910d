"""First-order importance is what the gradients of transformers' own loss give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from leptonc.errors import InputError
from leptonc.heal.taylor import taylor
from leptonc.ir.structure import linears
from tests.leptonc import models

WINDOWS = [np.asarray(models.token_ids(16, seed), np.int64) for seed in (1, 2)]


def test_importance_is_the_squared_slope_of_a_gate() -> None:
    """Reference: a gate in transformers' own model."""
    model = models.captured("tiny-llama", max_seq_len=64).model
    path = "model.layers.1.mlp.down_proj"
    value = next(str(each.x.name) for each in linears(model) if each.path == path)
    found = taylor(model, WINDOWS, [value])[value]
    reference, wanted = models.reference("tiny-llama"), np.zeros(found.shape)
    for window in WINDOWS:
        gate, ids = torch.ones(found.shape, requires_grad=True), torch.from_numpy(window)

        def gated(_: object, given: tuple[torch.Tensor], gate: torch.Tensor = gate) -> tuple[torch.Tensor]:
            return (given[0] * gate,)

        handle = reference.get_submodule(path).register_forward_pre_hook(gated)
        logits = reference(input_ids=ids[None], use_cache=False).logits[0]
        handle.remove()
        (slope,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits[:-1], ids[1:]), gate)
        wanted += slope.double().square().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5 * wanted.max())


def test_an_encoder_has_importance_too_and_a_value_that_is_not_there_is_named() -> None:
    model = models.captured("tiny-bert-classifier", max_seq_len=64).model
    value = next(str(each.x.name) for each in linears(model) if ".layer." in each.path)
    assert (taylor(model, WINDOWS, [value])[value] > 0).any()
    with pytest.raises(InputError, match="none called nonsense"):
        taylor(model, WINDOWS, ["nonsense"])
