"""`docs/reference/manifest.md`, made of the manifest's schema, as report.md is made of the report's."""

from __future__ import annotations

import typing

import msgspec

from docs.generate import MADE, table
from docs.generate.schema import described, in_words, nested
from runtime_edge.decoder_record import DecoderSettings
from runtime_edge.encoder_record import Encoder
from runtime_edge.manifest import FORMAT_VERSION, Manifest
from runtime_edge.records import Record

_HEAD = f"""# manifest.json

The schema of format {FORMAT_VERSION}. The file is JSON with sorted keys; other fields are refused.
The page on [the artifact](artifact.md) explains what it is for.

"""
# A heading of the page for a record whose name says something else.
_NAMES: dict[type[Record], str] = {
    DecoderSettings: "Settings of text generation",
    Encoder: "Settings of embeddings and classification",
}
_OF_PART = {"inputs", "roles", "output", "dim"}  # of an encoder, whose other fields are settings


def page() -> str:
    """Returns the page."""
    parts = [MADE, _HEAD]
    kinds: list[type[Record]] = [*nested(Manifest, Record), DecoderSettings, Encoder]
    for kind in kinds:
        summary, meanings = described(kind)
        fields = [field for field in msgspec.structs.fields(kind) if kind is not Encoder or field.name not in _OF_PART]
        hints = typing.get_type_hints(kind)
        rows = (
            (f"`{field.name}`", in_words(hints[field.name]), "yes" if field.required else "", meanings[field.name])
            for field in fields
        )
        text = "" if kind in _NAMES else f"{summary}\n\n"
        parts.append(f"## {_NAMES.get(kind, kind.__name__)}\n\n{text}")
        parts.append(table(("field", "type", "required", "meaning"), rows) + "\n")
    return "".join(parts).rstrip("\n") + "\n"
