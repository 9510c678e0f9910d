"""Configs that no model has are refused in our words, and at once where transformers would build for hours."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import transformers

from leptonc.errors import CaptureError, InputError
from leptonc.frontend.capture import capture
from leptonc.frontend.export import check_tables
from leptonc.frontend.limits import by_length, check_sizes
from leptonc.frontend.patches import patched
from leptonc.frontend.tasks import TextGeneration, build_model, task_of
from leptonc.sources import open_source

ABSURD: list[tuple[dict[str, Any], str]] = [
    ({"head_dim": 0}, "cannot be raised to a negative power"),
    ({"head_dim": -4}, "negative dimension"),
    ({"pad_token_id": 9999}, "Padding_idx must be within"),
    ({"num_attention_heads": 0}, "modulo by zero"),
    ({"num_key_value_heads": 0}, "by zero"),
    ({"vocab_size": 0}, "out of bounds"),
    ({"vocab_size": 2**63}, "Overflow"),
    ({"hidden_act": "nope"}, "nope"),
    ({"rope_parameters": {"rope_type": "nope", "rope_theta": 1.0}}, "nope"),
    ({"num_hidden_layers": "2"}, "expected int, got str"),
]


def llama() -> dict[str, Any]:
    with open_source("sample:tiny-llama") as source:
        return dict(source.config)


@pytest.mark.parametrize(("fields", "words"), ABSURD, ids=lambda value: str(value)[:40])
def test_what_transformers_cannot_build(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(CaptureError, match=words):
        build_model(TextGeneration(), llama() | fields, "eager")


@pytest.mark.parametrize(
    "fields",
    [
        {"num_hidden_layers": 10**5},
        {"num_hidden_layers": 10**9},
        {"text_config": {"num_hidden_layers": 10**9}},
        {"n_layer": 10**9},
        {"num_local_experts": 10**9},
        {"num_labels": 10**9},
        {"rms_norm_eps": float("nan")},
    ],
    ids=str,
)
def test_counts_beyond_the_checkpoint_are_refused_at_once(fields: dict[str, Any]) -> None:
    with open_source("sample:tiny-llama") as source:
        source.config = source.config | fields
        started = time.perf_counter()
        with pytest.raises(InputError, match="in the config"):
            capture(source, max_seq_len=64)
        assert time.perf_counter() - started < 2


def test_counts_of_models_that_exist_are_not() -> None:
    """ALBERT's layers share weights, experts are stacked in one tensor, classifiers have thousands of labels."""
    check_sizes({"num_hidden_layers": 48, "num_experts": 512, "num_labels": 21_843, "vocab_size": 262_144}, 25)


@pytest.mark.parametrize(
    "rope", [{"rope_theta": 0}, {"rope_theta": -5.0}, {"factor": 0.0, "rope_type": "linear"}], ids=str
)
def test_positions_that_are_no_numbers(rope: dict[str, Any]) -> None:
    config = llama() | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4} | rope}
    model = build_model(TextGeneration(), config, "eager")
    with patched(model, max_positions=8) as recorder:
        model(input_ids=torch.zeros((1, 4), dtype=torch.int64, device="meta"), use_cache=False)
        with pytest.raises(InputError, match="expected finite rotary tables"):
            check_tables(recorder)


@pytest.mark.parametrize("found", [None, []], ids=str)
def test_a_config_that_names_no_architecture(found: list[str] | None) -> None:
    """A family of decoders alone is what it is; one that has encoders too could be either."""
    assert isinstance(task_of({"model_type": "llama", "architectures": found}, None), TextGeneration)
    with pytest.raises(CaptureError, match="found no name"):
        task_of({"model_type": "bert", "architectures": found}, None)


def test_an_encoder_is_no_language_model() -> None:
    """BERT with a head for language models, but not said to be a decoder: its tokens see what comes after them."""
    size = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = transformers.BertConfig(**size, num_attention_heads=2).to_dict() | {"architectures": ["BertLMHeadModel"]}
    with pytest.raises(CaptureError, match="found an encoder, whose tokens attend to all others"):
        build_model(TextGeneration(), config, "eager")
    build_model(TextGeneration(), config | {"is_decoder": True}, "eager")


@pytest.mark.parametrize(("positions", "told"), [(256, True), (16, False)])
def test_frequencies_that_depend_on_the_length_are_told_of(positions: int, told: bool) -> None:
    import transformers

    rope = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "rope_theta": 1e4}
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=4, rope_parameters={**rope, "original_max_position_embeddings": 16}
    )
    found = by_length(config, positions)
    assert len(found) == told
    assert all("--max-seq-len 16" in warning for warning in found)
    assert not by_length(transformers.LlamaConfig(), positions)
