"""What a sentence-transformers directory says about the steps after its encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leptonc.errors import InputError
from leptonc.sources.base import SentenceModules
from leptonc.sources.jsonfile import read_json, read_json_list

# Modes of the `Pooling` module's two spellings: a flag each in older models, one name in later ones.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_SUPPORTED = ("mean", "cls", "max")


def read_modules(directory: Path) -> SentenceModules | None:
    """Reads `modules.json` and what it refers to; None where there is no such file.

    Raises:
        InputError: a module is not Transformer, Pooling or Normalize, or the pooling mode is not supported.
    """
    listing = directory / "modules.json"
    if not listing.is_file():
        return None
    pooling, normalize, max_length = None, False, None
    for module in read_json_list(listing):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        folder = _subdirectory(directory, str(module.get("path", "")))
        if kind == "Transformer":
            max_length = _max_seq_length(folder)
        elif kind == "Pooling":
            pooling = _pooling(folder / "config.json")
        elif kind == "Normalize":
            normalize = True
        else:
            raise InputError(
                f"{listing}: the sentence-transformers module {kind!r} is not supported, "
                "expected Transformer, Pooling and Normalize only",
                hint="use an embedding model without extra layers after pooling",
            )
    if pooling is None:
        raise InputError(f"{listing}: expected a Pooling module, found none")
    return SentenceModules(pooling=pooling, normalize=normalize, max_seq_length=max_length)


def _subdirectory(directory: Path, path: str) -> Path:
    folder = (directory / path).resolve()
    if not folder.is_relative_to(directory.resolve()):
        raise InputError(f"{directory / 'modules.json'}: expected paths inside the model, found {path!r}")
    return directory / path


def _max_seq_length(folder: Path) -> int | None:
    path = folder / "sentence_bert_config.json"
    value = read_json(path).get("max_seq_length") if path.is_file() else None
    if value is not None and (type(value) is not int or value < 1):
        raise InputError(f"{path}: expected max_seq_length to be a positive integer or null, found {value!r}")
    return value


def _pooling(path: Path) -> str:
    config: dict[str, Any] = read_json(path)
    if config.get("include_prompt") is False:
        raise InputError(f"{path}: pooling that leaves the prompt out (include_prompt: false) is not supported")
    if "pooling_mode" in config:
        mode = config["pooling_mode"]
        modes = [mode] if isinstance(mode, str) else list(mode)
    else:
        modes = [mode for flag, mode in _FLAGS.items() if config.get(flag)]
    if len(modes) != 1 or modes[0] not in _SUPPORTED:
        raise InputError(f"{path}: expected one pooling mode of {', '.join(_SUPPORTED)}, found {modes or 'none'}")
    return str(modes[0])
