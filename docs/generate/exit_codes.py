"""`docs/reference/exit-codes.md`, made of the command line's table and of the tree of errors."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import leptonc.errors  # noqa: F401 — its classes are in the tree
from docs.generate import MADE, table
from runtime_edge import __all__
from runtime_edge.cli.app import EXIT_CODES
from runtime_edge.errors import LeptonError

_HEAD = """# Exit codes and errors

"""
_ERRORS = """
## Errors in a program

An application catches `runtime_edge.LeptonError`, or one of the errors below it. Each has `message`, `hint` (a text or
None) and `exit_code`. Those of `leptonc` are raised by builds alone.

"""


def page() -> str:
    """Returns the page."""
    codes = ((f"`{code}`", about.meaning, about.cure) for code, about in EXIT_CODES.items())
    errors = (
        ("· " * depth + f"`{_name(kind)}`", _first(kind), f"{kind.exit_code}") for depth, kind in _tree(LeptonError, 0)
    )
    first = table(("code", "meaning", "what to do"), codes)
    return MADE + _HEAD + first + _ERRORS + table(("error", "meaning", "exit code"), errors)


def _tree(kind: type[LeptonError], depth: int) -> Iterator[tuple[int, type[LeptonError]]]:
    yield depth, kind
    children = (child for child in kind.__subclasses__() if not child.__name__.startswith("_"))
    for child in sorted(children, key=lambda child: (child.__module__ != kind.__module__, child.__name__)):
        if child.__module__ in ("runtime_edge.errors", "leptonc.errors"):
            yield from _tree(child, depth + 1)


def _name(kind: type[LeptonError]) -> str:
    """Returns the name that a program imports."""
    return f"{kind.__module__.removesuffix('.errors') if kind.__name__ in __all__ else kind.__module__}.{kind.__name__}"


def _first(kind: type[LeptonError]) -> str:
    return (inspect.getdoc(kind) or "").partition("\n\n")[0]
