"""What the documents say exists: links, verbs and options."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from leptonc.cli import _VERBS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def command(verb: str) -> click.Command:
    module, _, attribute = _VERBS[verb].location.partition(":")
    found: click.Command = getattr(importlib.import_module(module), attribute)
    return found


def options(verb: str) -> set[str]:
    return {name for param in command(verb).params for name in (*param.opts, *param.secondary_opts)}


def shown_commands() -> Iterator[tuple[str, list[str]]]:
    """Every `leptonc …` and `lepton-edge …` line of a code block, without comments."""
    for document in DOCUMENTS:
        for block in re.findall(r"```bash\n(.*?)```", document.read_text(), re.S):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] in ("leptonc", "lepton-edge"):
                    yield document.name, words[1:]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text())
    assert [link for link in links if "://" not in link and not (document.parent / link).exists()] == []


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
