"""Writes any source as a Hugging Face directory, one tensor in memory at a time."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

_INTEGERS = {"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}
_SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2} | {
    "U8": 1,
    "BOOL": 1,
}


class _Tensor(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    def read(self) -> NDArray[Any]: ...


class _Source(Protocol):
    config: dict[str, Any]
    weights: Mapping[str, Any]
    tokenizer_json: bytes
    tokenizer_config: dict[str, Any]
    chat_template: str | None
    chat_templates: dict[str, str]
    generation_config: dict[str, Any] | None
    modules: Any


def to_bfloat16(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounds float32 to bfloat16 bit patterns, to nearest, ties to even; NaN is kept NaN."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(array), quiet, rounded).astype(np.uint16)


_CASTS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "F32": lambda array: array.astype("<f4", copy=False),
    "F16": lambda array: array.astype("<f2"),
    "BF16": to_bfloat16,
}


def write_directory(
    source: _Source, path: Path, *, dtype: str = "F32", shard_bytes: int | None = None, tokenizer: bool = True
) -> Path:
    """Writes config, weights, tokenizer, chat template and sentence-transformers modules; returns `path`.

    Args:
        source: Any source.
        path: A directory; made if it is not there.
        dtype: How floats are stored: "F32", "F16" or "BF16".
        shard_bytes: Most bytes of weights in a file (a larger tensor has a file of its own); None writes one file.
        tokenizer: Whether the tokenizer's files are written.
    """
    path.mkdir(parents=True, exist_ok=True)
    write_model_files(source, path, tokenizer=tokenizer)
    _write_weights(path, source.weights, dtype, shard_bytes)
    return path


def write_model_files(source: _Source, path: Path, *, tokenizer: bool = True) -> None:
    """Writes what a model's directory has besides its weights to `path`, which is there."""
    _write_json(path / "config.json", source.config)
    if source.generation_config is not None:
        _write_json(path / "generation_config.json", source.generation_config)
    if tokenizer:
        (path / "tokenizer.json").write_bytes(source.tokenizer_json)
        _write_json(path / "tokenizer_config.json", {"tokenizer_class": "TokenizersBackend"} | source.tokenizer_config)
    if source.chat_template is not None:
        (path / "chat_template.jinja").write_text(source.chat_template, encoding="utf-8")
    for name, template in source.chat_templates.items():
        folder = path / "additional_chat_templates"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.jinja").write_text(template, encoding="utf-8")
    if source.modules is not None:
        _write_modules(path, source)


def write_safetensors(path: Path, tensors: Mapping[str, _Tensor], *, dtype: str = "F32") -> None:
    """Writes lazy tensors as one safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, tensor in tensors.items():
        stored = tensor.dtype if tensor.dtype in _INTEGERS else dtype
        end = position + math.prod(tensor.shape) * _SIZES[stored]
        header[name] = {"dtype": stored, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header, separators=(",", ":")).encode("utf-8")
    encoded += b" " * (-len(encoded) % 8)  # so that tensors lie aligned
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for tensor in tensors.values():
            array = tensor.read()
            array = array if tensor.dtype in _INTEGERS else _CASTS[dtype](array)
            file.write(np.ascontiguousarray(array).data)


def _write_weights(path: Path, weights: Mapping[str, _Tensor], dtype: str, shard_bytes: int | None) -> None:
    if shard_bytes is None:
        write_safetensors(path / "model.safetensors", weights, dtype=dtype)
        return
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in weights.items():
        size = math.prod(tensor.shape) * _SIZES[tensor.dtype if tensor.dtype in _INTEGERS else dtype]
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(path / file, {name: weights[name] for name in names}, dtype=dtype)
        places.update(dict.fromkeys(names, file))
    _write_json(path / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})


def _write_modules(path: Path, source: _Source) -> None:
    """Writes what `leptonc.sources.sentence` reads, but for the weights of steps."""
    modules = source.modules
    steps = [] if modules.pairs else modules.chain
    places = [("Transformer", ""), *((step.kind, f"{at}_{step.kind}") for at, step in enumerate(steps, start=1))]
    listing = [
        {"idx": index, "name": str(index), "path": folder, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, folder) in enumerate(places)
    ]
    _write_json(path / "modules.json", listing)
    task = {"transformer_task": "sequence-classification"} if modules.pairs else {}
    _write_json(path / "sentence_bert_config.json", {"max_seq_length": modules.max_seq_length, **task})
    _write_json(path / "config_sentence_transformers.json", _settings(modules))
    for step, (_, folder) in zip(steps, places[1:], strict=True):
        options = dict(step.options)
        if "activation_function" in options:
            options["activation_function"] = f"torch.nn.{options['activation_function']}"
        if step.kind == "Pooling":
            options["embedding_dimension"] = source.config.get("hidden_size", source.config.get("dim"))
        (path / folder).mkdir(exist_ok=True)
        _write_json(path / folder / "config.json", options)


def _settings(modules: Any) -> dict[str, Any]:
    common = {"prompts": modules.prompts, "default_prompt_name": modules.default_prompt}
    if modules.pairs:
        names = {"sigmoid": "torch.nn.modules.activation.Sigmoid", "none": "torch.nn.modules.linear.Identity"}
        return {"model_type": "CrossEncoder", "activation_fn": names.get(modules.score_function), **common}
    own = {"similarity_fn_name": modules.similarity, "truncate_dim": modules.truncate_dim}
    return {"model_type": "SentenceTransformer", **own, **common}


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
