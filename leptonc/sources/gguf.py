"""GGUF files as sources: config, tokenizer and weights as the Hugging Face model would have them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from leptonc.errors import InputError
from leptonc.sources.base import Source
from leptonc.sources.gguf_config import build_config, build_generation_config
from leptonc.sources.gguf_families import family_of, map_weights
from leptonc.sources.gguf_file import GgufFile
from leptonc.sources.gguf_keys import check_keys
from leptonc.sources.gguf_tokenizer import build_tokenizer
from leptonc.sources.hf_tokenizer import TEMPLATE_NAME

# The quantization's name that GGUF files carry at the end of theirs.
_QUANTIZATION = re.compile(r"[-._](?:I?Q\d+(?:_[A-Z0-9]+)*|[BF]{1,2}(?:16|32)|MXFP4)$", re.IGNORECASE)


def open_gguf(
    parts: Sequence[Path],
    *,
    name: str | None = None,
    label: str | None = None,
    origin: Mapping[str, str] | None = None,
    sha256: str | None = None,
) -> Source:
    """Opens a GGUF file; of the weights only the header is kept, the file is hashed for the origin.

    Args:
        parts: The file, or the pieces that it was cut into, in order.
        name: The source's name; by default the file's without extension and quantization.
        label: What error messages call the file.
        origin: Where it came from, for a file that was not given by path.
        sha256: What the file's hash must be.

    Raises:
        InputError: the file is damaged, of an architecture or tokenizer that is not supported, or not the expected one.
    """
    file = GgufFile(parts, label)
    try:
        digest = file.bytes.sha256()
        if sha256 is not None and digest != sha256:
            raise InputError(f"{file.label}: expected sha256 {sha256}, found {digest}", hint="reinstall its packages")
        architecture, family = family_of(file)
        warnings = check_keys(file, architecture)
        config = build_config(file, architecture, family)
        weights = map_weights(file, family, config)
        tokenizer, special = build_tokenizer(file, architecture)
        generation = build_generation_config(file)
        templates = _chat_templates(file)
        licence = file.metadata.get("general.license")
    except InputError:
        file.close()
        raise
    source = {"kind": "gguf", "id": parts[0].name} if origin is None else dict(origin)
    if isinstance(licence, str):
        source.setdefault("licence", licence)
    # The vocabulary is in the tokenizer now; it would be the largest thing that the source keeps.
    file.metadata.clear()
    return Source(
        name=name or _QUANTIZATION.sub("", parts[0].stem),
        origin=source | {"sha256": digest},
        config=config,
        weights=weights,
        tokenizer_json=tokenizer,
        tokenizer_config=special,
        chat_template=templates.pop("default", None),
        chat_templates=templates,
        generation_config=generation,
        closers=(file.close,),
        path=tuple(parts),
        warnings=tuple(warnings),
        complete=True,
    )


def _chat_templates(file: GgufFile) -> dict[str, str]:
    """The chat templates by name; llama.cpp's converter writes others than the default under keys of their own."""
    templates = {}
    for key, value in file.metadata.items():
        base, _, name = key.partition("tokenizer.chat_template")
        if base or not isinstance(value, str) or not (name == "" or name.startswith(".")):
            continue
        if name and not TEMPLATE_NAME.fullmatch(name[1:]):
            raise InputError(
                f"{file.label}: expected names of chat templates of letters, digits, - and _, found {name[1:81]!r}"
            )
        templates[name[1:] or "default"] = value
    return templates
