"""Parameters find their tensors under the names that checkpoints really have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

from leptonc.errors import InputError
from leptonc.frontend.weights import bind
from leptonc.sources.base import ComputedTensor

SIZE = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def _handles(tensors: dict[str, np.ndarray[Any, Any]]) -> dict[str, ComputedTensor]:
    return {name: ComputedTensor(t.shape, "F32", lambda t=t: t) for name, t in tensors.items()}


def _all_found(model: Any, tensors: dict[str, np.ndarray[Any, Any]]) -> dict[str, str]:
    """Checks that each parameter has its own values, and returns the names that were found."""
    bound = bind(model, _handles(tensors))
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(bound[name][1].read(), parameter.detach().numpy())
    return {name: stored for name, (stored, _) in bound.items()}


def test_names_as_transformers_writes_them(tmp_path: Path) -> None:
    """GPT-NeoX (Pythia): checkpoints say `embed_out` where the model says `lm_head`."""
    torch.manual_seed(0)
    model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SIZE))
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert _all_found(model, tensors)["lm_head.weight"] == "embed_out.weight"


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_names_of_old_checkpoints(prefix: str) -> None:
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**SIZE))
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = {}
    for name, parameter in model.named_parameters():
        for now, before in old.items():
            name = name.replace(now, before)
        tensors[prefix + name] = parameter.detach().numpy()
    found = _all_found(model, tensors)
    assert found["embeddings.LayerNorm.weight"] == f"{prefix}embeddings.LayerNorm.gamma"


@pytest.mark.parametrize("second", ["bert.pooler.dense.weight", "embeddings.LayerNorm.gamma"])
def test_two_tensors_for_one_parameter_are_refused(second: str) -> None:
    """With and without the base's prefix, under an old name and a new one: nothing says which is the model's."""
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**SIZE))
    tensors = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    first = second.removeprefix("bert.").replace("gamma", "weight")
    with pytest.raises(InputError, match=f"found two in the checkpoint: `{first}` and|{second}` and `{first}"):
        bind(model, _handles({**tensors, second: tensors[first] + 1}))


def test_a_second_copy_with_the_same_values_is_no_question() -> None:
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**SIZE))
    tensors = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    copies = {f"bert.{name}": tensor for name, tensor in tensors.items()}
    assert _all_found(model, tensors | copies)["pooler.dense.weight"] == "pooler.dense.weight"
