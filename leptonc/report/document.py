"""`docs/reference/report.md`, made of the schema: each section with its fields, their types, and what they mean."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

import msgspec

from leptonc.report import SCHEMA_VERSION, Report
from leptonc.report.section import Section

_HEAD = f"""<!-- Made by `python -m docs.generate`; change the code that it reads. -->

# report.json

An artifact, and a graph that `--emit onnx` wrote, has a file `report.json` with what the build did and measured.
`leptonc inspect` prints it, `report.html` shows it. The schema's version is {SCHEMA_VERSION}. A field that is not
required is left out where it does not apply.
"""
_FIELD = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


def document() -> str:
    """Returns the page."""
    parts = [_HEAD]
    for kind in sections():
        summary, fields = described(kind)
        parts.append(f"## {kind.__name__}\n\n{summary}\n\n| field | type | meaning |\n| --- | --- | --- |\n")
        hints = typing.get_type_hints(kind)
        for field in msgspec.structs.fields(kind):
            name = f"`{field.name}`" + (", required" if field.required else "")
            parts.append(f"| {name} | {_type(hints[field.name])} | {fields[field.name]} |\n")
        parts.append("\n")
    return "\n".join("".join(parts[1:]).splitlines()).join((_HEAD + "\n", "\n"))


def sections() -> list[type[Section]]:
    """Returns the report's sections, the whole first, others where they are first named."""
    order: dict[type[Section], None] = {}

    def walk(kind: type[Section]) -> None:
        if kind not in order:
            order[kind] = None
            for hint in typing.get_type_hints(kind).values():
                for inner in _inside(hint):
                    walk(inner)

    walk(Report)
    return list(order)


def described(kind: type[Any]) -> tuple[str, dict[str, str]]:
    """Returns a record's summary, and the meaning of each field by its name, as its docstring has them."""
    summary, _, attributes = (inspect.getdoc(kind) or "").partition("\n\nAttributes:\n")
    return " ".join(summary.split()), {name: " ".join(text.split()) for name, text in _FIELD.findall(attributes)}


def _inside(hint: Any) -> Iterator[type[Section]]:
    if isinstance(hint, type) and issubclass(hint, Section):
        yield hint
    for inner in typing.get_args(hint):
        yield from _inside(inner)


def _type(hint: Any) -> str:
    """A type in words; that it may be left out is not part of it."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        null = type(None) in inner and msgspec.UnsetType in inner
        kept = [_type(each) for each in inner if each not in (type(None), msgspec.UnsetType)]
        return " or ".join([*kept, *(["null"] if null else [])])
    if origin is list:
        return f"list of {_type(inner[0])}"
    if origin is tuple:
        return f"[{', '.join(map(_type, inner))}]"
    if origin is dict:
        return f"{_type(inner[1])} by name" if inner[1] is not Any else "values by name"
    if issubclass(hint, Section):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}[hint]
