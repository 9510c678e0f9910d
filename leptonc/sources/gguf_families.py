"""GGUF architectures as data: what their tensors are called in Hugging Face models, and how the values differ.

Names: `gguf.constants.TENSOR_NAMES` and llama.cpp's converter (convert_hf_to_gguf.py), whose changes to the values are
undone here: rows of q/k that it reordered for interleaved rotary embeddings, one added to Gemma's norms, GPT-2's
transposed linears.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from leptonc.errors import InputError
from leptonc.sources.base import Array, ComputedTensor, LazyTensor
from leptonc.sources.gguf_file import GgufFile, GgufTensor

_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,5})\.(.+)\.(weight|bias)")
# What the config, not the model, is made of.
CONFIG_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class Family:
    """One GGUF architecture.

    Attributes:
        architecture: The Hugging Face model class.
        model_type: The Hugging Face config's type.
        layer: A layer's modules, by their GGUF name inside `blk.N.`.
        outer: The modules outside the layers, by GGUF name.
        layers: Prefix of a layer in the Hugging Face model.
        undo: GGUF module name (of a layer or outside) to the name of the transform that restores its values.
    """

    architecture: str
    model_type: str
    layer: Mapping[str, str]
    outer: Mapping[str, str]
    layers: str = "model.layers"
    undo: Mapping[str, str] = field(default_factory=dict)


_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GATED_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_LLAMA = _ATTENTION | _GATED_MLP | _NORMS
_SANDWICH_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GEMMA2 = _ATTENTION | _GATED_MLP | _SANDWICH_NORMS
_ONE_LESS = dict.fromkeys(["output_norm", *_SANDWICH_NORMS, *_QK_NORM], "subtract_one")
_PHI3 = {
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
} | _NORMS
_GPT2 = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_GPT2_OUTER = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_INTERLEAVED = {"attn_q": "split_query_halves", "attn_k": "split_key_halves"}
_CONV1D = dict.fromkeys(["attn_qkv", "attn_output", "ffn_up", "ffn_down"], "transpose")

FAMILIES: Mapping[str, Family] = {
    "llama": Family("LlamaForCausalLM", "llama", _LLAMA, _OUTER, undo=_INTERLEAVED),
    "qwen2": Family("Qwen2ForCausalLM", "qwen2", _LLAMA, _OUTER),
    "qwen3": Family("Qwen3ForCausalLM", "qwen3", _LLAMA | _QK_NORM, _OUTER),
    "gemma": Family("GemmaForCausalLM", "gemma", _LLAMA, _OUTER, undo=_ONE_LESS),
    "gemma2": Family("Gemma2ForCausalLM", "gemma2", _GEMMA2, _OUTER, undo=_ONE_LESS),
    "gemma3": Family("Gemma3ForCausalLM", "gemma3_text", _GEMMA2 | _QK_NORM, _OUTER, undo=_ONE_LESS),
    "phi3": Family("Phi3ForCausalLM", "phi3", _PHI3, _OUTER),
    "gpt2": Family("GPT2LMHeadModel", "gpt2", _GPT2, _GPT2_OUTER, layers="transformer.h", undo=_CONV1D),
}


def family_of(file: GgufFile) -> tuple[str, Family]:
    """Returns the file's architecture and what is known of it.

    Raises:
        InputError: nothing is known of it, or the file is a part of a split model.
    """
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise InputError(f"{file.label}: expected general.architecture in the metadata, found {name!r}")
    parts = file.metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise InputError(
            f"{file.label}: expected a whole model, found one of {parts} parts",
            hint="join the parts first: llama-gguf-split --merge FIRST-PART.gguf WHOLE.gguf",
        )
    if name not in FAMILIES:
        raise InputError(
            f"{file.label}: the GGUF architecture {name!r} is not supported, expected one of {', '.join(FAMILIES)}",
            hint="give the original Hugging Face model instead: there more architectures are supported",
        )
    return name, FAMILIES[name]


def map_weights(file: GgufFile, family: Family, config: Mapping[str, Any]) -> dict[str, LazyTensor]:
    """Returns lazy tensors under Hugging Face names, with Hugging Face values.

    Raises:
        InputError: the file holds a tensor that the family does not have.
    """
    heads = {"split_query_halves": "num_attention_heads", "split_key_halves": "num_key_value_heads"}
    transforms: dict[str, Callable[[Array], Array]] = {
        "subtract_one": lambda array: array - np.float32(1),
        "transpose": lambda array: np.ascontiguousarray(array.T),
        "split_query_halves": lambda array: _split_halves(array, config["num_attention_heads"]),
        "split_key_halves": lambda array: _split_halves(array, config["num_key_value_heads"]),
    }
    weights: dict[str, LazyTensor] = {}
    for name, tensor in file.tensors.items():
        if name in CONFIG_TENSORS:
            continue
        module, target = _target(name, family)
        if target is None:
            raise InputError(
                f"{file.label}: tensor {name!r} is not part of a {family.architecture}",
                hint="give the original Hugging Face model instead",
            )
        undo = family.undo.get(module)
        if undo in heads and tensor.shape[0] % (2 * config[heads[undo]]):
            raise InputError(
                f"{file.label}: expected the rows of {name!r} to be halves of {config[heads[undo]]} heads, "
                f"found {tensor.shape[0]} rows"
            )
        weights[target] = tensor if undo is None else _transformed(tensor, undo, transforms[undo])
    return weights


def _target(name: str, family: Family) -> tuple[str, str | None]:
    match = _BLOCK.fullmatch(name)
    if match:
        index, module, kind = match.groups()
        leaf = family.layer.get(module)
        return module, leaf and f"{family.layers}.{index}.{leaf}.{kind}"
    module, _, kind = name.rpartition(".")
    leaf = family.outer.get(module) if kind in ("weight", "bias") else None
    return module, leaf and f"{leaf}.{kind}"


def _transformed(tensor: GgufTensor, undo: str, transform: Callable[[Array], Array]) -> LazyTensor:
    if undo == "transpose" and len(tensor.shape) == 1:  # a linear's bias
        return tensor
    shape = tensor.shape[::-1] if undo == "transpose" else tensor.shape
    return ComputedTensor(shape, tensor.dtype, lambda: transform(tensor.read()))


def _split_halves(array: Array, heads: int) -> Array:
    """Undoes `LlamaModel.permute` of llama.cpp's converter: a head's rows, pairs interleaved, become two halves."""
    paired = array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:])
    return np.ascontiguousarray(paired.swapaxes(1, 2).reshape(array.shape))
