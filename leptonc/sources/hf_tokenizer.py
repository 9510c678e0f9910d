"""The tokenizer of a Hugging Face directory: `tokenizer.json`, or one made from the older files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from leptonc.errors import InputError, require
from leptonc.sources.jsonfile import read_bytes, read_json, read_text

_SLOW_FILES = ("vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Long lists that say again what tokenizer.json says; the chat template has its own place.
_DROPPED = ("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens", "chat_template")


def read_tokenizer(directory: Path) -> bytes:
    """Returns the tokenizer in the `tokenizers` library's format.

    Raises:
        InputError: there is none, or it cannot be made from the files that there are.
    """
    path = directory / "tokenizer.json"
    if path.is_file():
        return without_limits(read_bytes(path), str(path))
    if not any((directory / name).is_file() for name in _SLOW_FILES):
        raise InputError(
            f"{directory}: expected tokenizer.json, found no tokenizer",
            hint="save the tokenizer beside the model: tokenizer.save_pretrained(directory)",
        )
    return _convert(directory)


def without_limits(data: bytes, label: str) -> bytes:
    """Drops truncation and padding from a `tokenizer.json`: the runtime does both, to its own lengths."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{label}: expected JSON, found an error: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise InputError(f"{label}: expected a tokenizer with a `model`, found none")
    if document.get("truncation") is None and document.get("padding") is None:
        return data
    document["truncation"] = document["padding"] = None
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def _convert(directory: Path) -> bytes:
    transformers = require("transformers", extra="compiler", needed_by="a model without tokenizer.json")
    failures = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
        text: str = tokenizer.backend_tokenizer.to_str()
    except failures as error:
        reason = str(error).strip().splitlines()
        raise InputError(
            f"{directory}: the tokenizer's older files cannot be converted: {reason[0] if reason else repr(error)}",
            hint="save it in the current format: AutoTokenizer.from_pretrained(directory).save_pretrained(directory)",
        ) from error
    return without_limits(text.encode("utf-8"), str(directory))


def read_tokenizer_config(directory: Path) -> dict[str, Any]:
    """Returns `tokenizer_config.json` with special tokens as plain text, completed by `special_tokens_map.json`."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = directory / name
        if path.is_file():
            found = read_json(path)
            config.update({key: _text(key, value) for key, value in found.items() if value is not None})
    return {key: value for key, value in config.items() if key not in _DROPPED}


def _text(key: str, value: Any) -> Any:
    if key in SPECIAL_TOKENS and isinstance(value, dict):
        return value.get("content")
    return value


def read_chat_template(directory: Path) -> str | None:
    """Returns the chat template from whichever of the three places has it, the current one first."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return read_text(path)
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = directory / name
        template = read_json(path).get("chat_template") if path.is_file() else None
        if isinstance(template, list):
            template = next((item.get("template") for item in template if item.get("name") == "default"), None)
        if isinstance(template, str):
            return template
    return None
