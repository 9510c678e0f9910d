"""The pages are written for a reader who has never seen Lepton: no history, and no phrases that slow one down."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import MADE, PAGES, ROOT, name, prose

HANDBOOK = [page for page in PAGES if page.name not in ("ARCHITECTURE.md", "CONTRIBUTING.md")]

# What a phrase says, and how to write it instead.
PHRASES = {
    r"but for\b": "except",
    r"\bno longer\b|\bused to (?:be|have|do|take)\b|\bformerly\b|\bpreviously\b|\bin the past\b": "what holds today",
    r"\bnone for none\b": "Default: none.",
    r"\d[\d.,]*(?: (?:%|kB|MB|GB|s|ms))? for \d[\d.,]*(?: (?:%|kB|MB|GB|s|ms))?\b": "a table, or `A, where B has …`",
    r"\bwork in progress\b|\bcoming soon\b": "what holds today",
    r"COMMAND THAT": "a command that runs",
}


@pytest.mark.parametrize("page", HANDBOOK, ids=name)
def test_phrases_are_plain(page: Path) -> None:
    text = " ".join(prose(page).split())
    found = {match[0]: better for phrase, better in PHRASES.items() for match in re.finditer(phrase, text)}
    assert found == {}


@pytest.mark.parametrize("page", [page for page in HANDBOOK if (ROOT / "docs") in page.parents], ids=name)
def test_a_page_has_one_title_and_it_comes_first(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if text.startswith(MADE):
        text = text.partition("\n\n")[2]
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    assert text.startswith("# ")
    assert len(re.findall(r"^# ", text, re.M)) == 1
