"""What cannot be captured is refused by an error that names the module, or the tensor, and what was expected of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import transformers

from leptonc.errors import CaptureError, InputError
from leptonc.frontend.capture import capture
from leptonc.frontend.tasks import task_of
from leptonc.frontend.weights import checked
from leptonc.sources import Source, open_source
from leptonc.sources.base import ComputedTensor, SentenceModule, SentenceModules
from tests.leptonc.models import source_of

SMALL = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
UNKNOWN: dict[str, tuple[Callable[[], Any], str]] = {
    "MambaForCausalLM": (
        lambda: transformers.MambaConfig(vocab_size=512, hidden_size=64, num_hidden_layers=2),
        r"MambaForCausalLM: expected attention layers, found none",
    ),
    "FalconForCausalLM": (
        lambda: transformers.FalconConfig(**SMALL),
        r"transformer\.h\.0\.self_attention \(FalconAttention\): expected a forward pass that runs on shapes alone, ",
    ),
    "BloomForCausalLM": (
        lambda: transformers.BloomConfig(vocab_size=512, hidden_size=64, n_layer=2, n_head=4),
        r"transformer \(BloomModel\): expected a forward pass that runs on shapes alone, found",
    ),
    "MPNetModel": (
        lambda: transformers.MPNetConfig(**SMALL, intermediate_size=128),
        r"encoder\.layer\.0\.attention\S* \(MPNet\w*Attention\): expected it to attend through transformers' attention "
        r"interface once, found that it does not \(2 of 2",
    ),
}


@pytest.mark.parametrize("architecture", UNKNOWN)
def test_architectures_that_attend_in_a_way_of_their_own(architecture: str) -> None:
    config, message = UNKNOWN[architecture]
    before = dict(transformers.AttentionInterface._global_mapping)
    with pytest.raises(CaptureError, match=message) as caught:
        capture(source_of(config(), architecture), max_seq_len=64)
    assert caught.value.hint
    assert caught.value.exit_code == 1
    assert dict(transformers.AttentionInterface._global_mapping) == before


def llama(**changes: Any) -> Source:
    with open_source("sample:tiny-llama") as source:
        return replace(source, config=source.config | changes)


def refused(source: Source) -> InputError:
    with pytest.raises(InputError) as caught:
        capture(source, max_seq_len=64)
    return caught.value


def test_an_unknown_model_type() -> None:
    error = refused(llama(model_type="lama"))
    assert isinstance(error, CaptureError)
    assert f"expected a model_type that transformers {transformers.__version__} has, found 'lama'" in error.message
    assert error.hint == "did you mean 'llama'?"
    assert "newer transformers" in (refused(llama(model_type="zzzzzzzzzz")).hint or "")
    assert "found None" in refused(llama(model_type=None)).message


def test_a_sequence_to_sequence_model() -> None:
    config = transformers.T5Config(vocab_size=512, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    with pytest.raises(CaptureError) as caught:
        capture(source_of(config, "T5ForConditionalGeneration"), max_seq_len=64)
    assert "expected a causal language model, a text encoder or a sequence classifier" in caught.value.message
    assert "found T5ForConditionalGeneration (model_type 't5')" in caught.value.message


def test_an_encoder_decoder_by_its_base_models_name() -> None:
    with pytest.raises(CaptureError, match="found T5Model"):
        task_of({"architectures": ["T5Model"], "model_type": "t5", "is_encoder_decoder": True}, None)


def test_a_config_without_architectures() -> None:
    """A family that has encoders too could be either; see `test_limits.py` for one that has none."""
    assert "found no name" in refused(llama(model_type="bert", architectures=None)).message
    assert "found no name" in refused(llama(model_type="bert", architectures=[])).message


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("LlamaForCausalLM", "text-generation"),
        ("GPT2LMHeadModel", "text-generation"),
        ("BertForSequenceClassification", "text-classification"),
        ("BertModel", "text-embedding"),
        ("BertForMaskedLM", "text-embedding"),
    ],
)
def test_tasks(architecture: str, task: str) -> None:
    assert task_of({"architectures": [architecture]}, None).name == task
    assert task_of({"architectures": [architecture]}, SentenceModules.pooled()).name == "text-embedding"


def test_a_config_that_transformers_refuses() -> None:
    error = refused(llama(num_attention_heads=5, head_dim=None))
    assert "transformers cannot build 'llama' as AutoModelForCausalLM: " in error.message
    assert "hidden size (64) is not a multiple of the number of attention heads (5)" in error.message


def test_a_key_that_a_table_of_transformers_lacks() -> None:
    error = refused(llama(hidden_act="silu2"))
    assert "as AutoModelForCausalLM: it does not know 'silu2'" in error.message
    assert "config.json" in str(error.hint)


@pytest.mark.parametrize("window", [{"use_sliding_window": False}, {"use_sliding_window": True, "sliding_window": 0}])
def test_a_window_without_a_length(window: dict[str, Any]) -> None:
    """Without one transformers fails as soon as it generates."""
    kinds = {"model_type": "qwen2", "layer_types": ["sliding_attention", *["full_attention"] * 2]}
    error = refused(llama(**kinds, **window))
    assert "expected a sliding_window for the layers" in error.message


def test_names_of_a_multimodal_model_beside_a_config_of_a_language_model() -> None:
    """Of them transformers finds none, and starts with random numbers."""
    source = llama()
    renamed = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in source.weights.items()}
    error = refused(replace(source, weights=renamed))
    assert "found a multimodal model's: `model.language_model." in error.message


def test_a_decoder_whose_tokens_attend_to_later_ones() -> None:
    error = refused(llama(model_type="gemma3_text", architectures=None, use_bidirectional_attention=True))
    assert "found an encoder, whose tokens attend to all others" in error.message


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        (
            transformers.LlamaConfig(**SMALL, num_key_value_heads=2, intermediate_size=128),
            "LlamaForSequenceClassification",
        ),
        (transformers.LlamaConfig(**SMALL, num_key_value_heads=2, intermediate_size=128), "LlamaModel"),
        (transformers.GPT2Config(vocab_size=512, n_embd=64, n_layer=2, n_head=4), "GPT2ForSequenceClassification"),
        (transformers.BertConfig(**SMALL, intermediate_size=128, is_decoder=True), "BertModel"),
    ],
)
def test_decoders_that_classify_or_embed(config: Any, architecture: str) -> None:
    with pytest.raises(CaptureError, match="found a decoder, whose tokens attend to earlier ones alone") as caught:
        capture(source_of(config, architecture), max_seq_len=64)
    assert "decoders that classify or embed are not supported yet" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "is_refused"),
    [("tiny-bert", True), ("tiny-sentence", True), ("tiny-roberta", False), ("tiny-bert-classifier", False)],
)
def test_padding_on_the_left_of_absolute_positions(name: str, is_refused: bool) -> None:
    """A pipeline pads nothing, and RoBERTa's positions are those of the tokens, wherever the padding is."""
    with open_source(f"sample:{name}") as source:
        source.tokenizer_config = source.tokenizer_config | {"padding_side": "left"}
        if is_refused:
            assert "expected a tokenizer that pads on the right, found padding_side left" in refused(source).message
        else:
            assert capture(source, max_seq_len=64).max_seq_len == 64


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (SentenceModule("Dense", {"in_features": 64, "out_features": 8}), "Dense: expected in_features to be 128,"),
        (SentenceModule("LayerNorm", {"dimension": 64}), "LayerNorm: expected dimension to be 128, .*found 64"),
    ],
)
def test_a_step_that_reads_another_width(step: SentenceModule, message: str) -> None:
    modes = {"pooling_mode": ["cls", "max"], "include_prompt": True}
    modules = SentenceModules((SentenceModule("Pooling", modes), step))
    with open_source("sample:tiny-bert") as source, pytest.raises(InputError, match=message):
        capture(replace(source, modules=modules), max_seq_len=64)


def test_weights_that_nothing_reads_may_be_missing() -> None:
    """BERT that was saved as a masked language model has no pooler, and an embedding reads none."""
    with open_source("sample:tiny-bert") as source:
        found = capture(without(source, lambda name: "pooler" in name), max_seq_len=64)
        assert not any("pooler" in str(name) for name in found.model.graph.initializers)
        with pytest.raises(InputError, match=r"found none for 1: `embeddings\.LayerNorm\.bias`"):
            capture(without(source, lambda name: name.endswith("embeddings.LayerNorm.bias")), max_seq_len=64)


@pytest.mark.parametrize("changes", [{"hidden_size": 128}, {"vocab_size": 513}])
def test_a_config_of_another_model(changes: dict[str, int]) -> None:
    (found,) = changes.values()
    error = refused(llama(**changes))
    assert "as the config says" in error.message
    assert str(found) in error.message
    assert "different models" in (error.hint or "")


def test_more_layers_than_weights() -> None:
    error = refused(llama(num_hidden_layers=4))
    assert "expected weights for every parameter, found none for 9: `model.layers.3." in error.message


def without(source: Source, drop: Callable[[str], bool]) -> Source:
    return replace(source, weights={name: t for name, t in source.weights.items() if not drop(name)})


def test_missing_weights_are_named() -> None:
    error = refused(without(llama(), lambda name: name.endswith("layers.1.mlp.up_proj.weight")))
    assert "found none for 1: `model.layers.1.mlp.up_proj.weight`" in error.message
    assert "incomplete" in (error.hint or "")
    assert "found none for 29" in refused(without(llama(), lambda name: True)).message


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_numbers(bad: float) -> None:
    """The error comes when the weight is read, not when the graph is captured: that reads none."""
    name = "model.layers.1.mlp.up_proj.weight"
    source = llama()
    good = source.weights[name].read()
    good[3, 4] = bad
    source.weights = {**source.weights, name: ComputedTensor(good.shape, "F32", lambda: good)}
    tensor = capture(source, max_seq_len=64).model.graph.initializers[name].const_value
    assert tensor is not None
    with pytest.raises(InputError, match=f"expected finite weights, found 1 NaN or infinite values in `{name}`"):
        tensor.numpy()


def test_large_weights_whose_sum_is_not_a_number_are_no_error() -> None:
    big = np.array([[1e38, 3e38], [3e38, 3e38]], np.float32)
    read = checked("w", ComputedTensor(big.shape, "F32", lambda: big))
    assert np.array_equal(read(), big)
    mixed = np.array([np.inf, -np.inf], np.float32)
    with pytest.raises(InputError, match="found 2 NaN or infinite"):
        checked("w", ComputedTensor(mixed.shape, "F32", lambda: mixed))()
