"""The metadata that llama.cpp reads of an architecture, as data: what each key may say, and what ends an answer.

Read off llama.cpp's `llama_model_base::load_hparams`, `src/models/*.cpp` and `llama_vocab::impl::load` (November 2026).
Defaults are its too; those of numbers are where `gguf_config.py` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from leptonc.errors import InputError
from leptonc.sources.gguf_file import GgufFile

# Keys that become a field of the config, or say nothing about what the model computes.
_COMMON = {
    "vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "rope.freq_base", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.attn_factor",
    "rope.scaling.original_context_length", "rope.scaling.finetuned", "rope.dimension_count", "tensor_data_layout",
    "expert_count",
}  # fmt: skip
_WINDOWS = {"attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa"}
_GPT2 = {
    "vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
    "attention.layer_norm_epsilon", "tensor_data_layout", "expert_count",
}  # fmt: skip
_READ: Mapping[str, set[str]] = {
    "gemma2": _COMMON | _WINDOWS | {"attn_logit_softcapping", "final_logit_softcapping"},
    "gemma3": _COMMON | _WINDOWS | {"final_logit_softcapping"},
    "gpt2": _GPT2,
}
# Keys that the loader reads of every architecture and that these models do not have: the one value that changes
# nothing, or the key that says the same.
_NEUTRAL: Mapping[str, Any] = {
    "attention.causal": True, "pooling_type": 0, "expert_used_count": 0, "expert_group_count": 0,
    "expert_group_used_count": 0, "nextn_predict_layers": 0, "embedding_length_out": "embedding_length",
    "attention.key_length_swa": "attention.key_length", "attention.value_length_swa": "attention.value_length",
    "rope.dimension_count_swa": "rope.dimension_count", "attention.head_count_kv": "attention.head_count",
    "rope.scaling.alpha": 0.0, "classifier.output_labels": None,
}  # fmt: skip

# Tokens that end an answer by their texts, whatever their type.
_END_TEXTS = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
}  # fmt: skip
# Tokens of code infilling that end one too, by their texts where the file does not give their ids.
_INFILLING: Mapping[str, set[str]] = {
    "fim_pad": {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"},
    "fim_rep": {"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"},
    "fim_sep": {"<|file_sep|>"},
}
# Ends that are none where all of these texts end an answer too.
_NOT_ENDS = (
    ("<|end|>", {"<|return|>", "<|call|>"}), ("<|end|>", {"<|return|>", "<|calls|>"}),
    ("<|end|>", {"<|call|>", "<|flush|>"}), ("<|end|>", {"<|calls|>", "<|flush|>"}),
    ("</s>", {"<|tool_response>"}), ("</s>", {"<|plamo:eos|>"}),
)  # fmt: skip
_DEFAULT_EOS = {"llama": 2, "gpt2": 11, "t5": 1}


def check_keys(file: GgufFile, architecture: str) -> list[str]:
    """Returns a warning of keys that llama.cpp does not read of this architecture, and neither does Lepton.

    Raises:
        InputError: a key says that the model computes something that its family does not.
    """
    known, ignored = _READ.get(architecture, _COMMON), []
    prefix = f"{architecture}."
    for key, value in file.metadata.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name in known:
            continue
        if name not in _NEUTRAL:
            ignored.append(key)
            continue
        neutral = _NEUTRAL[name]
        wanted = file.metadata.get(prefix + neutral, value) if isinstance(neutral, str) else neutral
        if not np.array_equal(np.unique(value), np.unique(wanted)):
            raise InputError(
                f"{file.label}: expected {key} to be {wanted}, as in every {architecture} that is supported, found "
                f"{str(value)[:80]}",
                hint="give the original Hugging Face model instead",
            )
    warnings = []
    if ignored:
        names = ", ".join(sorted(ignored))
        warnings.append(f"llama.cpp leaves out {names} of this architecture, and so does Lepton")
    if len(file.metadata.get("tokenizer.ggml.suppress_tokens", ())):
        warnings.append("the file lists tokens that llama.cpp never samples: the runtime may sample them")
    return warnings


def end_tokens(file: GgufFile) -> list[int]:
    """Returns the ids that end an answer: llama.cpp's `special_eog_ids`."""
    tokens = file.metadata.get("tokenizer.ggml.tokens", [])
    model = file.metadata.get("tokenizer.ggml.model")

    def given(name: str, default: int | None = None) -> set[int]:
        token = file.metadata.get(f"tokenizer.ggml.{name}_token_id", default)
        return {token} if type(token) is int and 0 <= token < len(tokens) else set()

    ends = given("eos", _DEFAULT_EOS.get(str(model))) | given("eot") | given("eom")
    texts = set(_END_TEXTS)
    for name, spelled in _INFILLING.items():
        ends |= (by_id := given(name))
        texts |= set() if by_id else spelled
    ends.update(index for index, text in enumerate(tokens) if text in texts)
    present = {tokens[index] for index in ends}
    dropped = {text for text, others in _NOT_ENDS if others <= present}
    return sorted(index for index in ends if tokens[index] not in dropped)
