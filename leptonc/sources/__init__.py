"""Sources: where models come from. `open_source` is the one door; importing this package loads nothing heavy."""

from __future__ import annotations

from pathlib import Path

from leptonc.errors import InputError
from leptonc.sources.base import Array, ComputedTensor, LazyTensor, SentenceModules, Source

__all__ = ["Array", "ComputedTensor", "LazyTensor", "SentenceModules", "Source", "open_source", "sample_names"]

_HINT = "give a directory with config.json and safetensors, a .gguf file, a hub id (organization/name) or sample:NAME"


def open_source(spec: str, *, revision: str | None = None) -> Source:
    """Opens a model, reading headers only.

    Args:
        spec: A Hugging Face directory, one that `build --emit onnx` wrote, a `.gguf` file, `sample:NAME`, or the id of
            a model on the hub. What exists as a path is that path.
        revision: Branch, tag or commit of a hub model.

    Raises:
        InputError: there is no such model, or it is damaged or of a kind that is not supported.
        MissingExtraError: reading it needs packages that are not installed.
    """
    from leptonc.sources import emitted, gguf, hf, hub, samples

    if spec.startswith(samples.PREFIX):
        _refuse_revision(spec, revision)
        return samples.open_sample(spec.removeprefix(samples.PREFIX))
    path = _existing(spec)
    if path is not None and path.is_dir():
        _refuse_revision(spec, revision)
        return emitted.open_emitted(path) if emitted.is_emitted(path) else hf.open_directory(path)
    if path is not None:
        _refuse_revision(spec, revision)
        if path.suffix.lower() != ".gguf":
            raise InputError(f"{spec}: expected a directory or a .gguf file, found another file", hint=_HINT)
        return gguf.open_gguf([path])
    if hub.HUB_ID.fullmatch(spec) and not spec.lower().endswith((".gguf", ".safetensors", ".bin")):
        return hub.open_hub(spec, revision=revision)
    raise InputError(f"{spec!r}: expected a model, found neither a path that exists nor a hub id", hint=_HINT)


def sample_names() -> tuple[str, ...]:
    """Returns every NAME of `sample:NAME`."""
    from leptonc.sources import samples

    return samples.sample_names()


def _existing(spec: str) -> Path | None:
    try:
        path = Path(spec).expanduser()
        return path if spec and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long a name, a zero byte, the home of nobody
        return None


def _refuse_revision(spec: str, revision: str | None) -> None:
    if revision is not None:
        raise InputError(f"{spec}: a revision was given, which only models of the hub have")
