"""The command lines and programs that the pages show do run, page by page, each page in a folder of its own.

CONTRIBUTING.md tells the marks. `pytest tests/docs/test_blocks.py -k quantize` runs one page.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import PAGES, ROOT, Block, blocks, name
from tests.docs.stand_ins import provide, with_stand_ins

pytestmark = pytest.mark.skipif(find_spec("torch") is None, reason="needs the extra compiler")

RUN = {"bash", "python"}
SHOWN = {"text", "json", "toml", "jsonl", "yaml", "c", "dockerfile", "ini"}
QUOTED, SHELL = re.compile(r"\"[^\"]*\"|'[^']*'|#.*"), re.compile(r"[|&;<>()$*`]")


@pytest.fixture(scope="module", autouse=True)
def _shared() -> Iterator[None]:
    if find_spec("torch") is None:
        yield
        return
    from tests.leptonc.shared import shared

    with shared():
        yield


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_has_a_language_and_every_mark_a_reason(page: Path) -> None:
    known = list(blocks(page))
    assert [block.place for block in known if block.language not in RUN | SHOWN] == []
    assert [block.place for block in known if "" in block.marks.values()] == []
    wrong = [block.place for block in known if "file" not in block.marks and block.marks and block.language not in RUN]
    assert wrong == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.language in RUN for block in blocks(page))], ids=name
)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if "not run" in block.marks:
            continue
        text = with_stand_ins(block.text)
        if "file" in block.marks:
            (tmp_path / block.marks["file"]).write_text(text, encoding="utf-8")
        elif block.language in RUN:
            provide(text, tmp_path)
            run = run_python if block.language == "python" else run_bash
            run(block, text, namespace)


def run_python(block: Block, text: str, namespace: dict[str, Any]) -> None:
    """Runs a program with the names that earlier ones of the page have left."""
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(text, block.place, "exec"), namespace)


def run_bash(block: Block, text: str, _: dict[str, Any]) -> None:
    """Runs a block's lines; plain calls of our own command lines run in this process, which takes less time."""
    last = int(block.marks.get("exit", 0))
    calls = own_calls(text)
    for position, words in enumerate(calls, 1):
        code, told = call(words)
        wanted = last if position == len(calls) else 0
        assert code == wanted, f"{block.place}: {shlex.join(words)}: expected exit code {wanted}, found {code}\n{told}"
    if not calls:
        command = ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        assert done.returncode == last, f"{block.place}: expected {last}, found {done.returncode}\n{done.stderr}"


def own_calls(text: str) -> list[list[str]]:
    """Returns the words of each line where all are plain calls of our own command lines, else nothing."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if QUOTED.sub("", line).strip()]
    if not all(line.split()[0] in ("leptonc", "lepton-edge") for line in lines):
        return []
    if any(SHELL.search(QUOTED.sub("", line)) for line in lines):
        return []
    return [shlex.split(line, comments=True) for line in lines]


def call(words: list[str]) -> tuple[int, str]:
    """Returns the exit code of a command line and what it wrote."""
    from leptonc.cli import main as leptonc
    from runtime_edge.cli import main as lepton_edge

    written = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)  # JSON is written as bytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO())
        patch.setattr(sys, "stdout", written)
        patch.setattr(sys, "stderr", written)
        code = (leptonc if words[0] == "leptonc" else lepton_edge)(words[1:])
    written.seek(0)
    return code, written.read()
