"""Records of a model for the manifest: its tokenizer, its parts, its settings."""

from __future__ import annotations

import functools
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec

from leptonc import __version__
from leptonc.frontend.capture import Captured
from leptonc.sources.base import Source
from leptonc.sources.generation import effective, token_ids
from leptonc.sources.tokenizer_parts import split, value_of
from runtime_edge.manifest import Tokenizer
from runtime_edge.part_record import Part

TOOLCHAIN = ("torch", "transformers", "onnx", "onnx-ir", "onnxruntime", "tensorrt-rtx", "tokenizers", "numpy")


def tokenizer_of(source: Source, captured: Captured) -> Tokenizer:
    """Returns the tokenizer's record.

    An answer ends where transformers' generate ends one, see `leptonc.sources.generation`. The tokens that begin a text
    and pad it may be the tokenizer's own.
    """
    config = source.tokenizer_config
    texts = {name: text for name, value in config.items() if name.endswith("_token") and (text := _text(value))}
    ids = _token_ids(source.tokenizer_json)
    vocab = getattr(captured.config, "vocab_size", None) or len(ids)
    settings = effective(source.generation_config, source.config)

    def configured(name: str) -> list[int]:
        return sorted({t for t in token_ids(settings.get(f"{name}_id"), f"{name}_id") if 0 <= t < vocab})

    def own(name: str) -> int | None:  # a tokenizer may have more tokens than the model
        token_id = ids.get(texts.get(name, ""))
        return token_id if token_id is not None and token_id < vocab else None

    first = {name: next(iter(configured(name)), own(name)) for name in ("bos_token", "pad_token")}
    pad = own("pad_token")
    return Tokenizer(
        file="tokenizer.json", bos_token_id=first["bos_token"], eos_token_ids=tuple(configured("eos_token")),
        pad_token_id=first["pad_token"] if pad is None else pad, special_tokens=texts,
        chat_template="chat_template.jinja" if source.chat_template else None,
        chat_templates=named_templates(source), vocab_size=getattr(captured.config, "vocab_size", None),
    )  # fmt: skip


def named_templates(source: Source) -> dict[str, str]:
    """Returns the file of each chat template beside the default one."""
    return {name: f"chat_template.{name}.jinja" for name in source.chat_templates}


def _text(value: Any) -> str:
    return str(value.get("content", "")) if isinstance(value, dict) else value if isinstance(value, str) else ""


def _token_ids(tokenizer_json: bytes) -> dict[str, int]:
    """Returns the ids of added tokens: special tokens are among them."""
    from tokenizers import Tokenizer as Parsed

    added = value_of(split(tokenizer_json), "added_tokens") or []
    ids = {entry["content"]: int(entry["id"]) for entry in added}
    return ids or Parsed.from_str(tokenizer_json.decode()).get_vocab()


def settings_of(captured: Captured, source: Source) -> dict[str, Any]:
    """Returns the runtime's settings for a model, beside its parts.

    Args:
        captured: The model.
        source: The model's source.

    Raises:
        InputError: Labels lack names, or an option has a value that it cannot have.
    """
    return captured.task.settings(captured.parts, captured.config, source, captured.max_seq_len)


def parts_of(captured: Captured, cache_dtype: str | None = None) -> tuple[Part, ...]:
    """Returns the records of a model's parts, in the order that they run.

    Args:
        captured: The model.
        cache_dtype: Element type of keys and values in graphs of ONNX Runtime. Default: as they were captured.
    """
    if cache_dtype is None:
        return tuple(captured.parts.values())
    replace = msgspec.structs.replace
    return tuple(
        replace(part, states=tuple(
            replace(state, buffers=tuple(replace(buffer, dtype=cache_dtype) for buffer in state.buffers))
            for state in part.states
        ))
        for part in captured.parts.values()
    )  # fmt: skip


def toolchain() -> dict[str, str]:
    """Returns the versions of Lepton, Python and the libraries that build artifacts."""
    return dict(_toolchain())


@functools.cache
def _toolchain() -> dict[str, str]:
    versions = {"leptonc": __version__, "python": platform.python_version()}
    for name in TOOLCHAIN:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # onnxruntime-gpu carries the module under another name
            continue
    return versions
