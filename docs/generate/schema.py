"""What the pages of schemas share: records in the order in which they are first named, their fields, types in words."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

K = TypeVar("K")

_FIELD = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


def nested(root: type[K], base: type[K]) -> list[type[K]]:
    """Returns a record and those in it that are of a base, each where it is first named."""
    order: dict[type[K], None] = {}

    def inside(hint: Any) -> Iterator[type[K]]:
        if isinstance(hint, type) and issubclass(hint, base):
            yield hint
        for inner in typing.get_args(hint):
            yield from inside(inner)

    def walk(kind: type[K]) -> None:
        if kind not in order:
            order[kind] = None
            for hint in typing.get_type_hints(kind).values():
                for inner in inside(hint):
                    walk(inner)

    walk(root)
    return list(order)


def described(kind: type[Any]) -> tuple[str, dict[str, str]]:
    """Returns a record's summary, and the meaning of each field by its name, as its docstring has them."""
    summary, _, attributes = (inspect.getdoc(kind) or "").partition("\n\nAttributes:\n")
    return " ".join(summary.split()), {name: " ".join(text.split()) for name, text in _FIELD.findall(attributes)}


def in_words(hint: Any) -> str:
    """Returns a type in words; that it may be left out is not part of it."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        null = type(None) in inner and msgspec.UnsetType in inner
        kept = [in_words(each) for each in inner if each not in (type(None), msgspec.UnsetType)]
        return " or ".join([*kept, *(["null"] if null else [])])
    if origin is list or (origin is tuple and inner[-1] is Ellipsis):
        return f"list of {in_words(inner[0])}"
    if origin is tuple:
        return f"[{', '.join(map(in_words, inner))}]"
    if origin is dict:
        return f"{in_words(inner[1])} by name" if inner[1] is not Any else "values by name"
    if issubclass(hint, msgspec.Struct):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}[hint]
