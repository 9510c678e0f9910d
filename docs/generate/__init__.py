"""The pages of the reference that are made of the code: `python -m docs.generate` writes them, a test compares them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "reference"
MADE = "<!-- Made by `python -m docs.generate`; change the code that it reads. -->\n\n"

_BARE = re.compile(r"`[^`]*`|(?<![\w-])--[a-z][a-z-]*")  # code, which stays as it is, and options without marks


def pages() -> dict[str, Callable[[], str]]:
    """Returns what makes each page, by its name in docs/reference."""
    from docs.generate import cli, exit_codes, manifest, python, recipes, report

    return {
        "cli.md": cli.page,
        "exit-codes.md": exit_codes.page,
        "manifest.md": manifest.page,
        "python.md": python.page,
        "recipes.md": recipes.page,
        "report.md": report.page,
    }


def write() -> None:
    """Writes all pages."""
    for name, make in pages().items():
        (FOLDER / name).write_text(make(), encoding="utf-8")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a table in Markdown."""
    names = list(head)
    lines = [names, ["---"] * len(names), *([cell(text) for text in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(text: str) -> str:
    """Returns a text as a table's cell takes it."""
    return " ".join(text.split()).replace("|", "\\|")


def marked(text: str) -> str:
    """Returns a text with the options that it names as code."""
    return _BARE.sub(lambda found: f"`{found[0].strip('`')}`", text)
