"""GGUF files as sources: values, names, config and tokenizer come back as the Hugging Face model had them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer

from leptonc.errors import InputError
from leptonc.sources import open_source
from tests.leptonc.sources.converter import write_gguf

# The sample, its GGUF architecture, what the converter writes beside the common keys.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny-llama": ("llama", {}),
    "tiny-qwen2": ("qwen2", {}),
    "tiny-qwen3": ("qwen3", {}),
    "tiny-gemma2": (
        "gemma2",
        {"attention.sliding_window": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 6.0},
    ),
    "tiny-gemma3": ("gemma3", {"attention.sliding_window": 8}),
    "tiny-phi3": ("phi3", {}),
    "tiny-phi4-mini": ("phi3", {}),
    "tiny-gpt2": ("gpt2", {}),
}
# What GGUF has no place for: tiny-gemma3's own pattern of layers, and the scale of queries where it is not a head's.
UNSTORED = {
    "tiny-gemma3": {"layer_types": ["sliding_attention"] * 4},
    "tiny-gemma2": {"query_pre_attn_scalar": 16},
}


@pytest.mark.parametrize("sample", FAMILIES)
def test_a_converted_model_comes_back(sample: str, tmp_path: Path) -> None:
    arch, extra = FAMILIES[sample]
    original = open_source(f"sample:{sample}")
    with open_source(str(write_gguf(original, tmp_path / "m.gguf", arch, extra=extra))) as source:
        assert source.weights.keys() == original.weights.keys()
        for name, tensor in original.weights.items():
            found = source.weights[name]
            assert found.shape == tensor.shape
            # Gemma's norms lose a rounding to the one that was added; all else is exact.
            tolerance = 5e-7 if name.endswith("norm.weight") else 0
            assert np.abs(found.read() - tensor.read()).max() <= tolerance, name
        assert source.chat_template == original.chat_template
        assert source.generation_config == {"bos_token_id": 1, "eos_token_id": [1, 3], "pad_token_id": 0}


@pytest.mark.parametrize("sample", FAMILIES)
def test_its_config_is_the_same_to_transformers(sample: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    arch, extra = FAMILIES[sample]
    original = open_source(f"sample:{sample}")

    def parsed(config: dict[str, Any]) -> dict[str, Any]:
        fields = {key: value for key, value in config.items() if key != "model_type"}
        return transformers.AutoConfig.for_model(config["model_type"], **fields).to_dict()

    with open_source(str(write_gguf(original, tmp_path / "m.gguf", arch, extra=extra))) as source:
        found = parsed(source.config)
    expected = parsed(original.config | UNSTORED.get(sample, {}))
    assert found.pop("head_dim", 16) == expected.pop("head_dim", 16)  # Qwen2's config leaves it out
    ignored = {"dtype", "n_inner", "hidden_act", "original_max_position_embeddings", "_sliding_window_pattern"}
    assert {k: v for k, v in found.items() if k not in ignored} == {
        k: v for k, v in expected.items() if k not in ignored
    }


def test_the_tokenizer_comes_back(tmp_path: Path) -> None:
    original = open_source("sample:tiny-gemma3")
    with open_source(
        str(write_gguf(original, tmp_path / "m.gguf", "gemma3", extra=FAMILIES["tiny-gemma3"][1]))
    ) as found:
        ours, reference = Tokenizer.from_buffer(found.tokenizer_json), Tokenizer.from_buffer(original.tokenizer_json)
    for text in ("The quick brown fox", "  a\n\n b\t12", "<|im_start|>user\nhé 日本<|im_end|>", ""):
        assert ours.encode(text).ids == reference.encode(text).ids
        assert ours.encode(text).ids[0] == 1  # begins with the bos token
        assert ours.decode(ours.encode(text).ids) == reference.decode(reference.encode(text).ids)


@pytest.mark.parametrize("quant", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantized_weights_equal_the_gguf_librarys(quant: str, tmp_path: Path) -> None:
    original = open_source("sample:tiny-llama")
    kind = gguf.GGMLQuantizationType[quant]
    with open_source(str(write_gguf(original, tmp_path / "m.gguf", "llama", quant=quant))) as source:
        found = source.weights["model.layers.1.mlp.up_proj.weight"]
        values = original.weights["model.layers.1.mlp.up_proj.weight"].read()
        assert found.dtype == quant
        assert np.array_equal(found.read(), gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind))
        # Sanity of the reference itself: the noise is that of the type, not that of a wrong layout.
        assert np.abs(found.read() - values).max() < 0.1


def test_llama3_scaling_is_recovered_from_the_frequencies(tmp_path: Path) -> None:
    original = open_source("sample:tiny-llama3")
    original.config["rope_parameters"]["original_max_position_embeddings"] = 8192
    transformers = pytest.importorskip("transformers")
    fields = {key: value for key, value in original.config.items() if key != "model_type"}
    config = transformers.LlamaConfig(**fields)
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** -(np.arange(0, 16, 2) / 16)
    divisors = (plain / scaled.numpy()).astype(np.float32)
    path = write_gguf(original, tmp_path / "m.gguf", "llama", tensors={"rope_freqs.weight": divisors})
    with open_source(str(path)) as source:
        assert source.config["rope_parameters"] == original.config["rope_parameters"]
        assert source.config["attention_bias"] is True
        assert "rope_freqs.weight" not in source.weights

    path = write_gguf(original, tmp_path / "n.gguf", "llama", tensors={"rope_freqs.weight": divisors * 1.5})
    with pytest.raises(InputError, match="Llama 3's scaling"):
        open_source(str(path))


@pytest.mark.parametrize(
    ("scaling", "extra", "expected"),
    [
        ("linear", {"rope.scaling.factor": 8.0}, {"factor": 8.0}),
        (
            "yarn",
            {"rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 256},
            {"factor": 4.0, "original_max_position_embeddings": 256},
        ),
    ],
)
def test_rotary_scaling(
    scaling: str, extra: dict[str, Any], expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _with_text(tmp_path / "m.gguf", "qwen2", {"rope.scaling.type": scaling}, extra, monkeypatch)
    with open_source(str(path)) as source:
        assert source.config["rope_parameters"] == {"rope_type": scaling, "rope_theta": 1e6} | expected


def test_an_unknown_rotary_scaling_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _with_text(
        tmp_path / "m.gguf", "qwen2", {"rope.scaling.type": "spiral"}, {"rope.scaling.factor": 2.0}, monkeypatch
    )
    with pytest.raises(InputError, match=r"'spiral' is not supported, expected linear or yarn"):
        open_source(str(path))


def _with_text(
    path: Path, arch: str, texts: dict[str, str], extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Path:
    def add_name(writer: gguf.GGUFWriter, _: str) -> None:
        for key, value in texts.items():
            writer.add_string(f"{arch}.{key}", value)

    monkeypatch.setattr(gguf.GGUFWriter, "add_name", add_name)
    return write_gguf(open_source("sample:tiny-qwen2"), path, arch, extra=extra)


def test_an_unknown_architecture_names_the_supported_ones(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match=r"'mamba' is not supported, expected one of llama, qwen2"):
        open_source(str(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [("blk.0.attn_sinks.weight", "not part of a LlamaForCausalLM"), ("mystery.weight", "not part of a Llama")],
)
def test_a_tensor_that_the_family_lacks_is_refused(tensor: str, message: str, tmp_path: Path) -> None:
    path = write_gguf(
        open_source("sample:tiny-llama"), tmp_path / "m.gguf", "llama", tensors={tensor: np.zeros(4, np.float32)}
    )
    with pytest.raises(InputError, match=message):
        open_source(str(path))


def test_missing_and_wrong_metadata_are_named(tmp_path: Path) -> None:
    path = write_gguf(open_source("sample:tiny-llama"), tmp_path / "m.gguf", "llama", extra={"rope.freq_base_": 1.0})
    data = path.read_bytes()
    path.write_bytes(data.replace(b"llama.context_length", b"llama.context_lengtn"))
    with pytest.raises(InputError, match=r"expected llama\.context_length to be int, found None"):
        open_source(str(path))
    path = write_gguf(open_source("sample:tiny-llama"), tmp_path / "n.gguf", "llama", extra={"expert_count": 8})
    with pytest.raises(InputError, match="mixtures of experts"):
        open_source(str(path))


def test_the_name_loses_the_quantization(tmp_path: Path) -> None:
    original = open_source("sample:tiny-llama")
    for stem, name in (("My-Model.Q4_K_M", "My-Model"), ("My-Model-bf16", "My-Model"), ("phi-3.5", "phi-3.5")):
        with open_source(str(write_gguf(original, tmp_path / f"{stem}.gguf", "llama"))) as source:
            assert source.name == name
            assert source.origin["kind"] == "gguf"
            assert source.origin["licence"] == "apache-2.0"
            assert source.origin["id"] == f"{stem}.gguf"


def test_the_hash_in_the_origin_is_the_files(tmp_path: Path) -> None:
    import hashlib

    path = write_gguf(open_source("sample:tiny-qwen2"), tmp_path / "m.gguf", "qwen2")
    with open_source(str(path)) as source:
        assert source.origin["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_equal_files_give_equal_tokenizers(tmp_path: Path) -> None:
    path = write_gguf(open_source("sample:tiny-qwen2"), tmp_path / "m.gguf", "qwen2")
    with open_source(str(path)) as first, open_source(str(path)) as second:
        assert first.tokenizer_json == second.tokenizer_json
        assert json.loads(first.tokenizer_json)["truncation"] is None
