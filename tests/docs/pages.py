"""The pages that a reader sees, and their fenced blocks with the marks before them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
_FOUND = (path for pattern in ("*.md", "docs/**/*.md", "examples/*.md") for path in ROOT.glob(pattern))
PAGES = sorted(path for path in _FOUND if path.name != "CHANGELOG.md")

# How a page begins that `python -m docs.generate` makes.
MADE = "<!-- Made by "

_FENCE = re.compile(r"^( *)(`{3,})([^\n`]*)\n(.*?)^\1\2 *$", re.M | re.S)
_MARK = re.compile(r"<!--\s*(not run|exit|file)\s*:\s*((?:(?!-->).)*?)\s*-->\s*$", re.S)


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        page: The page's path, relative to the repository.
        line: The number of the line that opens it, from 1.
        language: What is behind the opening fence; empty where nothing is.
        text: What is between the fences.
        marks: What comments just before it say, by their names.
    """

    page: str
    line: int
    language: str
    text: str
    marks: dict[str, str]

    @property
    def place(self) -> str:
        """Page and line, for messages."""
        return f"{self.page}:{self.line}"


def name(page: Path) -> str:
    """Returns a page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    """Yields a page's fenced blocks in their order."""
    text = page.read_text(encoding="utf-8")
    for fence in _FENCE.finditer(text):
        before, marks = text[: fence.start()], {}
        while mark := _MARK.search(before):
            marks[mark[1]] = mark[2]
            before = before[: mark.start()]
        line = text.count("\n", 0, fence.start()) + 1
        indent = len(fence[1])
        content = "".join(row[indent:] if row.strip() else row for row in fence[4].splitlines(keepends=True))
        yield Block(name(page), line, fence[3].strip(), content, marks)


def prose(page: Path) -> str:
    """Returns a page's text without blocks, comments, tables, and the targets of links."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"^ *\|.*$", "", text, flags=re.M)
    return re.sub(r"\]\([^)]*\)", "]", text)


def words(page: Path) -> int:
    """Returns how many words of a page were written by hand; none of a page that code makes."""
    if page.read_text(encoding="utf-8").startswith(MADE):
        return 0
    return sum(any(letter.isalnum() for letter in word) for word in prose(page).split())
