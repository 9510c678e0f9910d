"""What the pages say exists: links, anchors, verbs and options. `tests/docs` runs their blocks and builds the site."""

from __future__ import annotations

import functools
import importlib
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from leptonc.cli import _VERBS
from tests.docs.pages import PAGES, ROOT, blocks, name, prose, words

# Words by hand in README.md and docs/. Not counted: blocks, tables, pages that are made of code.
MOST_WORDS = 18_000
OPERATORS = {"|", ">", ">>", "<", "&&", ";", "&"}  # of the shell: behind them a command is over


def command(verb: str) -> click.Command:
    module, _, attribute = _VERBS[verb].location.partition(":")
    found: click.Command = getattr(importlib.import_module(module), attribute)
    return found


def options(verb: str) -> set[str]:
    return {name for param in command(verb).params for name in (*param.opts, *param.secondary_opts)}


def shown_commands() -> Iterator[tuple[str, list[str]]]:
    """Every `leptonc …` and `lepton-edge …` line of a code block, without comments."""
    for page in PAGES:
        for block in blocks(page):
            if block.language == "bash":
                for line in block.text.replace("\\\n", " ").splitlines():
                    words = shlex.split(line, comments=True)
                    if words and words[0] in ("leptonc", "lepton-edge"):
                        yield block.place, list(itertools.takewhile(lambda word: word not in OPERATORS, words[1:]))


@functools.cache
def anchors(page: Path) -> set[str]:
    """Returns the anchors that a git forge gives a page's headings; the site is told to give the same."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    headings = (re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading) for heading in re.findall(r"^#+ +(.*)$", text, re.M))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name)
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    broken = []
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if "://" not in target:
            path = (page.parent / target).resolve() if target else page
            if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
                broken.append(f"{target}#{anchor}" if anchor else target)
    assert broken == []


def test_anchors_are_those_of_git_forges() -> None:
    assert {"model", "where-a-change-goes"} & anchors(ROOT / "CONTRIBUTING.md") == {"where-a-change-goes"}


def test_words_by_hand_are_few() -> None:
    counted = {name(page): words(page) for page in PAGES if page.parent != ROOT or page.name == "README.md"}
    assert sum(counted.values()) <= MOST_WORDS, dict(sorted(counted.items(), key=lambda item: -item[1]))
    assert prose(ROOT / "README.md").count("|") < 3  # tables are not prose


@pytest.mark.parametrize(("document", "words"), list(shown_commands()))
def test_shown_commands_parse(document: str, words: list[str]) -> None:
    command(words[0]).make_context(words[0], words[1:])


def test_every_option_in_the_documents_exists_and_every_verb_is_described() -> None:
    text = (ROOT / "docs" / "reference" / "cli.md").read_text()
    known = {"--help"}.union(*(options(verb) for verb in _VERBS))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - known == set()
    assert [verb for verb in _VERBS if not re.search(rf"\*\*`(leptonc )?{verb}\b", text)] == []


def test_options_of_build_are_all_described() -> None:
    text = (ROOT / "docs" / "reference" / "cli.md").read_text()
    assert [name for name in options("build") if name not in text and name != "--out" and name != "--check"] == []
