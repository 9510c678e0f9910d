"""GGUF metadata to a Hugging Face config."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from leptonc.errors import InputError
from leptonc.sources.gguf_families import Family
from leptonc.sources.gguf_file import GgufFile
from leptonc.sources.gguf_keys import end_tokens

# Llama 3.1 and later: https://huggingface.co/meta-llama, `rope_scaling` of the config. GGUF keeps only its result.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_GEMMA3_PATTERN = 6  # every sixth layer attends to everything
_GEMMA3_LOCAL_THETA = 10_000.0
_GEMMA2_27B_LAYERS, _GEMMA3_27B_LAYERS = 46, 62


def _refused(text: str) -> InputError:
    return InputError(text, hint="give the original Hugging Face model instead")


class Metadata:
    """Typed access to the metadata of one architecture."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.file = file
        self._architecture = architecture

    def value(self, key: str, kind: type[int] | type[float], default: Any = None) -> Any:
        """Returns a number; `key` is without the architecture's prefix.

        An array that says the same for every layer counts as that number.

        Raises:
            InputError: it is of another type, or missing and without a default.
        """
        full = f"{self._architecture}.{key}"
        value = self.file.metadata.get(full, default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is kind and math.isfinite(value) and value >= 0:
            return value
        raise _refused(f"{self.file.label}: expected {full} to be {kind.__name__}, found {str(value)[:80]}")

    def optional(self, key: str, kind: type[int] | type[float]) -> Any:
        """Returns a number, or None where the file does not say."""
        return self.value(key, kind) if f"{self._architecture}.{key}" in self.file.metadata else None

    def raw(self, key: str) -> Any:
        """Returns what the file has, or None."""
        return self.file.metadata.get(f"{self._architecture}.{key}")

    def text(self, key: str, default: str) -> str:
        """Returns a string."""
        return str(self.file.metadata.get(f"{self._architecture}.{key}", default))

    def token(self, name: str) -> int | None:
        """Returns a special token's id, such as that of `bos`."""
        token = self.file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        return token if type(token) is int else None


def build_config(file: GgufFile, architecture: str, family: Family) -> dict[str, Any]:
    """Returns the config as Hugging Face would have it.

    Raises:
        InputError: the metadata lacks what the family needs, or asks for something that the family does not have.
    """
    meta = Metadata(file, architecture)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise _refused(f"{file.label}: expected the matrix token_embd.weight, found none")
    if meta.value("expert_count", int, 0):
        raise _refused(f"{file.label}: mixtures of experts are not supported from GGUF")
    if meta.value("vocab_size", int, embedding.shape[0]) != embedding.shape[0]:
        raise _refused(
            f"{file.label}: expected {architecture}.vocab_size to be the {embedding.shape[0]} rows of "
            f"token_embd.weight, found {meta.value('vocab_size', int)}"
        )
    layers = meta.value("block_count", int)
    if not 0 < layers <= len(file.tensors):
        raise _refused(f"{file.label}: expected 1 to {len(file.tensors)} layers, found block_count {layers}")
    if not meta.value("attention.head_count", int) > 0:
        raise _refused(f"{file.label}: expected at least one attention head, found none")
    config = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": meta.token("bos"),
        "eos_token_id": meta.token("eos"),
        "pad_token_id": meta.token("padding"),
        "dtype": "float32",
    }
    return config | _BUILDERS[architecture](meta)


def build_generation_config(file: GgufFile) -> dict[str, Any]:
    """Returns the ids that end an answer and the one that begins a text, as a `generation_config.json` has them."""
    meta = Metadata(file, "")
    ends = end_tokens(file)
    config = {"bos_token_id": meta.token("bos"), "eos_token_id": ends, "pad_token_id": meta.token("padding")}
    return {key: value for key, value in config.items() if value not in (None, [])}


def _head_dim(meta: Metadata) -> int:
    heads, width = meta.value("attention.head_count", int), meta.value("embedding_length", int)
    head_dim = int(meta.value("attention.key_length", int, width // heads))
    value_dim = meta.value("attention.value_length", int, width // heads)
    if value_dim != head_dim or head_dim < 2:
        raise _refused(f"{meta.file.label}: expected keys and values of one width, found {head_dim} and {value_dim}")
    return head_dim


def _decoder(meta: Metadata) -> dict[str, Any]:
    heads = meta.value("attention.head_count", int)
    kv_heads = meta.value("attention.head_count_kv", int, heads)
    if kv_heads < 1 or heads % kv_heads:
        raise _refused(f"{meta.file.label}: expected {heads} heads to share key/value heads evenly, found {kv_heads}")
    return {
        "hidden_size": meta.value("embedding_length", int),
        "intermediate_size": meta.value("feed_forward_length", int),
        "num_hidden_layers": meta.value("block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": _head_dim(meta),
        "max_position_embeddings": meta.value("context_length", int),
        "rms_norm_eps": meta.value("attention.layer_norm_rms_epsilon", float),
    }


def _rope(meta: Metadata) -> dict[str, Any]:
    """Returns `rope_parameters` of the whole-head rotary embedding, scaled as llama.cpp scales it."""
    rotary, head_dim = meta.optional("rope.dimension_count", int), _head_dim(meta)
    if rotary is not None and rotary != head_dim:
        raise _refused(f"{meta.file.label}: expected rotary embeddings over {head_dim} dimensions, found {rotary}")
    theta = meta.value("rope.freq_base", float, 10_000.0)
    scaling, factor, attention = _scaling(meta)
    if "rope_freqs.weight" in meta.file.tensors:
        if factor != 1 or attention != 1:
            raise _refused(f"{meta.file.label}: expected rope_freqs.weight or rope.scaling, found both")
        return {"rope_theta": theta} | _llama3_scaling(meta, theta, head_dim)
    if scaling == "yarn" and (factor, attention) != (1, 1):
        original = meta.value("context_length", int)
        # llama.cpp multiplies the paper's factor; transformers' field is in its place.
        paper = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
        scaled = {} if attention == 1 else {"attention_factor": paper * attention}
        original = meta.value("rope.scaling.original_context_length", int, original)
        kept = {"original_max_position_embeddings": original}
        return {"rope_theta": theta, "rope_type": "yarn", "factor": factor} | kept | scaled
    if attention != 1:
        raise _refused(f"{meta.file.label}: rope.scaling.attn_factor is supported with yarn alone, found {attention}")
    if factor == 1:
        return {"rope_theta": theta, "rope_type": "default"}
    return {"rope_theta": theta, "rope_type": "linear", "factor": factor}


def _scaling(meta: Metadata, *supported: str) -> tuple[str, float, float]:
    """Returns the rotary scaling's type, factor and what cosines and sines are multiplied by.

    As in llama.cpp, a scaling without a type is linear, a factor of 0 or none is 1, and its old key is read too.
    """
    scaling = meta.text("rope.scaling.type", "linear")
    if scaling not in ("none", "linear", "yarn", *supported):
        raise _refused(f"{meta.file.label}: the rotary scaling {scaling!r} is not supported, expected linear or yarn")
    old = meta.value("rope.scale_linear", float, 0.0)
    factor = float(meta.value("rope.scaling.factor", float, old)) or 1.0
    return scaling, 1.0 if scaling == "none" else factor, float(meta.value("rope.scaling.attn_factor", float, 1.0))


def _llama3_scaling(meta: Metadata, theta: float, head_dim: int) -> dict[str, Any]:
    """Recovers Llama 3's scaling from the divisors of the frequencies that GGUF stores in its place."""
    divisors = meta.file.tensors["rope_freqs.weight"].read()
    factor = float(divisors.max())
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    frequencies = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = frequencies * _LLAMA3["original_max_position_embeddings"] / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-4, atol=0):
        raise InputError(
            f"{meta.file.label}: expected rope_freqs.weight to hold Llama 3's scaling, found other frequencies",
            hint="give the original Hugging Face model instead",
        )
    return {"rope_type": "llama3", "factor": factor} | _LLAMA3


def _llama(meta: Metadata) -> dict[str, Any]:
    tensors = meta.file.tensors
    return _decoder(meta) | {
        "hidden_act": "silu",
        "rope_parameters": _rope(meta),
        "attention_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in tensors,
    }


def _qwen2(meta: Metadata) -> dict[str, Any]:
    return _decoder(meta) | {"hidden_act": "silu", "rope_parameters": _rope(meta), "use_sliding_window": False}


def _qwen3(meta: Metadata) -> dict[str, Any]:
    bias = "blk.0.attn_q.bias" in meta.file.tensors
    return _qwen2(meta) | {"attention_bias": bias}


def _gemma(meta: Metadata) -> dict[str, Any]:
    activation = "gelu_pytorch_tanh"
    return _decoder(meta) | {
        "hidden_act": activation,
        "hidden_activation": activation,
        "rope_parameters": _rope(meta),
    }


def _query_scale(meta: Metadata, layers_of_27b: int) -> int:
    """The 27B models scale queries by the width of a share of the embedding, all others by the head's width."""
    if meta.value("block_count", int) == layers_of_27b:
        return int(meta.value("embedding_length", int) // meta.value("attention.head_count", int))
    return _head_dim(meta)


def _cap(meta: Metadata, key: str, default: float) -> float:
    """Returns a soft cap of logits; llama.cpp divides by it, and 0 gives it no numbers."""
    cap = float(meta.value(key, float, default))
    if cap == 0:
        raise _refused(f"{meta.file.label}: expected {key} to be greater than 0, found 0")
    return cap


def _gemma2(meta: Metadata) -> dict[str, Any]:
    rope = _rope(meta)
    local = meta.value("rope.freq_base_swa", float, rope["rope_theta"])
    if local != rope["rope_theta"]:
        raise _refused(f"{meta.file.label}: expected one rotary base in all layers, found {local} in some")
    return _gemma(meta) | {
        "query_pre_attn_scalar": _query_scale(meta, _GEMMA2_27B_LAYERS),
        "sliding_window": meta.value("attention.sliding_window", int, 4096),
        "layer_types": _layer_types(meta, 2),
        "attn_logit_softcapping": _cap(meta, "attn_logit_softcapping", 50.0),
        "final_logit_softcapping": _cap(meta, "final_logit_softcapping", 30.0),
    }


def _gemma3(meta: Metadata) -> dict[str, Any]:
    window = meta.optional("attention.sliding_window", int) or 0
    config = _gemma(meta) | {
        "query_pre_attn_scalar": _query_scale(meta, _GEMMA3_27B_LAYERS),
        "sliding_window": window or 4096,
        "layer_types": _layer_types(meta, _GEMMA3_PATTERN if window else 1, fixed=not window),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": meta.value("final_logit_softcapping", float, 0.0) or None,
        "rope_parameters": {
            "full_attention": _rope(meta),
            "sliding_attention": {
                "rope_theta": meta.value("rope.freq_base_swa", float, _GEMMA3_LOCAL_THETA),
                "rope_type": "default",
            },
        },
    }
    del config["hidden_act"]
    return config


def _layer_types(meta: Metadata, pattern: int, *, fixed: bool = False) -> list[str]:
    """Returns which layers have a window: the file says so layer by layer, or every which one has none."""
    layers = meta.value("block_count", int)
    given = None if fixed else meta.raw("attention.sliding_window_pattern")
    if isinstance(given, np.ndarray):
        if len(given) != layers:
            raise _refused(f"{meta.file.label}: expected a window pattern of {layers} layers, found {len(given)}")
        windows = [bool(flag) for flag in given]
    else:
        every = pattern if given is None else meta.value("attention.sliding_window_pattern", int)
        windows = [every == 0 or index % every < every - 1 for index in range(layers)]
    return ["sliding_attention" if window else "full_attention" for window in windows]


def _phi3(meta: Metadata) -> dict[str, Any]:
    config, tensors = _decoder(meta), meta.file.tensors
    head_dim = config.pop("head_dim")
    rotary = meta.value("rope.dimension_count", int, head_dim)
    rope: dict[str, Any] = {
        "rope_theta": meta.value("rope.freq_base", float, 10_000.0),
        "rope_type": "default",
    }
    if rotary != head_dim:
        rope["partial_rotary_factor"] = rotary / head_dim
    original = meta.value("rope.scaling.original_context_length", int, config["max_position_embeddings"])
    _, factor, attention = _scaling(meta, "longrope")
    long = "rope_factors_long.weight" in tensors
    if factor != 1 or (attention != 1 and not long):
        raise _refused(f"{meta.file.label}: expected rotary factors or none, found rope.scaling of another kind")
    if "rope_factors_long.weight" in tensors and "rope_factors_short.weight" in tensors:
        rope |= {
            "rope_type": "longrope",
            "long_factor": tensors["rope_factors_long.weight"].read().astype(float).tolist(),
            "short_factor": tensors["rope_factors_short.weight"].read().astype(float).tolist(),
            "original_max_position_embeddings": original,
            "attention_factor": attention,
        }
    return config | {
        "hidden_act": "silu",
        "rope_parameters": rope,
        "original_max_position_embeddings": original,
        "sliding_window": None,  # llama.cpp has Phi's windows switched off
    }


def _gpt2(meta: Metadata) -> dict[str, Any]:
    return {
        "n_embd": meta.value("embedding_length", int),
        "n_inner": meta.value("feed_forward_length", int),
        "n_layer": meta.value("block_count", int),
        "n_head": meta.value("attention.head_count", int),
        "n_positions": meta.value("context_length", int),
        "layer_norm_epsilon": meta.value("attention.layer_norm_epsilon", float),
        "activation_function": "gelu_new",
    }


_BUILDERS: dict[str, Callable[[Metadata], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "gpt2": _gpt2,
}
