"""Hugging Face model directories: config.json, safetensors (one file or sharded), tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from leptonc.errors import InputError
from leptonc.sources.base import LazyTensor, Source
from leptonc.sources.hf_tokenizer import read_chat_templates, read_tokenizer, read_written
from leptonc.sources.jsonfile import read_json
from leptonc.sources.safetensors_file import SafetensorsFile
from leptonc.sources.sentence import Sentence, lowered, read_sentence

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class _Weights(Mapping[str, LazyTensor]):
    """Tensors of one or several files under one roof."""

    def __init__(self, tensors: Mapping[str, LazyTensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> LazyTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


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
    weights, closers = _open_weights(directory if sentence is None else sentence.transformer)
    if sentence is not None and sentence.folders:
        weights, closers = _with_steps(weights, closers, sentence.folders)
    return Source(
        name=name,
        origin={"kind": "directory", "id": name} if origin is None else dict(origin),
        weights=weights,
        closers=closers,
        library_path=directory,
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
        "generation_config": read_json(generation) if generation.is_file() else {},
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
    if not isinstance(config.get("architectures", []), list):
        raise InputError(f"{path}: expected `architectures` to be a list")
    if "quantization_config" in config:
        method = config["quantization_config"]
        method = method.get("quant_method") if isinstance(method, dict) else method
        raise InputError(
            f"{path}: expected unquantized weights, found weights quantized by {method!r}",
            hint="give the original model: Lepton does the quantization itself",
        )
    return config


def _no_config(directory: Path) -> InputError:
    entries = sorted(entry.name for entry in directory.iterdir())
    gguf = [entry for entry in entries if entry.endswith(".gguf")]
    if gguf:
        return InputError(f"{directory}: expected config.json, found GGUF files", hint=f"give {directory / gguf[0]}")
    if "adapter_config.json" in entries:
        return InputError(
            f"{directory}: expected a whole model, found an adapter",
            hint="merge the adapter into its base model first: model.merge_and_unload().save_pretrained(...)",
        )
    found = f"only {', '.join(entries[:5])}{', ...' if len(entries) > 5 else ''}" if entries else "an empty directory"
    return InputError(
        f"{directory}: expected config.json, found {found}",
        hint="give the directory that model.save_pretrained(...) wrote",
    )


def _open_weights(directory: Path) -> tuple[Mapping[str, LazyTensor], tuple[Callable[[], None], ...]]:
    if (directory / INDEX).is_file():
        return _open_shards(directory)
    candidates = sorted(directory.glob("*.safetensors"))
    single = directory / SINGLE
    if not single.is_file() and len(candidates) != 1:
        raise _no_weights(directory, candidates)
    file = SafetensorsFile(single if single.is_file() else candidates[0])
    return _Weights(file), (file.close,)


def _with_steps(
    weights: Mapping[str, LazyTensor], closers: tuple[Callable[[], None], ...], folders: Mapping[int, Path]
) -> tuple[Mapping[str, LazyTensor], tuple[Callable[[], None], ...]]:
    """Adds the weights of sentence-transformers' modules to the encoder's."""
    every = dict(weights)
    try:
        for index, folder in folders.items():
            own, more = _open_weights(folder)
            closers += more
            every |= {f"sentence.{index}.{name}": tensor for name, tensor in own.items()}
    except InputError:
        for closer in closers:
            closer()
        raise
    return _Weights(every), closers


def _no_weights(directory: Path, candidates: list[Path]) -> InputError:
    if candidates:
        names = ", ".join(path.name for path in candidates[:5])
        return InputError(f"{directory}: expected {SINGLE} or {INDEX}, found {names}")
    pickles = [path.name for pattern in _PICKLES for path in sorted(directory.glob(pattern))]
    if pickles:
        return InputError(
            f"{directory}: expected safetensors weights, found {pickles[0]}: pickles can run code and are never read",
            hint="convert where you trust the file: AutoModel.from_pretrained(directory).save_pretrained(directory)",
        )
    return InputError(
        f"{directory}: expected {SINGLE}, found a config.json without weights",
        hint="download the weights too, or give the hub id",
    )


def _open_shards(directory: Path) -> tuple[Mapping[str, LazyTensor], tuple[Callable[[], None], ...]]:
    path = directory / INDEX
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise InputError(f"{path}: expected a weight_map of names to files")
    files: dict[str, SafetensorsFile] = {}
    tensors: dict[str, LazyTensor] = {}
    try:
        for shard in sorted(set(places.values())):
            if Path(shard).name != shard or shard in (".", ".."):
                raise InputError(f"{path}: expected files beside it, found {shard!r}")
            if not (directory / shard).is_file():
                raise InputError(f"{directory}: expected the shard {shard}, found none", hint="download it too")
            files[shard] = SafetensorsFile(directory / shard)
        for name, shard in places.items():
            if name not in files[shard]:
                raise InputError(f"{path}: expected tensor {name!r} in {shard}, found it nowhere there")
            tensors[name] = files[shard][name]
    except InputError:
        for file in files.values():
            file.close()
        raise
    return _Weights(tensors), tuple(file.close for file in files.values())
