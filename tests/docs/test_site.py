"""The pages as a site: it builds without a warning, has all pages, and asks no other host for anything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

pytestmark = pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs the extra docs")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as CONTRIBUTING.md says: warnings, of links that lead nowhere among them, are errors."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    pages |= {Path(f"{name}.html") for name in ("architecture", "contributing", "changelog")}
    assert [str(page) for page in pages if not (site / page).is_file()] == []


def test_the_site_asks_no_other_host(site: Path) -> None:
    loads = re.compile(r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="((?:https?:)?//[^"]*)"')
    assert {url for page in site.rglob("*.html") for url in loads.findall(page.read_text(encoding="utf-8"))} == set()
    assert "mermaid" not in "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md"))


def test_tables_show_bars_and_no_backslashes(site: Path) -> None:
    text = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    assert "<code>--kv-cache int8</code>" in text
    assert "<code>--method rtn | gptq | awq</code>" in text


def test_search_finds_what_pages_say(site: Path) -> None:
    entries = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    found = {entry["location"] for entry in entries if "LEPTON_RUN_MAX_NEW_TOKENS" in entry["text"]}
    assert "reference/cli.html#run" in found


def test_pages_of_the_project_link_into_the_site(site: Path) -> None:
    text = (site / "contributing.html").read_text(encoding="utf-8")
    assert 'href="reference/cli.html"' in text
    assert 'href="docs/' not in text
