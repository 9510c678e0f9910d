"""Files of a chat: history, texts for a message, saved conversations; and messages of several lines."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from runtime_edge.cli.chat import blocks, files
from runtime_edge.cli.chat.history import HistoryFile
from runtime_edge.errors import RequestError


def test_history_is_private_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history"
    history = HistoryFile(path)
    assert history.read() == []
    for entry in ("one\ntwo", "日本\x1b", "x" * 99_999):
        history.add(entry)
    assert HistoryFile(path).read() == ["one\ntwo", "日本\x1b"]  # what is very long was pasted
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("no JSON\n[1]\n" + "".join(f'"{number}"\n' for number in range(3000)))
    path.chmod(0o644)
    history.read()
    history.add("last")
    assert HistoryFile(path).read() == [str(number) for number in range(2000, 3000)] + ["last"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_history_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    history = HistoryFile(tmp_path / "file" / "history")
    assert history.read() == []
    assert "Not a directory" in str(history.problem)
    history.problem = None
    history.add("one")
    assert history.problem is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff", "expected text in UTF-8"),
        (b"a\0b", "found a binary file"),
        (None, "found a folder"),
    ],
)
def test_what_is_no_text(tmp_path: Path, data: bytes | None, message: str) -> None:
    path = tmp_path / "file"
    path.mkdir() if data is None else path.write_bytes(data)
    with pytest.raises(RequestError, match=message):
        files.read_text(path)


def test_a_file_in_a_message_stands_between_fences() -> None:
    assert files.quoted("a.md", "one ```` two\n") == "a.md:\n`````\none ```` two\n`````"
    assert files.path_of('"with space.txt"') == Path("with space.txt")
    assert files.path_of("~/x") == Path.home() / "x"


def test_a_saved_conversation_is_replaced_when_asked_only(tmp_path: Path) -> None:
    path = tmp_path / "saved.json"
    messages = [{"role": "user", "content": "é"}]
    files.save(path, messages, replaces=False)
    with pytest.raises(RequestError, match="exists: /save!"):
        files.save(path, [], replaces=False)
    assert files.load(path) == json.loads(path.read_text(encoding="utf-8")) == messages
    files.save(path, messages * 2, replaces=True)
    assert len(files.load(path)) == 2
    path.write_text('[{"content": "no role"}]')
    with pytest.raises(RequestError, match="expected a list of messages"):
        files.load(path)


@pytest.mark.parametrize(
    ("text", "is_open", "content"),
    [
        ("one", False, "one"),
        ('"""one', True, '"""one'),
        ('"""\none\n\n two\n"""', False, "one\n\n two"),
        ('/system """\none\n"""', False, "/system one"),
        ('say """', False, 'say """'),
        ('"""doc"""\ncode()', False, '"""doc"""\ncode()'),
    ],
)
def test_blocks(text: str, is_open: bool, content: str) -> None:
    assert blocks.is_open(text) is is_open
    assert blocks.content(text) == content
