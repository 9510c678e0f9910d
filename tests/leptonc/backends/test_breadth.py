"""Families beyond the sample models, none with code of its own: captured, lowered, and equal to transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from leptonc.backends import onnxruntime as backend
from leptonc.frontend.capture import capture
from leptonc.passes.base import Manager
from tests.leptonc import models

TOLERANCE = 1e-4
SIZE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SIZE | {"num_key_value_heads": 2}
OPT = {k: v for k, v in SIZE.items() if k != "intermediate_size"} | {"ffn_dim": 128, "word_embed_proj_dim": 64}
GPTJ = {"vocab_size": 512, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 8}
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ArceeForCausalLM": ("ArceeConfig", GROUPED),  # squared ReLU
    "CohereForCausalLM": ("CohereConfig", GROUPED),  # interleaved rotary embedding, a scaled head
    "GPTJForCausalLM": ("GPTJConfig", GPTJ),  # a rotary function of its own
    "GlmForCausalLM": ("GlmConfig", GROUPED | {"head_dim": 16}),  # interleaved and partial
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", SIZE),  # attention and MLP side by side, one matrix for q, k and v
    "GraniteForCausalLM": ("GraniteConfig", GROUPED),
    "NemotronForCausalLM": ("NemotronConfig", GROUPED | {"head_dim": 16}),  # LayerNorm with gains around zero
    "OPTForCausalLM": ("OPTConfig", OPT),  # learned positions, biases
    "PhiForCausalLM": ("PhiConfig", GROUPED),
    # Positions counted from behind the padding index.
    "RobertaForCausalLM": ("RobertaConfig", SIZE | {"is_decoder": True, "pad_token_id": 1, "type_vocab_size": 1}),
    "SmolLM3ForCausalLM": ("SmolLM3Config", GROUPED),  # some layers without rotary embedding
    "StableLmForCausalLM": ("StableLmConfig", GROUPED),
}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "AlbertModel": ("AlbertConfig", SIZE | {"embedding_size": 32}),  # one layer's weights used in all layers
    "ElectraForSequenceClassification": ("ElectraConfig", SIZE | {"embedding_size": 32}),
    "XLMRobertaForSequenceClassification": ("XLMRobertaConfig", SIZE | {"type_vocab_size": 1}),
}


def lowered(architecture: str, config: Any, folder: Path) -> tuple[Any, Any, models.Graph]:
    """Returns transformers' model, the captured one, and its lowered graph."""
    source = models.source_of(config, architecture)
    captured = capture(source, max_seq_len=128)
    Manager().run(captured.model, backend.lowerings())
    backend.finish(captured.model)
    return models.reference_of(source), captured, models.Graph(captured.model, folder)


@pytest.mark.parametrize("architecture", DECODERS)
def test_decoder(architecture: str, tmp_path: Path) -> None:
    kind, fields = DECODERS[architecture]
    reference, _, graph = lowered(architecture, getattr(transformers, kind)(**fields), tmp_path)
    ids = models.token_ids(sum(models.CHUNKS))
    want = models.reference_logits(reference, ids)
    assert np.abs(graph.logits(ids, models.CHUNKS, capacity=40) - want).max() <= TOLERANCE
    assert want.std() > 10 * TOLERANCE


@pytest.mark.parametrize("architecture", ENCODERS)
def test_encoder(architecture: str, tmp_path: Path) -> None:
    kind, fields = ENCODERS[architecture]
    reference, captured, graph = lowered(architecture, getattr(transformers, kind)(**fields), tmp_path)
    given = models.padded(graph.inputs)
    with torch.inference_mode():
        tensors = {name: torch.from_numpy(array) for name, array in given.items()}
        want = reference(**tensors)[0]
    (output,) = captured.parts["encoder"].outputs
    if output.role == "embeddings":  # the mean over a text's tokens
        mask = tensors["attention_mask"].unsqueeze(-1)
        want = (want * mask).sum(1) / mask.sum(1)
    want = want.numpy()
    assert np.abs(graph(**given)[output.name] - want).max() <= TOLERANCE
    assert want.std() > 10 * TOLERANCE
