"""How sentence-transformers reads the encoder and the tokenizer of a model: the config of its Transformer module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leptonc.errors import InputError
from leptonc.sources.jsonfile import read_json

# Under these names versions of the library saved it; the first that has something in it counts.
NAMES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
_OUTPUTS = {"feature-extraction": "last_hidden_state", "sequence-classification": "logits"}
_RENAMED = {"model_args": "model_kwargs", "tokenizer_args": "processor_kwargs", "config_args": "config_kwargs"}
# Where files come from, and who may read them: nothing that a local directory depends on.
_FETCHING = {
    "revision", "code_revision", "token", "cache_dir", "local_files_only", "force_download", "trust_remote_code",
    "subfolder", "use_safetensors",
}  # fmt: skip
# How transformers runs it, which changes no more than the last bits; weights are read as float32 here.
_RUNNING = {"torch_dtype", "dtype", "attn_implementation", "device_map", "low_cpu_mem_usage", "add_pooling_layer"}
_IGNORED = {"unpad_inputs", "backend", "module_output_name"}
_KNOWN = {
    "max_seq_length", "do_lower_case", "transformer_task", "modality_config", "processing_kwargs", "query_length",
    "document_length", "query_expansion", "tokenizer_name_or_path", *_RENAMED.values(), *_IGNORED,
}  # fmt: skip


@dataclass(frozen=True)
class TransformerConfig:
    """How an encoder is read.

    Attributes:
        max_length: Most tokens of a text; None leaves it to the tokenizer's and the encoder's own configs.
        lower_case: Whether texts are made lower case before anything else.
        config: Entries that replace those of config.json.
        tokenizer: What transformers' `AutoTokenizer` is called with.
    """

    max_length: int | None = None
    lower_case: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)


def read_transformer(folder: Path, task: str) -> TransformerConfig:
    """Reads the config of the Transformer module whose files lie in `folder`.

    Args:
        folder: The module's directory.
        task: What the model is expected to be loaded as: "feature-extraction" or "sequence-classification".

    Raises:
        InputError: It asks for what is not supported, or is not what the library saves.
    """
    path, saved = folder / NAMES[0], dict[str, Any]()
    for name in NAMES:
        if (folder / name).is_file() and (saved := read_json(folder / name)):
            path = folder / name
            break
    config = {_RENAMED.get(key, key): value for key, value in saved.items()}
    _check(path, config, task)
    groups = {name: _entries(path, name, config.get(name)) for name in _RENAMED.values()}
    _refuse_others(path, "model_kwargs", groups["model_kwargs"], _RUNNING)
    tokenizer = groups["processor_kwargs"]
    limit = config.get("max_seq_length") if tokenizer.get("model_max_length") is None else tokenizer["model_max_length"]
    limit = _text_length(path, config.get("processing_kwargs")) or limit
    if limit is not None and (type(limit) is not int or not 1 <= limit < 2**31):
        raise InputError(f"{path}: expected max_seq_length to be a positive integer or null, found {str(limit)[:80]!r}")
    lower = config.get("do_lower_case", False)
    if not isinstance(lower, bool):
        raise InputError(f"{path}: expected do_lower_case to be true or false, found {str(lower)[:80]!r}")
    return TransformerConfig(limit, lower, groups["config_kwargs"], tokenizer)


def _check(path: Path, config: Mapping[str, Any], task: str) -> None:
    unknown = sorted(set(config) - _KNOWN)
    if unknown:
        raise InputError(
            f"{path}: expected what sentence-transformers saves, found {', '.join(map(repr, unknown))[:120]}",
            hint="take out what the model does not need, or save it with a current sentence-transformers",
        )
    for name in ("query_length", "document_length", "query_expansion", "tokenizer_name_or_path"):
        if config.get(name) is not None:
            raise InputError(f"{path}: expected no {name}, found {str(config[name])[:80]!r}: it is not supported")
    named = config.get("transformer_task", "feature-extraction")
    if named != task:
        raise InputError(
            f"{path}: expected transformer_task {task!r}, found {str(named)[:80]!r}",
            hint="models that score words of a vocabulary, or generate, are not supported as embedding models",
        )
    modes = config.get("modality_config")
    if modes is None:
        return
    text = modes.get("text") if isinstance(modes, dict) else None
    output = text.get("method_output_name") if isinstance(text, dict) else None
    if isinstance(modes, dict) and "message" in modes:
        raise InputError(
            f"{path}: expected a model that reads texts, found one that reads chat messages (modality_config)",
            hint="such models are not supported",
        )
    if (
        not isinstance(text, dict)
        or text.get("method") != "forward"
        or output not in (_OUTPUTS[task], [_OUTPUTS[task]])
    ):
        raise InputError(
            f"{path}: expected modality_config to take text and {_OUTPUTS[task]} of the encoder's forward, found "
            f"{str(modes)[:120]}"
        )


def _entries(path: Path, name: str, value: Any) -> dict[str, Any]:
    """A group of options without those that say where files come from."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected {name} to be options by name, found {type(value).__name__}")
    return {key: entry for key, entry in value.items() if key not in _FETCHING}


def _refuse_others(path: Path, name: str, given: Mapping[str, Any], allowed: set[str]) -> None:
    others = sorted(set(given) - allowed)
    if others:
        raise InputError(
            f"{path}: {name}: expected options of {', '.join(sorted(allowed))}, found {others[0][:80]!r}",
            hint="write it into config.json, if that is what it stands for",
        )


def _text_length(path: Path, value: Any) -> Any:
    """Reads `processing_kwargs`: of what the tokenizer can be called with, its limit."""
    given = {key: entry for key, entry in _entries(path, "processing_kwargs", value).items() if entry}
    _refuse_others(path, "processing_kwargs", given, {"text"})
    text = _entries(path, "processing_kwargs.text", given.get("text"))
    _refuse_others(path, "processing_kwargs.text", text, {"max_length", "padding", "truncation"})
    usual = {"padding": (True, "longest"), "truncation": (True, "longest_first")}
    for name, values in usual.items():
        if text.get(name, True) not in values:
            raise InputError(
                f"{path}: processing_kwargs.text: expected {name} to be one of {values}, found {text[name]!r}"
            )
    return text.get("max_length")
