"""`docs/reference/manifest.md`, made of the manifest's schema, as report.md is made of the report's."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

import msgspec

from docs.generate import MADE, table
from leptonc.report.document import described
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
    kinds: list[type[Record]] = [*_records(Manifest), DecoderSettings, Encoder]
    for kind in kinds:
        summary, meanings = described(kind)
        fields = [field for field in msgspec.structs.fields(kind) if kind is not Encoder or field.name not in _OF_PART]
        hints = typing.get_type_hints(kind)
        rows = (
            (f"`{field.name}`", _type(hints[field.name]), "yes" if field.required else "", meanings[field.name])
            for field in fields
        )
        text = "" if kind in _NAMES else f"{summary}\n\n"
        parts.append(f"## {_NAMES.get(kind, kind.__name__)}\n\n{text}")
        parts.append(table(("field", "type", "required", "meaning"), rows) + "\n")
    return "".join(parts).rstrip("\n") + "\n"


def _records(root: type[Record]) -> list[type[Record]]:
    """Returns a record and those in it, each where it is first named."""
    order: dict[type[Record], None] = {}

    def walk(kind: type[Record]) -> None:
        if kind not in order:
            order[kind] = None
            for hint in typing.get_type_hints(kind).values():
                for inner in _inside(hint):
                    walk(inner)

    walk(root)
    return list(order)


def _inside(hint: Any) -> Iterator[type[Record]]:
    if isinstance(hint, type) and issubclass(hint, Record):
        yield hint
    for inner in typing.get_args(hint):
        yield from _inside(inner)


def _type(hint: Any) -> str:
    """Returns a type in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(part) for part in inner if part is not type(None))
    if origin is tuple:
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return f"{_type(inner[1])} by name" if inner[1] is not Any else "values by name"
    if issubclass(hint, Record):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}[hint]
