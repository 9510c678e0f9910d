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

import runtime_edge
from docs.generate import FOLDER, pages
from leptonc.cli import _VERBS
from tests.docs.pages import PAGES, ROOT, blocks, name, prose, words

# Words by hand in README.md, docs/ and examples/. Not counted: blocks, tables, pages that are made of code.
MOST_WORDS = 9_000
PACKAGES = ("leptonc", "runtime_edge", "targets", "sample_models")
DEVELOPERS = {"ARCHITECTURE.md", "CONTRIBUTING.md"}
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
    counted = {name(page): words(page) for page in PAGES if page.name not in DEVELOPERS}
    assert sum(counted.values()) <= MOST_WORDS, dict(sorted(counted.items(), key=lambda item: -item[1]))
    assert prose(ROOT / "README.md").count("|") < 3  # tables are not prose


@pytest.mark.parametrize(("document", "words"), list(shown_commands()))
def test_shown_commands_parse(document: str, words: list[str]) -> None:
    command(words[0]).make_context(words[0], words[1:])


@pytest.mark.parametrize("page", pages())
def test_pages_of_the_reference_are_what_the_code_says(page: str) -> None:
    """`python -m docs.generate` writes them."""
    assert (FOLDER / page).read_text(encoding="utf-8") == pages()[page](), "run: python -m docs.generate"


def test_the_python_api_is_told_whole() -> None:
    from docs.generate import python

    errors = {name for name in runtime_edge.__all__ if name.endswith("Error")}
    told = (FOLDER / "exit-codes.md").read_text(encoding="utf-8")
    assert python.names() == set(runtime_edge.__all__) - errors
    assert [name for name in errors if f"`runtime_edge.{name}`" not in told] == []


def test_every_variable_that_the_code_reads_is_told() -> None:
    texts = [path.read_text(encoding="utf-8") for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    values: dict[str, set[str]] = {}  # of constants, by their names: `os.environ.get(VARIABLE)`
    for constant, value in re.findall(r'^([A-Z_]+) = "([A-Z_]+)"', "\n".join(texts), re.M):
        values.setdefault(constant, set()).add(value)
    reads = re.findall(r'os\.(?:getenv\(|environ(?:\.\w+\(|\[))("?\w+"?)', "\n".join(texts))
    read = set().union(*(values.get(argument, {argument.strip('"')}) for argument in reads))
    told = set(re.findall(r"`([A-Z_]+)\b", (FOLDER / "environment.md").read_text(encoding="utf-8")))
    assert read - told == set(), "docs/reference/environment.md has to tell them"
    of_options = {"LEPTON_VERB_OPTION", "LEPTON_RUN_MAX_NEW_TOKENS"}
    assert {variable for variable in told if variable.startswith("LEPTON_")} - read == of_options
