"""A converter to GGUF for tests, written from llama.cpp's convert_hf_to_gguf.py and the `gguf` library's name tables.

It shares no table with the code under test, so a wrong name or a transform that is not undone is seen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from leptonc.sources import Source

_NORMAL, _CONTROL = 1, 3
_QUANTS = gguf.GGMLQuantizationType


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """`LlamaModel.permute` of the converter."""
    rows = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return rows.swapaxes(1, 2).reshape(weights.shape)


def forward(arch: str, name: str, array: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """What the converter does to the values of one Hugging Face tensor."""
    if arch == "llama" and ".q_proj." in name:
        return permute(array, config["num_attention_heads"])
    if arch == "llama" and ".k_proj." in name:
        return permute(array, config["num_key_value_heads"])
    if arch.startswith("gemma") and name.endswith("norm.weight"):
        return array + 1
    if arch == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return array.T
    return array


def write_gguf(
    source: Source,
    path: Path,
    arch: str,
    *,
    quant: str = "F32",
    extra: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """Writes a decoder with the metadata that llama.cpp's converter writes; `extra` adds float or int keys."""
    config = source.config
    writer = gguf.GGUFWriter(path, arch)
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    writer.add_name(source.name)
    writer.add_license("apache-2.0")
    writer.add_block_count(layers)
    writer.add_context_length(config.get("max_position_embeddings", config.get("n_positions")))
    width = config.get("hidden_size", config.get("n_embd"))
    heads = config.get("num_attention_heads", config.get("n_head"))
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(config.get("intermediate_size", 4 * width))
    writer.add_head_count(heads)
    if arch == "gpt2":
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    else:
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        rope = config["rope_parameters"]
        writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
        head_dim = config.get("head_dim", width // heads)
        if head_dim != width // heads:
            writer.add_key_length(head_dim)
            writer.add_value_length(head_dim)
        if arch in ("llama", "phi3"):
            writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1)))
    for key, value in (extra or {}).items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"{arch}.{key}", value)
    _add_tokenizer(writer, source)
    names = _names(arch, layers)
    for name, lazy in source.weights.items():
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        _add_tensor(writer, target, forward(arch, name, lazy.read(), config), quant)
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _names(arch: str, layers: int) -> gguf.TensorNameMap:
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    return gguf.get_tensor_name_map(kind, layers)


def _add_tensor(writer: gguf.GGUFWriter, name: str, array: np.ndarray, quant: str) -> None:
    array = np.ascontiguousarray(array, dtype=np.float32)
    kind = _QUANTS[quant]
    if quant == "F32" or array.ndim == 1 or array.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        writer.add_tensor(name, array)
    else:
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)


def _add_tokenizer(writer: gguf.GGUFWriter, source: Source) -> None:
    document = json.loads(source.tokenizer_json)
    vocab = document["model"]["vocab"]
    special = {token["content"] for token in document["added_tokens"]}
    tokens = sorted(vocab, key=vocab.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([_CONTROL if token in special else _NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in document["model"]["merges"]])
    writer.add_bos_token_id(source.config["bos_token_id"])
    writer.add_eos_token_id(source.config["eos_token_id"])
    writer.add_pad_token_id(source.config["pad_token_id"])
    writer.add_add_bos_token(document["post_processor"] is not None)
    if source.chat_template is not None:
        writer.add_chat_template(source.chat_template)
