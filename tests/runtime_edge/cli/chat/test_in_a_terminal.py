"""A chat as a person has it: keys into a pseudo-terminal, and what the screen shows."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runtime_edge.cli.chat.speaker import write_speaker
from tests.runtime_edge.cli.chat.terminal import ALT_ENTER, CTRL_C, CTRL_D, LEFT, TAB, UP, Terminal

PROMPT = "> a message, or /help"
MARKDOWN = [
    "# Title\n\n",
    "Some **bold** ",
    "words, ",
    "日本語のテキスト",
    "もあります。",
    "\n\n",
    "- an item\n",
    "\nend.",
]
COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7])(?:;\d+)*m")


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes an artifact that says given pieces: `speaker("Well, ", "yes.")`."""
    return lambda *pieces, **options: write_speaker(tmp_path_factory.mktemp("speaker") / "a.lepton", pieces, **options)


@pytest.fixture(scope="module")
def brief(speaker: Callable[..., Path]) -> Path:
    return speaker("Well, ", "yes.", max_seq_len=256)


@pytest.fixture
def own_cache(tmp_path: Path) -> dict[str, Any]:
    return {"folder": tmp_path, "variables": {"LEPTON_CACHE": str(tmp_path / "cache")}}


def said(terminal: Terminal, keys: str, wanted: str = PROMPT) -> str:
    """Types keys at a prompt and waits for the next prompt; returns what was shown in between."""
    before = len(terminal.wait(lambda shown: shown.endswith(PROMPT))) - len(PROMPT)
    terminal.type(keys)
    return terminal.wait(lambda shown: shown[before:].endswith(wanted) and len(shown) > before + len(PROMPT))[before:]


def test_keys_edit_and_history_lasts(brief: Path, own_cache: dict[str, Any], tmp_path: Path) -> None:
    with Terminal.chat(brief, **own_cache) as terminal:
        assert said(terminal, f"hlo{LEFT}{LEFT}el\r").startswith("> hello\nWell, yes.\n")
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    path = tmp_path / "cache" / "chat-history"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Terminal.chat(brief, "--no-history", **own_cache) as terminal:
        terminal.wait(PROMPT)
        terminal.type(UP)
        terminal.settle()
        assert "hello" not in terminal.shown
        terminal.type("secret\r/quit\r")
        assert terminal.end() == 0
    with Terminal.chat(brief, **own_cache) as terminal:
        assert said(terminal, f"{UP} again\r").startswith("> hello again\nWell, yes.\n")
    assert "secret" not in path.read_text()


def test_messages_of_several_lines_and_commands(brief: Path, own_cache: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("From the file.\n")
    with Terminal.chat(brief, **own_cache) as terminal:
        said(terminal, f"one\\\rtwo{ALT_ENTER}three\r", f"Well, yes.\n\n{PROMPT}")
        said(terminal, '"""\rin a\r\rblock\r"""\r', f"Well, yes.\n\n{PROMPT}")
        terminal.paste("pasted\n\tlines")
        said_of_paste = terminal.wait("pasted\n  ^Ilines")
        assert said_of_paste.count("Well, yes.") == 2  # a paste sends nothing
        terminal.type("\r")
        terminal.wait(lambda shown: shown.count("Well, yes.") == 3)
        assert "did you mean /save?" in said(terminal, "/savee x\r")
        assert "Saved 6 messages." in said(terminal, "/save saved.json\r")
        assert "/save! saved.json replaces it" in said(terminal, "/save saved.json\r")
        assert "Cleared." in said(terminal, f"/cl{TAB}\r")
        assert "notes.txt, 15 tokens, goes with the next message." in said(terminal, f"/file no{TAB}\r")
        assert "Well, yes." in said(terminal, "What is it?\r")
        assert "Saved 2 messages." in said(terminal, "/save! other.json\r")
        assert "Loaded 6 messages" in said(terminal, f"/load sav{TAB}\r")
        assert "error: none: No such file" in said(terminal, "/load none\r")
        stats = said(terminal, "/stats\r")
        assert re.search(r"context +\d+ of 256 tokens; 3 turns\n", stats)
        assert re.search(r"first token +after [\d.]+ s\nanswer +3 tokens at", stats)
        assert said(terminal, "/help\r").count("\n/") > 7
    saved = json.loads((tmp_path / "saved.json").read_text())
    assert [message["content"] for message in saved[::2]] == ["one\ntwo\nthree", "in a\n\nblock", "pasted\n\tlines"]
    assert {message["content"] for message in saved[1::2]} == {"Well, yes."}
    other = json.loads((tmp_path / "other.json").read_text())
    assert other[0]["content"] == "notes.txt:\n```\nFrom the file.\n```\n\nWhat is it?"
    command = [sys.executable, "-m", "runtime_edge", "run", str(brief), "--messages", str(tmp_path / "saved.json")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "Well, yes.\n"


def test_ctrl_c_ends_the_answer_and_not_the_chat(speaker: Callable[..., Path], own_cache: dict[str, Any]) -> None:
    pieces = [f"word{number} " for number in range(99)]
    endless = speaker(*pieces, is_endless=True, max_seq_len=2**17)
    with Terminal.chat(endless, "--max-new-tokens", 10**6, **own_cache) as terminal:
        terminal.wait(PROMPT)
        terminal.type("go\r")
        terminal.wait("word5")
        terminal.type("unseen")
        terminal.resize(60, 20)
        terminal.wait("word98")
        terminal.type(CTRL_C)
        terminal.wait(f"[stopped]\n\n{PROMPT}")
        assert "unseen" not in terminal.shown
        assert "1 turn\n" in said(terminal, "/stats\r")
        terminal.type("again\r")
        terminal.wait(lambda shown: "word98" in shown.partition("> again\n")[2])
        terminal.type(CTRL_C)
        terminal.wait(lambda shown: shown.count("[stopped]") == 2 and shown.endswith(PROMPT))
        cached = re.search(r"(\d+) were", said(terminal, "/stats\r"))
        assert cached is not None
        assert int(cached[1]) > 100  # the answer that was ended is read again from the cache
        assert said(terminal, "typed" + CTRL_C).startswith("> typed\n")
        terminal.type(CTRL_C)
        terminal.wait(f"Ctrl-C once more, or Ctrl-D, ends the chat.\n{PROMPT}")
        terminal.type(CTRL_C)
        assert terminal.end() == 0
        assert terminal.is_cooked()


def test_a_full_context_drops_turns_and_goes_on(brief: Path, own_cache: dict[str, Any]) -> None:
    with Terminal.chat(brief, "--system", "Be brief.", columns=120, **own_cache) as terminal:
        for number in range(4):
            shown = said(terminal, f"this is what is asked in round {number}\r", f"Well, yes.\n\n{PROMPT}")
            assert ("The context is full: the 2 oldest turns are left out" in shown) is (number == 3)
        assert "the oldest 2 left out" in said(terminal, "/stats\r")
        assert "335 tokens, and the model" in said(terminal, "x" * 300 + "\r")
        assert "Be brief." in said(terminal, "/system\r")
        assert "Well, yes." in said(terminal, "still there?\r")


@pytest.mark.parametrize(("variables", "is_coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_markdown_on_a_narrow_screen(
    speaker: Callable[..., Path], own_cache: dict[str, Any], variables: dict[str, str], is_coloured: bool
) -> None:
    code = [f"line{number} = {number}\n" for number in range(30)]
    artifact = speaker(*MARKDOWN[:-1], "\n```python\n", *code, "```\n", MARKDOWN[-1])
    own_cache["variables"] |= variables
    with Terminal.chat(artifact, columns=40, rows=12, **own_cache) as terminal:
        shown = said(terminal, "go\r", f"end.\n\n{PROMPT}")
        lines = shown.split("\n")
        assert lines[1:8] == [
            "Title", "", "Some bold words,", "日本語のテキストもあります。", "", "• an item", ""
        ]  # fmt: skip
        assert lines[8:-4] == [line.rstrip() for line in code]  # higher than the screen, and every line there once
        assert bool(COLOUR.search(terminal.output)) is is_coloured
        assert "Markdown is shown as it is." in said(terminal, "/markdown off\r")
        assert "# Title\n\nSome **bold** words" in said(terminal, "go\r", f"end.\n\n{PROMPT}")


def test_what_a_model_says_moves_no_cursor(speaker: Callable[..., Path], own_cache: dict[str, Any]) -> None:
    artifact = speaker("a\x1b[2J", "\x9b5A", "\x07\r", "\x1b]0;title\x07", "end.")
    with Terminal.chat(artifact, **own_cache) as terminal:
        for keys in ("go\r", "/markdown off\rgo\r"):
            assert "a␛[2J�5A␇␛]0;title␇end." in said(terminal, keys, f"end.\n\n{PROMPT}")
        assert b"\x1b[2J" not in terminal.output
        assert b"\x1b]0;" not in terminal.output


@pytest.mark.parametrize(
    "variables",
    [{"TERM": "dumb"}, {"PYTHONIOENCODING": "latin-1"}, {"PYTHONPATH": "without"}],
    ids=["dumb", "latin-1", "without prompt_toolkit"],
)
def test_poor_terminals(
    speaker: Callable[..., Path], own_cache: dict[str, Any], tmp_path: Path, variables: dict[str, str]
) -> None:
    (tmp_path / "without" / "prompt_toolkit").mkdir(parents=True)
    (tmp_path / "without" / "prompt_toolkit" / "__init__.py").write_text("raise ImportError")
    root = str(Path(__file__).parents[4])
    path = {"PYTHONPATH": f"{tmp_path / 'without'}:{root}" if "PYTHONPATH" in variables else root}
    own_cache["variables"] |= {**variables, **path}
    with Terminal.chat(speaker("Ja, ", "日本 ", "end."), **own_cache) as terminal:
        terminal.wait(lambda shown: re.search(r"^>", shown, re.M) is not None)
        terminal.settle()
        terminal.type("hé\r".encode("latin-1"))
        terminal.wait(lambda shown: "end.\n" in shown and shown.count("\n>") == 2)
        assert ("pip install prompt_toolkit" in terminal.shown) is ("PYTHONPATH" in variables)
        terminal.type('"""\runfinished\r')
        terminal.settle()
        terminal.type(CTRL_D if variables.get("PYTHONIOENCODING") is None else CTRL_C + CTRL_D)
        assert terminal.end() == 0
        assert terminal.shown.count("end.") == 1
        assert "Traceback" not in terminal.shown
