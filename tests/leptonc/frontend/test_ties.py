"""Tied parameters of a checkpoint, and tensors that no parameter takes, as transformers' own loader has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from leptonc.frontend.ties import separate, summary, unused
from leptonc.frontend.weights import bind
from leptonc.sources.safetensors_file import SafetensorsFile

SIZE = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
Tensors = dict[str, torch.Tensor]


def llama(**fields: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZE, **fields))


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2))


def bert() -> Any:
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SIZE))
    torch.nn.init.normal_(model.cls.predictions.bias)
    return model


def t5() -> Any:
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**T5))


def other(name: str, like: str) -> Callable[[Tensors], None]:
    """Adds a tensor with values of its own."""

    def change(tensors: Tensors) -> None:
        tensors[name] = torch.randn(tensors[like].shape)

    return change


def copy(name: str, of: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: tensors[of].clone()})


def renamed(name: str, of: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: tensors.pop(of)})


def both(*changes: Callable[[Tensors], None]) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for each in changes:
            each(tensors)

    return change


EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CASES: dict[str, tuple[Callable[[], Any], Callable[[Tensors], Any], list[str]]] = {
    "tied, own head": (lambda: llama(tie_word_embeddings=True), other(HEAD, EMBED), [HEAD]),
    "tied, equal head": (lambda: llama(tie_word_embeddings=True), copy(HEAD, EMBED), []),
    "tied, no head": (lambda: llama(tie_word_embeddings=True), lambda tensors: None, []),
    "tied, head alone": (lambda: llama(tie_word_embeddings=True), renamed(HEAD, EMBED), []),
    "not tied": (lambda: llama(tie_word_embeddings=False), lambda tensors: None, []),
    "gpt2": (gpt2, other(HEAD, "transformer.wte.weight"), [HEAD]),
    "gpt2 without prefix": (
        gpt2, lambda tensors: [renamed(n.removeprefix("transformer."), n)(tensors) for n in list(tensors)], []
    ),
    "bert's bias": (
        bert, other("cls.predictions.decoder.bias", "cls.predictions.bias"), ["cls.predictions.decoder.bias"]
    ),
    "bert's head": (
        bert, other("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ["cls.predictions.decoder.weight"],
    ),
    "t5": (t5, lambda tensors: None, []),
    "t5's head": (t5, other(HEAD, "shared.weight"), [HEAD]),
    "t5's encoder": (t5, other("encoder.embed_tokens.weight", "shared.weight"), ["encoder.embed_tokens.weight"]),
    "t5 without the shared one": (t5, renamed("decoder.embed_tokens.weight", "shared.weight"), []),
    "t5, two without the shared one": (
        t5, both(renamed("decoder.embed_tokens.weight", "shared.weight"), other(HEAD, "decoder.embed_tokens.weight")),
        [HEAD],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_ties_are_kept_and_dropped_as_transformers_does(case: str, tmp_path: Path) -> None:
    make, change, own = CASES[case]
    torch.manual_seed(0)
    model = make()
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    want = type(model).from_pretrained(tmp_path, dtype=torch.float32)
    with torch.device("meta"):
        ours = type(model)._from_config(model.config)
    file = SafetensorsFile(path)
    warnings = separate(ours, file)
    bound = bind(ours, file)
    for name, parameter in want.named_parameters(remove_duplicate=False):
        np.testing.assert_array_equal(bound[name][1].read(), parameter.detach().numpy(), err_msg=name)
    assert [name for name in own if any(f"ties `{name}`" in warning for warning in warnings)] == own
    assert len(warnings) == len(own)
    count = len({id(p) for p in want.parameters()})
    assert len(list(ours.parameters())) == count  # what is equal stays tied, and is stored once
    assert unused(ours, file, {"architectures": [type(model).__name__]}) == ([], [])


def test_heads_and_towers_are_known_and_the_rest_is_named(tmp_path: Path) -> None:
    """A body that is built of a checkpoint with a head; inverse frequencies are computed today."""
    bert().save_pretrained(tmp_path)
    config = transformers.BertConfig(**SIZE).to_dict() | {"architectures": ["BertForMaskedLM"]}
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["bert.embeddings.position_ids"] = torch.arange(40)
    tensors["bert.encoder.layer.7.output.dense.weight"] = torch.zeros(3)
    save_file(tensors, tmp_path / "model.safetensors")
    with torch.device("meta"):
        model = transformers.BertModel(transformers.BertConfig(**SIZE))
    known, unknown = unused(model, SafetensorsFile(tmp_path / "model.safetensors"), config)
    assert unknown == ["bert.encoder.layer.7.output.dense.weight"]
    assert "cls.predictions.transform.dense.weight" in known
    assert all(name.startswith("cls.") for name in known)


def test_old_inverse_frequencies_are_no_surprise(tmp_path: Path) -> None:
    tensors = {name: p.detach().clone() for name, p in llama().named_parameters()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.ones(16)
    save_file(tensors, tmp_path / "a.safetensors")
    with torch.device("meta"):
        model = llama()
    found = unused(model, SafetensorsFile(tmp_path / "a.safetensors"), {"architectures": ["LlamaForCausalLM"]})
    assert found == ([], ["model.layers.0.self_attn.q_proj.bias"])


def test_a_summary_counts_layers() -> None:
    names = [f"model.layers.{n}.a.weight" for n in range(12)] + ["b", "c"]
    assert summary(names) == "`b`, `c`, `model.layers.*.a.weight` (12)"
    assert summary(f"x{n}" for n in range(9)).endswith("`x4` and 4 more")
