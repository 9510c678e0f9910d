"""The tokenizer of a Hugging Face directory: what `AutoTokenizer` makes of all its files, as one `tokenizer.json`.

`tokenizer.json` alone does not decide. `tokenizer_config.json` and the older files add tokens, a tokenizer's class may
build normalizer, pre-tokenizer, decoder and post-processor anew, and a flag changes decoded text. So the directory is
loaded with transformers' `AutoTokenizer`, what it holds is written as `tokenizer.json`, and both are compared on texts
of many kinds (`tokenizer_check`). A file that transformers leaves alone keeps its bytes.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leptonc.errors import InputError, require
from leptonc.sources.jsonfile import MAX_JSON_BYTES, read_bytes, read_json, read_text
from leptonc.sources.tokenizer_check import check_tokenizer
from leptonc.sources.tokenizer_parts import NULL, Parts, joined, model_type, split, text_of, value_of
from runtime_edge.tokenizer import BoundedTokenizer, failures, parse, within_bounds

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Files that hold a vocabulary, besides tokenizer.json.
_VOCABULARIES = ("*.txt", "*.model", "*.spm", "*.bpe", "*.codes", "*.tiktoken", "vocab*.json", "tekken.json")
TEMPLATES = "additional_chat_templates"  # the folder of templates beside the default one
TEMPLATE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # becomes part of a file's name
_SAVE = (
    "where another version of transformers loads it, save it with that one: "
    "AutoTokenizer.from_pretrained(directory).save_pretrained(directory)"
)
_HARM = "the tokenizer is damaged or was made to do harm: take it from its author again"
# What `clean_up_tokenization` of transformers 5 replaces in decoded text, in this order.
_CLEANED = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"),
    (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
# What a source's config says of the tokenizer besides special tokens: what the encoder's record is made of.
_SETTINGS = ("truncation_side", "padding_side", "model_input_names")
_SMALL = ("normalizer", "pre_tokenizer", "decoder")
_LIMITS = {"truncation": NULL, "padding": NULL}
_NO_LIMIT = 10**9  # transformers writes 10^30 where there is none
_NO_SUFFIX = "\u0000"  # a prefix of no token: WordPiece's decoder then joins tokens with spaces, as no decoder does


class _NoBackendError(InputError):
    """A tokenizer that is code, of transformers or of the model's own."""


@dataclass(frozen=True)
class ReadTokenizer:
    """A tokenizer as a source has it.

    Attributes:
        data: tokenizer.json.
        config: Texts of special tokens, under the names that chat templates know; where and on which side texts are
            cut, and which inputs a model gets of them.
    """

    data: bytes
    config: dict[str, Any]


def read_tokenizer(
    directory: Path, *, hub_id: str | None = None, options: Mapping[str, Any] | None = None
) -> ReadTokenizer:
    """Returns the tokenizer as `AutoTokenizer` has it.

    Args:
        directory: The model's directory.
        options: What `AutoTokenizer` is called with, where the model's files say so elsewhere.
        hub_id: The id that the model has on the hub: transformers chooses the class of some models by it.

    Raises:
        InputError: There is none, it cannot be loaded without code of its own, or it is one that a tokenizer.json
            cannot express.
        MissingExtraError: transformers is not installed.
    """
    path = directory / "tokenizer.json"
    original = read_bytes(path) if path.is_file() else None
    if original is None and not any(True for pattern in _VOCABULARIES for _ in directory.glob(pattern)):
        raise _without_files(directory, hub_id)
    if original is not None:
        original = without_limits(original, str(path))
        within_bounds(original, str(path), error_type=InputError, hint=_HARM)
    reference = _load(directory, hub_id, options or {})
    limit = reference.model_max_length
    if not isinstance(limit, int | float) or limit < 1:
        raise InputError(
            f"{directory}: expected model_max_length to be a number above 0, found {str(limit)[:80]!r}",
            hint="correct it in tokenizer_config.json, or take it out there",
        )
    with _silence():
        parts = _parts(reference, directory)
        parsed = None if original is None else _alone(original, parts, str(path))
        if original is not None and parsed is not None:
            data = original
        else:
            data = joined(parts)
            parsed = parse(data, str(directory), error_type=InputError, hint=_SAVE)
        tokenizer, most = parsed
        check_tokenizer(BoundedTokenizer.of(tokenizer, most, str(directory)), reference, str(directory))
    config: dict[str, Any] = {name: str(token) for name, token in reference.special_tokens_map.items() if token}
    config |= {name: getattr(reference, name) for name in _SETTINGS}
    if limit < _NO_LIMIT:
        config["model_max_length"] = int(limit)
    return ReadTokenizer(data, config)


def _without_files(directory: Path, hub_id: str | None) -> InputError:
    """Why a directory without a vocabulary is refused: a class in Python has none, and neither has one of its own."""
    nothing = _none(directory)
    if not (directory / "tokenizer_config.json").is_file():
        return nothing
    try:
        _backend(_load(directory, hub_id, {}), directory)
    except _NoBackendError as error:
        return error
    except InputError:
        pass
    return nothing


def _none(directory: Path) -> InputError:
    return InputError(
        f"{directory}: expected tokenizer.json, found no tokenizer",
        hint="save the tokenizer beside the model: tokenizer.save_pretrained(directory)",
    )


def read_written(directory: Path) -> ReadTokenizer:
    """Returns the tokenizer of a directory that this compiler wrote: tokenizer.json is whole, and decides alone.

    Raises:
        InputError: It is missing or damaged.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise _none(directory)
    data = without_limits(read_bytes(path), str(path))
    parse(data, str(path), error_type=InputError, hint=_HARM)
    config = directory / "tokenizer_config.json"
    fields = read_json(config) if config.is_file() else {}
    fields.pop("tokenizer_class", None)
    return ReadTokenizer(data, fields)


def without_limits(data: bytes, label: str) -> bytes:
    """Drops truncation and padding from a `tokenizer.json`: the runtime does both, to its own lengths."""
    try:
        parts = split(data)
    except ValueError as error:
        raise InputError(f"{label}: expected JSON, found an error: {error}") from error
    if not parts.get("model", b"").startswith(b"{"):
        raise InputError(f"{label}: expected a tokenizer with a `model`, found none")
    if all(parts.get(name, NULL) == NULL for name in _LIMITS):
        return data
    return joined(parts | _LIMITS)


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps to itself what transformers advises its own users, and what the `tokenizers` library prints to stdout."""
    import transformers

    quiet: Any = transformers.utils.logging
    level = quiet.get_verbosity()
    quiet.set_verbosity_error()
    if sys.stdout is not None:
        sys.stdout.flush()
    try:
        stdout, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # a process without a standard output
        stdout = nowhere = -1
    try:
        if nowhere >= 0:
            os.dup2(nowhere, 1)
        yield
    finally:
        quiet.set_verbosity(level)
        if nowhere >= 0:
            os.dup2(stdout, 1)
            os.close(stdout)
            os.close(nowhere)


def _load(directory: Path, hub_id: str | None, given: Mapping[str, Any]) -> Any:
    """Loads the directory with `AutoTokenizer`: no network, no code of the model's own."""
    transformers = require("transformers", extra="compiler", needed_by="the tokenizer of a Hugging Face model")
    for file in (file for pattern in (*_VOCABULARIES, "*token*.json") for file in directory.glob(pattern)):
        if (size := file.stat().st_size) > MAX_JSON_BYTES:
            raise InputError(f"{file}: expected at most {MAX_JSON_BYTES} bytes, found {size}")
    offline = {"local_files_only": True, "trust_remote_code": False}
    label = f"{directory}: expected a tokenizer that transformers can load"
    try:
        with _silence(), failures(InputError, label, hint=_SAVE):
            options = {**given, **offline}
            if hub_id is not None:
                options["config"] = _config(transformers, directory, hub_id, offline)
            return transformers.AutoTokenizer.from_pretrained(str(directory), **options)
    except InputError as error:
        raise _refused(directory, error) from error


def _config(transformers: Any, directory: Path, hub_id: str, offline: dict[str, Any]) -> Any:
    try:
        config = transformers.AutoConfig.from_pretrained(str(directory), **offline)
    except (ValueError, OSError):
        config = transformers.PreTrainedConfig.from_pretrained(str(directory), **offline)
    config._name_or_path = hub_id
    return config


def _refused(directory: Path, error: InputError) -> InputError:
    config = directory / "tokenizer_config.json"
    fields = read_json(config) if config.is_file() else {}
    if fields.get("auto_map"):
        return _NoBackendError(
            f"{directory}: expected a tokenizer that transformers knows, found one that is code of the model's own "
            "(tokenizer_config.json's auto_map), which is never run",
            hint="where it can be written as tokenizer.json, do so: tokenizer.save_pretrained(directory)",
        )
    return _of_config(directory) or error


def _of_config(directory: Path) -> InputError | None:
    """What transformers has against config.json, which it reads before a tokenizer, where it knows the model."""
    import transformers

    path = directory / "config.json"
    if not path.is_file() or read_json(path).get("model_type") not in transformers.CONFIG_MAPPING:
        return None
    hint = "correct config.json, or take the model from its author again"
    try:
        with _silence(), failures(InputError, f"{path}: expected a config that transformers takes", hint=hint):
            transformers.AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except InputError as error:
        return error
    return None


def _parts(reference: Any, directory: Path) -> Parts:
    """What a loaded tokenizer holds, as the parts of a tokenizer.json; refuses what only its Python code does."""
    backend = _backend(reference, directory)
    if getattr(reference, "split_special_tokens", False):
        raise InputError(
            f"{directory}: expected special tokens that are found in a text, found split_special_tokens, with which "
            "they are cut like other text",
            hint="take split_special_tokens out of tokenizer_config.json where special tokens may be found in texts",
        )
    _refuse_a_default(reference, directory)
    with failures(InputError, f"{directory}: expected a tokenizer that can be written as tokenizer.json", hint=_SAVE):
        text: str = backend.to_str()
    parts = split(text.encode("utf-8", "surrogatepass")) | _LIMITS
    if reference.clean_up_tokenization_spaces and _cleans(reference, parts):
        parts["decoder"] = text_of(_with_clean_up(value_of(parts, "decoder")))
    return parts


def _backend(reference: Any, directory: Path) -> Any:
    backend = getattr(reference, "backend_tokenizer", None)
    if backend is None:
        raise _NoBackendError(
            f"{directory}: expected a tokenizer that the `tokenizers` library can run, found "
            f"{type(reference).__name__}, which transformers runs in Python",
            hint="models with this tokenizer cannot be compiled yet",
        )
    return backend


def _refuse_a_default(reference: Any, directory: Path) -> None:
    """Refuses a class that found none of its files, and made a vocabulary of its special tokens alone."""
    if (directory / "tokenizer.json").is_file():
        return
    names = [name for name in type(reference).vocab_files_names.values() if name]
    if not any((directory / name).is_file() for name in names) and len(reference) <= 16:
        raise InputError(
            f"{directory}: expected {' or '.join(names)} for {type(reference).__name__}, found none of them", hint=_SAVE
        )


def _cleans(reference: Any, parts: Parts) -> bool:
    forced = getattr(reference, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    return bool(model_type(parts) != "BPE" or forced)


def _with_clean_up(decoder: dict[str, Any] | None) -> dict[str, Any]:
    """A decoder that does what `clean_up_tokenization` does afterwards, to the whole text."""
    first = decoder or {"type": "WordPiece", "prefix": _NO_SUFFIX, "cleanup": False}
    stages = [*first["decoders"]] if first.get("type") == "Sequence" else [first]
    stages.append({"type": "Fuse"})
    stages += [{"type": "Replace", "pattern": {"String": pattern}, "content": content} for pattern, content in _CLEANED]
    return {"type": "Sequence", "decoders": stages}


def _alone(original: bytes, parts: Parts, label: str) -> tuple[Any, int] | None:
    """Returns what `parse` makes of a tokenizer.json that transformers left alone; None where it changed something.

    Args:
        original: The file; the library gives an added token another id than the file's where that is not free.
        parts: What the library writes of transformers' tokenizer.
        label: The file, for messages.
    """
    given = split(original)
    added = [value_of(part, "added_tokens") or [] for part in (given, parts)]
    ids = [{token["content"]: token.get("id") for token in tokens} for tokens in added]
    # A vocabulary takes seconds to parse: what is small is compared first, as it is written.
    if ids[0] != ids[1] or any(value_of(given, name) != value_of(parts, name) for name in _SMALL):
        return None
    parsed = parse(original, label, error_type=InputError, hint=_HARM)
    # What the library writes of the file, so that only what differs in meaning differs.
    written = split(parsed[0].to_str().encode("utf-8", "surrogatepass"))
    if written["post_processor"] == NULL and value_of(parts, "post_processor") == _PLAIN:
        written["post_processor"] = parts["post_processor"]
    return parsed if written == parts else None


# The post-processor that transformers gives a tokenizer without one; it does nothing.
_PLAIN = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}


def read_chat_templates(directory: Path) -> dict[str, str]:
    """Returns the chat templates by name, that of every model called `default`.

    As for transformers' tokenizers, files of templates win over what `tokenizer_config.json` has, and are all there is
    then. A processor's `chat_template.json` comes between them.

    Raises:
        InputError: A file is no text or no JSON, or a template has a name that is no file's.
    """
    files = {"default": directory / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((directory / TEMPLATES).glob("*.jinja"))}
    templates = {name: read_text(path) for name, path in files.items() if path.is_file()}
    for file in () if templates else ("chat_template.json", "tokenizer_config.json"):
        path = directory / file
        given = read_json(path).get("chat_template") if path.is_file() else None
        if isinstance(given, list):
            pairs = [(item.get("name"), item.get("template")) for item in given if isinstance(item, dict)]
        else:
            pairs = list(given.items()) if isinstance(given, dict) else [("default", given)]
        templates = {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
        if templates:
            break
    for name in templates:
        if not TEMPLATE_NAME.fullmatch(name):
            raise InputError(
                f"{directory}: expected names of chat templates of letters, digits, - and _, found {name[:80]!r}",
                hint="give the template another name",
            )
    return templates
