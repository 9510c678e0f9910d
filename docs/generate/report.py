"""`docs/reference/report.md`, made of the schema: each section with its fields, their types, and what they mean."""

from __future__ import annotations

import typing

import msgspec

from docs.generate import MADE, table
from docs.generate.schema import described, in_words, nested
from leptonc.report import SCHEMA_VERSION, Report
from leptonc.report.section import Section

_HEAD = f"""# report.json

An artifact, and a graph that `--emit onnx` wrote, has a file `report.json` with what the build did and measured.
`leptonc inspect` prints it, `report.html` shows it. The schema's version is {SCHEMA_VERSION}. A field that is not
required is left out where it does not apply.

"""


def page() -> str:
    """Returns the page."""
    parts = [MADE, _HEAD]
    for kind in sections():
        summary, meanings = described(kind)
        hints = typing.get_type_hints(kind)
        rows = (
            (
                f"`{field.name}`" + (", required" if field.required else ""),
                in_words(hints[field.name]),
                meanings[field.name],
            )
            for field in msgspec.structs.fields(kind)
        )
        parts.append(f"## {kind.__name__}\n\n{summary}\n\n{table(('field', 'type', 'meaning'), rows)}\n")
    return "".join(parts).rstrip("\n") + "\n"


def sections() -> list[type[Section]]:
    """Returns the report's sections, the whole first."""
    return nested(Report, Section)  # type: ignore[type-abstract]
