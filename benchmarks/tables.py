#!/usr/bin/env python3
"""Makes the pages of docs/measured of the files in benchmarks/results: a table each, and the commands that give it.

    python benchmarks/tables.py                 writes the pages
    python benchmarks/tables.py --check         writes nothing; ends with 1 where a page is another

A result is one TOML file: see `Result`. Its rows stand in it, or are records of a file in benchmarks/results/data that
a benchmark printed as JSON, one list or a record a line: measure again, put the output there, and set date and commit.
`pages.toml` has what is common: the pages, the machines and the texts.
"""

from __future__ import annotations

import argparse
import datetime
import difflib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parent
RESULTS, PAGES = ROOT / "results", ROOT.parent / "docs" / "measured"
LISTING = "pages.toml"
NOT_RUN = "<!-- not run: it measures, which takes minutes to hours -->"


Cell = int | float | str  # a number, or a text


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A column of a table.

    Attributes:
        name: Its heading.
        unit: Of its numbers: MB, s, %.
        format: How numbers are written, as Python's `format` takes it: `.1f`, `+.2f`.
        field: Where a record has it, with a number behind a dot for an entry of a list: `perplexity.0`.
        scale: What a record's number is multiplied by.
        against: Where it is not 0, percent that the number is above this one are written in its place.
    """

    name: str
    unit: str = ""
    format: str = ""
    field: str = ""
    scale: float = 1.0
    against: float = 0.0


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A measurement.

    Attributes:
        page: The page that it stands on, a key of `pages.toml`.
        place: Where on the page: results stand in the order of this number.
        title: The reader's question, the heading.
        answers: What the table answers, in one sentence.
        subject: The model, or what else was measured.
        machine: A key of the machines in `pages.toml`.
        date: When it was measured.
        commit: What was measured, as git names it.
        commands: What gives the table, a line each; they run from the repository's root.
        columns: The first names the row.
        rows: A cell for each column: a number, or a text; an empty text where nothing was measured.
        data: A file in `data/` that has more rows.
        names: Records of `data` that are rows, by the value of the first column's field, and what they are called.
        sort: The column that rows are sorted by, with `-` before it for the largest first; empty for the order given.
        notes: What else a reader must know, a sentence each.
    """

    page: str
    place: int
    title: str
    answers: str
    subject: str
    machine: str
    date: datetime.date
    commit: str
    commands: list[str]
    columns: list[Column]
    rows: list[list[Cell]] = []
    data: str = ""
    names: dict[str, str] = {}
    sort: str = ""
    notes: list[str] = []


class Page(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A page: its heading, what it begins with, and whether it tells the texts."""

    title: str
    head: str
    texts: bool = False


class Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text that quality is measured on: its file, what it is, and the command that makes it, where one does."""

    file: str
    what: str
    command: str = ""


class Listing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What pages share: see `pages.toml`."""

    pages: dict[str, Page]
    machines: dict[str, str]
    texts: list[Text]


def listing() -> Listing:
    """Reads what pages share."""
    return msgspec.toml.decode((RESULTS / LISTING).read_bytes(), type=Listing)


def results() -> dict[str, Result]:
    """Reads every result, by its file's name.

    Raises:
        msgspec.ValidationError: A field is missing, unknown or of another type.
    """
    paths = sorted(path for path in RESULTS.glob("*.toml") if path.name != LISTING)
    return {path.stem: msgspec.toml.decode(path.read_bytes(), type=Result) for path in paths}


def cells(result: Result) -> list[list[str]]:
    """Returns the rows of a table as they are written.

    Raises:
        ValueError: A row has another number of cells than there are columns, or a named record is missing.
    """
    rows = [*(list(row) for row in result.rows), *_recorded(result)]
    if any(len(row) != len(result.columns) for row in rows):
        raise ValueError(f"{result.title}: expected {len(result.columns)} cells in each row, found another number")
    if result.sort:
        at = [column.name for column in result.columns].index(result.sort.removeprefix("-"))
        rows.sort(key=lambda row: float(row[at]), reverse=result.sort.startswith("-"))
    return [[_written(cell, column) for cell, column in zip(row, result.columns, strict=True)] for row in rows]


def _recorded(result: Result) -> Iterator[list[Cell]]:
    if not result.data:
        return
    text = (RESULTS / "data" / result.data).read_text(encoding="utf-8")
    records = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    by_name = {record[result.columns[0].field]: record for record in records}
    for key, name in result.names.items():
        if key not in by_name:
            raise ValueError(f"{result.title}: expected a record {key} in {result.data}, found {', '.join(by_name)}")
        yield [name, *(_value(by_name[key], column) for column in result.columns[1:])]


def _value(record: Mapping[str, Any], column: Column) -> Cell:
    name, _, index = column.field.partition(".")
    value = record[name][int(index)] if index else record[name]
    if column.against:
        return 100 * (float(value) / column.against - 1)
    return value if isinstance(value, str) else value * column.scale


def _written(cell: Cell, column: Column) -> str:
    return cell if isinstance(cell, str) else format(cell, column.format)


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table whose first column is of text and whose others are of numbers."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "".join("|" + "".join(f" {cell} |" if cell else " |" for cell in line) + "\n" for line in lines)


def section(result: Result) -> str:
    """Returns a result's part of its page."""
    heads = [f"{column.name}, {column.unit}" if column.unit else column.name for column in result.columns]
    origin = f"# machine {result.machine}, {result.date}, commit {result.commit}"
    commands = "\n".join([origin, *result.commands])
    parts = [f"## {result.title}\n", f"{result.answers}\n", table(heads, cells(result))]
    if result.notes:
        parts.append("".join(f"- {note}\n" for note in result.notes))
    return "\n".join([*parts, f"{NOT_RUN}\n```bash\n{commands}\n```\n"])


def page(name: str, shared: Listing, found: Mapping[str, Result]) -> str:
    """Returns a whole page."""
    own = sorted((result for result in found.values() if result.page == name), key=lambda result: result.place)
    about = shared.pages[name]
    used = {result.machine for result in own}
    machines = [[f"`{key}`", what] for key, what in shared.machines.items() if key in used]
    parts = [f"# {about.title}\n", "<!-- python benchmarks/tables.py makes this page of benchmarks/results -->\n"]
    parts += [about.head.strip() + "\n", _plain(["machine", ""], machines)]
    parts += map(section, own)
    if about.texts:
        parts += ["## Which texts?\n", _plain(["text", ""], [[f"`{text.file}`", text.what] for text in shared.texts])]
        made = "\n".join(text.command for text in shared.texts if text.command)
        parts += [f"{NOT_RUN}\n```bash\n{made}\n```\n"]
    return "\n".join(parts)


def _plain(heads: list[str], rows: list[list[str]]) -> str:
    return table(heads, rows).replace("---:", "---")


def pages() -> dict[str, str]:
    """Returns every page's text by its name."""
    shared, found = listing(), results()
    return {name: page(name, shared, found) for name in shared.pages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and compare")
    args = parser.parse_args()
    other = False
    for name, text in pages().items():
        path = PAGES / f"{name}.md"
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        if not args.check:
            path.write_text(text, encoding="utf-8")
        elif before != text:
            other = True
            old, new = before.splitlines(keepends=True), text.splitlines(keepends=True)
            sys.stderr.writelines(difflib.unified_diff(old, new, str(path), "made"))
    raise SystemExit(1 if other else 0)


if __name__ == "__main__":
    main()
