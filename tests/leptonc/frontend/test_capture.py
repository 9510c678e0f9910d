"""Capture of every family: the graph as it stands computes what transformers computes, and no weight was read."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from leptonc.frontend.capture import Captured, capture, position_limit
from leptonc.ir.dialect import count_ops, module_of, verify
from leptonc.ir.structure import embeddings
from leptonc.sources import open_source
from sample_models import tiny_model
from tests.leptonc import models

TOLERANCE = 1e-4  # absolute, on logits that spread by about two


@dataclass
class Counting(Mapping[str, Any]):
    """Weights that count how often one is read."""

    inner: Mapping[str, Any]
    reads: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        tensor, reads = self.inner[name], self.reads

        class Handle:
            shape, dtype = tensor.shape, tensor.dtype

            def read(self) -> Any:
                reads.append(name)
                return tensor.read()

        return Handle()

    def __iter__(self) -> Iterator[str]:
        return iter(self.inner)

    def __len__(self) -> int:
        return len(self.inner)


def counted(name: str) -> tuple[Captured, Counting]:
    with open_source(f"sample:{name}") as source:
        source.weights = weights = Counting(source.weights)
        return capture(source, max_seq_len=models.MAX_SEQ_LEN), weights


@pytest.mark.parametrize("name", models.DECODERS)
def test_a_decoder(name: str, tmp_path: Path) -> None:
    found, weights = counted(name)
    assert weights.reads == []
    verify(found.model)
    config = tiny_model(name).config
    # The token embedding is found, and no other: tables of positions and segments are small, and stay as they are.
    (embedding,) = embeddings(found.model)
    assert embedding.inputs[0] is not None
    assert embedding.inputs[0].shape == [config["vocab_size"], 64]
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    assert count_ops(found.model)["lepton.CachedAttention"] == layers
    assert found.parameters == models.reference(name).num_parameters()

    ids = models.token_ids(sum(models.CHUNKS))
    want = models.reference_logits(models.reference(name), ids)
    assert np.ptp(want) > 1  # or anything would be close
    graph = models.Graph(found.model, tmp_path)
    assert set(weights.reads) == set(weights)  # once it is written, each weight was used
    whole = graph.logits(ids, [len(ids)], capacity=len(ids))
    assert np.abs(whole - want).max() <= TOLERANCE
    cached = graph.logits(ids, models.CHUNKS, capacity=len(ids) + 9)
    assert np.abs(cached - want).max() <= TOLERANCE


@pytest.mark.parametrize("name", models.ENCODERS)
def test_an_encoder(name: str, tmp_path: Path) -> None:
    found, weights = counted(name)
    assert weights.reads == []
    verify(found.model)
    config = tiny_model(name).config
    # The token embedding is found, and no other: tables of positions and segments are small, and stay as they are.
    (embedding,) = embeddings(found.model)
    assert embedding.inputs[0] is not None
    assert embedding.inputs[0].shape == [config["vocab_size"], 64]
    assert count_ops(found.model)["Attention"] == config.get("num_hidden_layers", config.get("n_layers"))

    graph = models.Graph(found.model, tmp_path)
    pad = found.config.pad_token_id
    given = models.padded(graph.inputs, pad=pad if isinstance(pad, int) else 0)
    (got,) = graph(**given).values()
    want = models.reference_embeddings(name, given)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= TOLERANCE
    # Padding changes nothing.
    alone = {key: value[1:2, :11] for key, value in given.items()}
    (row,) = graph(**alone).values()
    assert np.abs(row - want[1:2]).max() <= TOLERANCE


def test_what_a_captured_model_says_of_itself() -> None:
    found = models.captured("tiny-gemma3", max_seq_len=200)
    assert [state.window for state in found.parts["decoder"].states] == [8, 8, None, 8]
    assert found.max_seq_len == 200
    assert found.task.name == "text-generation"
    inputs = {v.name: list(v.shape) for v in found.model.graph.inputs if v.shape is not None}
    assert inputs["input_ids"] == ["batch", "length"]
    assert inputs["past_length"] == ["batch"]
    assert inputs["past_key_values.3.value"] == ["batch", 1, "capacity", 32]
    outputs = [str(v.name) for v in found.model.graph.outputs]
    assert outputs == ["logits"] + [f"present.{i}.{kind}" for i in range(4) for kind in ("key", "value")]


def test_positions_are_at_most_the_models() -> None:
    assert models.captured("tiny-llama", max_seq_len=100_000).max_seq_len == 1024
    assert models.captured("tiny-sentence", max_seq_len=100_000).max_seq_len == 128  # of sentence_bert_config.json


def test_robertas_positions_start_behind_the_padding_id() -> None:
    model = models.reference("tiny-roberta")
    limit = position_limit(model.config)
    assert limit == model.config.max_position_embeddings - model.config.pad_token_id - 1
    with torch.inference_mode():
        model(torch.tensor([models.token_ids(limit)]))
        with pytest.raises((IndexError, RuntimeError), match=r"out of (bounds|range)"):
            model(torch.tensor([models.token_ids(limit + 1)]))


def test_every_node_of_a_layer_says_its_module() -> None:
    graph = models.captured("tiny-llama").model.graph
    paths = {path for path, _ in models.reference("tiny-llama").named_modules()}
    found = {module_of(node) for node in graph}
    assert found <= paths
    assert {"model.layers.2.self_attn.q_proj", "model.layers.0.mlp", "lm_head", "model.norm"} <= found


def test_initializers_are_lazy_and_named_by_their_parameters() -> None:
    found, weights = counted("tiny-gemma3")
    names = set(found.model.graph.initializers)
    tied = {"model.embed_tokens.weight", "lm_head.weight"}
    assert len(tied & names) == 1
    assert {n for n in weights if "norm" not in n} - tied <= names
    # Gemma's norms scale by one plus the weight: that sum is what a pass sees.
    plus = found.model.graph.initializers["model.norm.weight.plus_one"].const_value
    assert plus is not None
    assert np.array_equal(plus.numpy(), weights.inner["model.norm.weight"].read() + np.float32(1))
    assert weights.reads == ["model.norm.weight"]


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2", "tiny-bert"])
def test_transformers_is_left_as_it_was(name: str) -> None:
    model = models.reference(name)
    file = sys.modules[type(model).__module__]
    before = getattr(file, "apply_rotary_pos_emb", None)
    registered = dict(transformers.AttentionInterface._global_mapping)
    logits = models.reference_embeddings if name == "tiny-bert" else None
    models.captured(name)
    assert getattr(file, "apply_rotary_pos_emb", None) is before
    assert dict(transformers.AttentionInterface._global_mapping) == registered
    assert "lepton" not in transformers.AttentionInterface()
    if logits is None:
        assert np.isfinite(models.reference_logits(model, [9, 10])).all()


def test_transformers_is_left_as_it_was_by_a_capture_that_fails() -> None:
    from leptonc.errors import CaptureError
    from leptonc.frontend.patches import patched
    from leptonc.frontend.tasks import build_model, task_of

    config = tiny_model("tiny-llama").config
    file = sys.modules[transformers.LlamaForCausalLM.__module__]
    before = file.apply_rotary_pos_emb
    task = task_of(config, None)

    def fails() -> None:
        with patched(build_model(task, config, "eager"), max_positions=8):
            assert file.apply_rotary_pos_emb is not before
            assert "lepton" in transformers.AttentionInterface()
            raise CaptureError("stop")

    with pytest.raises(CaptureError, match="stop"):
        fails()
    assert file.apply_rotary_pos_emb is before
    assert "lepton" not in transformers.AttentionInterface()
