"""Models on the hub: fetched once into huggingface_hub's cache, only the files that a compile reads."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from leptonc.errors import InputError, require
from leptonc.sources.base import Source
from leptonc.sources.hf import open_directory
from leptonc.sources.hf_tokenizer import TEMPLATES
from leptonc.sources.weight_files import INDEX, SINGLE, shard_names

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# One repository may hold the same weights in many formats: what is not listed is not downloaded.
PATTERNS = (
    "config.json",
    "*/config.json",
    "generation_config.json",
    "modules.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
    # Folders of sentence-transformers' modules, in older models the encoder's among them.
    "[0-9]*_*/*.json",
    "[0-9]*_*/*.safetensors",
    "[0-9]*_*/*.txt",
    "[0-9]*_*/*.model",
    SINGLE,
    INDEX,
    "tokenizer.json",
    "tokenizer.*.json",  # a version for newer programs, which tokenizer_config.json's fast_tokenizer_files names
    "tekken.json",
    "tiktoken.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    f"{TEMPLATES}/*.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_TIMEOUT_S = 5.0


def open_hub(model_id: str, *, revision: str | None = None) -> Source:
    """Opens a model of the hub; a copy in the local cache serves when the hub cannot be reached.

    Args:
        model_id: "organization/name".
        revision: A branch, tag or commit; the main branch by default.

    Raises:
        InputError: there is no such model, or neither the hub nor a cached copy can be had, or the model is not in a
            form that is read.
        MissingExtraError: huggingface_hub is not installed.
    """
    directory = _snapshot(model_id, revision, PATTERNS)
    if not (directory / SINGLE).is_file() and (directory / INDEX).is_file():  # as transformers chooses
        # Of the same commit: a branch may have moved on meanwhile. A name that is no pattern is itself.
        directory = _snapshot(model_id, directory.name, [glob.escape(name) for name in shard_names(directory / INDEX)])
    if not any(directory.rglob("*.safetensors")):
        raise InputError(
            f"{model_id}: expected safetensors weights, found none among the model's files",
            hint="pickled weights (.bin) are never read; of a GGUF repository download a .gguf and give its path",
        )
    # The cache's folders are named by commit.
    origin = {"kind": "hub", "id": model_id, "revision": directory.name}
    return open_directory(directory, name=model_id.rsplit("/", 1)[-1], origin=origin)


def _snapshot(model_id: str, revision: str | None, patterns: Sequence[str]) -> Path:
    hub = require("huggingface_hub", extra="compiler", needed_by="a model of the hub")
    errors = require("huggingface_hub.errors", extra="compiler", needed_by="a model of the hub")
    # Not every error of the hub's client is an OSError: its HTTP library has a tree of its own.
    failures = (OSError, ValueError, errors.HfHubHTTPError, *errors.HfHubHTTPError.__bases__)
    try:
        path = hub.snapshot_download(
            model_id, revision=revision, allow_patterns=list(patterns), etag_timeout=_TIMEOUT_S
        )
    except errors.GatedRepoError as error:
        raise InputError(
            f"{model_id}: this model's licence must be accepted on the hub before it can be downloaded",
            hint="accept it there, then `hf auth login` or set HF_TOKEN",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{model_id}: the hub has no such model, or it is private; nor is there a directory of this name",
            hint="check the spelling; for a private model `hf auth login` or set HF_TOKEN",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{model_id}: the hub's model has no revision {revision!r}") from error
    except errors.LocalEntryNotFoundError as error:
        raise InputError(
            f"{model_id}: no such directory, the hub cannot be reached, and the model is not in the local cache",
            hint="connect once to download it, or give a local directory or .gguf file",
        ) from error
    except failures as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(
            f"{model_id}: downloading from the hub failed: {reason}",
            hint="try again; what was downloaded is kept. Or give a local directory or .gguf file",
        ) from error
    return Path(path)
