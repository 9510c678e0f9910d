"""What a sentence-transformers directory says: the steps after its encoder, the prompts, and how texts are read.

Which file decides what, under which name each version saved it, is that library's;
docs/reference/compatibility.md has the list.
What it would run as code of the model's own, or what is no encoder with steps after it, is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leptonc.errors import InputError
from leptonc.sources.base import EMBEDDING, TOKENS, SentenceModule, SentenceModules
from leptonc.sources.jsonfile import read_json, read_json_list
from leptonc.sources.sentence_config import TransformerConfig, read_transformer
from leptonc.sources.tokenizer_parts import joined, split, text_of, value_of

LISTING = "modules.json"
SETTINGS = "config_sentence_transformers.json"
POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
# Modes of older `Pooling` modules, a flag each, in the order in which several are put together.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# What a `Dense` module may apply, by the name of torch's class.
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU", "Softplus")
WEIGHTED = ("Dense", "LayerNorm")  # kinds that have weights
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
ROLES = ("query", "document")  # prompts that every embedding model has, empty where it names none
_SCORES = {"Sigmoid": "sigmoid", "Identity": "none"}
_CHAIN = "Transformer, Pooling, Dense, Normalize, LayerNorm and Dropout"
_MOST_PROMPTS, _LONGEST_PROMPT, _LONGEST_NAME = 2**10, 2**16, 2**10


@dataclass(frozen=True)
class Sentence:
    """What `read_sentence` finds.

    Attributes:
        modules: For the source.
        transformer: The directory of the encoder's config, weights and tokenizer.
        config: How the encoder and the tokenizer are read.
        folders: Where the weights of steps are, by their place in `modules.chain`.
    """

    modules: SentenceModules
    transformer: Path
    config: TransformerConfig
    folders: dict[int, Path] = field(default_factory=dict)


def read_sentence(directory: Path) -> Sentence | None:
    """Reads `modules.json` and what it refers to; None where there is no such file.

    Raises:
        InputError: A file contradicts itself, or a module, an option or a kind of model is not supported.
    """
    listing = directory / LISTING
    if not listing.is_file():
        return None
    settings = read_json(directory / SETTINGS) if (directory / SETTINGS).is_file() else {}
    kind = settings.get("model_type", "SentenceTransformer")
    if kind not in ("SentenceTransformer", "CrossEncoder"):
        raise InputError(
            f"{directory / SETTINGS}: expected a SentenceTransformer or a CrossEncoder, found a {str(kind)[:80]}",
            hint="models with sparse embeddings, or with one embedding a token, are not supported",
        )
    entries = [(_kind(listing, entry), _folder(directory, entry.get("path", ""))) for entry in read_json_list(listing)]
    if not entries or entries[0][0] != "Transformer":
        raise InputError(
            f"{listing}: expected a Transformer as the first module, found {entries[0][0] if entries else 'none'}",
            hint="models that are no transformer, such as static embeddings or CLIP, are not supported",
        )
    (_, transformer), *rest = entries
    config = read_transformer(
        transformer, "sequence-classification" if kind == "CrossEncoder" else "feature-extraction"
    )
    common = {"max_seq_length": config.max_length, **_prompts(directory / SETTINGS, settings, kind)}
    if kind == "CrossEncoder":
        if rest:
            raise InputError(
                f"{listing}: expected a CrossEncoder of a Transformer alone, found {', '.join(k for k, _ in rest)} too",
                hint="give a reranker with a classification head",
            )
        score = score_function(settings.get("activation_fn"))
        return Sentence(SentenceModules(pairs=True, score_function=score, **common), transformer, config)
    chain, folders = _chain(listing, rest)
    similarity = settings.get("similarity_fn_name")
    modules = SentenceModules(
        chain=chain, similarity=similarity if similarity in SIMILARITIES else "cosine",
        truncate_dim=_positive(directory / SETTINGS, "truncate_dim", settings.get("truncate_dim")), **common,
    )  # fmt: skip
    return Sentence(modules, transformer, config, folders)


def score_function(path: Any) -> str:
    """Returns what the name of a `CrossEncoder`'s activation stands for; "" where that library takes its default."""
    name = str(path or "")
    return _SCORES.get(name.rsplit(".", 1)[-1], "") if name.startswith("torch.") else ""


def lowered(tokenizer_json: bytes) -> bytes:
    """Puts lower case before what a tokenizer's normalizer does, where it does not do so by itself."""
    parts = split(tokenizer_json)
    normalizer = value_of(parts, "normalizer")
    is_list = isinstance(normalizer, dict) and normalizer.get("type") == "Sequence"
    steps = list(normalizer.get("normalizers") or []) if is_list else [] if normalizer is None else [normalizer]
    if any(isinstance(step, dict) and step.get("type") == "Lowercase" for step in steps):
        return tokenizer_json
    lower = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *steps]}
    return joined(parts | {"normalizer": text_of(lower)})


def _kind(listing: Path, entry: Mapping[str, Any]) -> str:
    """The name of a module's class; code that comes with the model is not run."""
    path = entry.get("type")
    if not isinstance(path, str) or not path.startswith("sentence_transformers."):
        raise InputError(
            f"{listing}: expected modules of sentence-transformers, found {str(path)[:80]!r}",
            hint="code that comes with a model is never run",
        )
    return path.rsplit(".", 1)[-1]


def _folder(directory: Path, path: Any) -> Path:
    listing = directory / LISTING
    if not isinstance(path, str):
        raise InputError(f"{listing}: expected a path of a module, found {str(path)[:80]!r}")
    if not (directory / path).resolve().is_relative_to(directory.resolve()):
        raise InputError(f"{listing}: expected paths inside the model, found {path!r}")
    return directory / path


def _chain(listing: Path, entries: Iterable[tuple[str, Path]]) -> tuple[tuple[SentenceModule, ...], dict[int, Path]]:
    """Reads the modules after the encoder, and checks that each reads what one before it made."""
    chain: list[SentenceModule] = []
    folders: dict[int, Path] = {}
    made = {TOKENS}
    for kind, folder in entries:
        if kind == "Dropout":  # it does nothing when a model is used
            continue
        if kind not in _READERS:
            raise InputError(
                f"{listing}: the sentence-transformers module {kind!r} is not supported, expected {_CHAIN} only",
                hint="use an embedding model with these modules after its encoder",
            )
        path = folder / "config.json"
        options = _READERS[kind](path, read_json(path) if path.is_file() else {})
        step = SentenceModule(kind, options)
        reads = options.get("module_input_name", TOKENS if kind == "Pooling" else EMBEDDING)
        if reads not in made:
            raise InputError(f"{path}: expected {kind} to read one of {', '.join(sorted(made))}, found {reads!r}")
        made.add(options.get("module_output_name", EMBEDDING))
        if kind in WEIGHTED:
            folders[len(chain)] = folder
        chain.append(step)
    if not any(step.kind == "Pooling" for step in chain):
        raise InputError(f"{listing}: expected a Pooling module, found none")
    return tuple(chain), folders


def _pooling(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    if "pooling_mode" in config:
        mode = config["pooling_mode"]
        modes = [mode] if isinstance(mode, str) else list(mode) if isinstance(mode, list) else []
    else:
        modes = [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
    if not modes or not all(mode in POOLING_MODES for mode in modes):
        raise InputError(
            f"{path}: expected pooling modes of {', '.join(POOLING_MODES)}, found "
            f"{str(config.get('pooling_mode'))[:80]}"
        )
    return {"pooling_mode": modes, "include_prompt": _flag(path, config, "include_prompt", True)}


def _dense(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    sizes = {name: _positive(path, name, config.get(name)) for name in ("in_features", "out_features")}
    missing = [name for name, size in sizes.items() if size is None]
    if missing:
        raise InputError(f"{path}: expected {missing[0]} of a Dense module, found none")
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    name = str(activation).rsplit(".", 1)[-1]
    if not str(activation).startswith("torch.nn.") or name not in ACTIVATIONS:
        raise InputError(
            f"{path}: expected an activation function of torch.nn, one of {', '.join(ACTIVATIONS)}, found "
            f"{str(activation)[:80]!r}",
            hint="code that comes with a model is never run",
        )
    return {
        **sizes, "bias": _flag(path, config, "bias", True), "activation_function": name,
        "use_residual": _flag(path, config, "use_residual", False), **_names(path, config),
    }  # fmt: skip


def _layer_norm(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    dimension = _positive(path, "dimension", config.get("dimension"))
    if dimension is None:
        raise InputError(f"{path}: expected the dimension of a LayerNorm module, found none")
    return {"dimension": dimension}


def _names(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Which of the values that modules pass on is read, and which is written."""
    reads = config.get("module_input_name", EMBEDDING)
    names = {"module_input_name": reads, "module_output_name": config.get("module_output_name") or reads}
    wrong = [value for value in names.values() if not isinstance(value, str)]
    if wrong:
        raise InputError(f"{path}: expected names of values, found {str(wrong[0])[:80]!r}")
    return names


_READERS = {"Pooling": _pooling, "Dense": _dense, "Normalize": _names, "LayerNorm": _layer_norm}


def _flag(path: Path, config: Mapping[str, Any], name: str, default: bool) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"{path}: expected {name} to be true or false, found {str(value)[:80]!r}")
    return value


def _positive(path: Path, name: str, value: Any) -> int | None:
    if value is not None and (type(value) is not int or not 1 <= value < 2**31):
        raise InputError(f"{path}: expected {name} to be a positive integer or null, found {str(value)[:80]!r}")
    return value


def _prompts(path: Path, settings: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Reads the prompts, and which of them applies where none is asked for."""
    given = settings.get("prompts") or {}
    if not isinstance(given, dict) or not all(text is None or isinstance(text, str) for text in given.values()):
        raise InputError(f"{path}: expected `prompts` to be texts by name, found {str(given)[:80]}")
    prompts = {name: text or "" for name, text in given.items()}
    if len(prompts) > _MOST_PROMPTS or any(
        len(name) > _LONGEST_NAME or len(text) > _LONGEST_PROMPT for name, text in prompts.items()
    ):
        raise InputError(
            f"{path}: expected at most {_MOST_PROMPTS:,} prompts of at most {_LONGEST_PROMPT:,} characters, with names "
            f"of at most {_LONGEST_NAME:,}"
        )
    default = settings.get("default_prompt_name")
    if default in ROLES and kind == "SentenceTransformer":
        prompts.setdefault(str(default), "")
    if default is not None and (not isinstance(default, str) or default not in prompts):
        names = ", ".join(map(repr, sorted(prompts))) or "none"
        raise InputError(f"{path}: expected default_prompt_name to be one of its prompts ({names}), found {default!r}")
    return {"prompts": prompts, "default_prompt": default}
