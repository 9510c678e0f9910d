"""Hugging Face model directories: config.json, generation_config.json, tokenizer; weights are `weight_files`'s."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leptonc.errors import InputError
from leptonc.sources.base import Source
from leptonc.sources.hf_tokenizer import read_chat_templates, read_tokenizer, read_written
from leptonc.sources.jsonfile import read_json
from leptonc.sources.sentence import Sentence, lowered, read_sentence
from leptonc.sources.weight_files import open_weights, with_steps


def open_directory(directory: Path, *, name: str | None = None, origin: Mapping[str, str] | None = None) -> Source:
    """Opens a model directory; only the headers of its weights are read.

    Args:
        directory: Holds config.json, safetensors weights and a tokenizer.
        name: The source's name; the directory's by default.
        origin: Where it came from, for a directory that was fetched.

    Raises:
        InputError: something that a model needs is missing, damaged or of a kind that is never read (pickle).
    """
    name = name or directory.resolve().name
    sentence = read_sentence(directory)
    hub_id = origin.get("id") if origin and origin.get("kind") == "hub" else None
    fields = model_files(directory, sentence, hub_id=hub_id)
    place = directory if sentence is None else sentence.transformer
    weights, closers, warnings = open_weights(place, fields["config"])
    if sentence is not None and sentence.folders:
        weights, closers = with_steps(weights, closers, sentence.folders)
    return Source(
        name=name,
        origin={"kind": "directory", "id": name} if origin is None else dict(origin),
        weights=weights,
        closers=closers,
        library_path=directory,
        path=(place,),
        warnings=warnings,
        **fields,
    )


def model_files(
    directory: Path, sentence: Sentence | None, *, hub_id: str | None = None, written: bool = False
) -> dict[str, Any]:
    """Reads what a directory has of a model besides its weights, as fields of `Source`.

    Args:
        directory: The model's.
        sentence: What `read_sentence` finds there.
        hub_id: Its id on the hub, where it was fetched from there.
        written: Whether this compiler wrote the directory.

    Raises:
        InputError: Something is missing or damaged.
    """
    place = directory if sentence is None else sentence.transformer
    generation = place / "generation_config.json"
    config = _config(place)
    options = {} if sentence is None else sentence.config.tokenizer
    tokenizer = read_written(place) if written else read_tokenizer(place, hub_id=hub_id, options=options)
    templates = read_chat_templates(place)
    fields: dict[str, Any] = {
        "config": config,
        "tokenizer_json": tokenizer.data,
        "tokenizer_config": tokenizer.config,
        "chat_template": templates.pop("default", None),
        "chat_templates": templates,
        "generation_config": read_json(generation) if generation.is_file() else None,
    }
    if sentence is not None:
        fields["modules"] = sentence.modules
        fields["config"] |= sentence.config.config
        if sentence.config.lower_case:
            fields["tokenizer_json"] = lowered(fields["tokenizer_json"])
    return fields


def _config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        raise _no_config(directory)
    config = read_json(path)
    if not isinstance(config.get("model_type"), str):
        raise InputError(f"{path}: expected a `model_type`, found none", hint="this is not a transformers model")
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise InputError(f"{path}: expected `architectures` to be a list of names, found {str(names)[:80]}")
    if (directory / "adapter_config.json").is_file():
        raise InputError(
            f"{directory}: expected a model or an adapter, found both: transformers may add the adapter to the weights",
            hint="merge it first, model.merge_and_unload().save_pretrained(...), or remove adapter_config.json",
        )
    _refuse_quantized(path, config)
    return config


def _refuse_quantized(path: Path, config: Mapping[str, Any]) -> None:
    """Refuses quantized weights. As for transformers, null is none, and the language model's config counts too."""
    inner = config.get("text_config")
    within = inner.get("quantization_config") if isinstance(inner, dict) else None
    quantization = config.get("quantization_config") or within
    if quantization is None and config.get("quantization_config") is None:
        return
    quantization = config["quantization_config"] if quantization is None else quantization
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if method == "bitsandbytes" and not (quantization.get("load_in_8bit") or quantization.get("load_in_4bit")):
        return  # what transformers writes for a model that is not
    raise InputError(
        f"{path}: expected unquantized weights, found weights quantized by {method!r}",
        hint="give the original model: Lepton does the quantization itself",
    )


def _no_config(directory: Path) -> InputError:
    if not directory.is_dir():  # a folder that modules.json names
        return InputError(
            f"{directory}: expected a folder with config.json, found none",
            hint="download the whole model, or mend the path in modules.json",
        )
    entries = sorted(entry.name for entry in directory.iterdir())
    gguf = [entry for entry in entries if entry.endswith(".gguf")]
    if gguf:
        return InputError(f"{directory}: expected config.json, found GGUF files", hint=f"give {directory / gguf[0]}")
    if "adapter_config.json" in entries:
        return InputError(
            f"{directory}: expected a whole model, found an adapter",
            hint="merge the adapter into its base model first: model.merge_and_unload().save_pretrained(...)",
        )
    present = f"only {', '.join(entries[:5])}{', ...' if len(entries) > 5 else ''}" if entries else "an empty directory"
    return InputError(
        f"{directory}: expected config.json, found {present}",
        hint="give the directory that model.save_pretrained(...) wrote",
    )
