"""Calibration files, good and bad, and how they are cut."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from leptonc.calibrate import texts as texts_module
from leptonc.calibrate.texts import (
    BUILT_IN,
    built_in_pieces,
    built_in_texts,
    is_built_in,
    read_texts,
    rendered,
    text_windows,
    token_windows,
)
from leptonc.errors import InputError


def test_the_text_of_many_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = built_in_pieces()
    assert len(pieces) == len(set(pieces)) > 50
    assert read_texts(Path(BUILT_IN)) == pieces
    whole = "".join(pieces)
    assert 80_000 < len(whole.encode()) < 120_000
    assert "%%" not in whole.split("\n")
    begin = "".join(pieces[:6])  # one of each kind
    assert all(mark in begin for mark in ("def ", "Support:", "|"))
    assert any("\u0400" <= letter < "\u0500" for letter in whole)
    assert any("\u4e00" <= letter < "\ua000" for letter in whole)
    windows = token_windows(pieces, lambda piece: list(piece.encode()), 32, 512)
    assert len(windows) == 32
    monkeypatch.chdir(tmp_path)
    (tmp_path / BUILT_IN).write_text("a file of that name")
    assert not is_built_in(Path(BUILT_IN))  # is the user's
    with pytest.raises(InputError, match="expected a calibration file of a format among"):
        read_texts(Path(BUILT_IN))


def test_text_and_lines_of_json(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "zwölf", "id": 3}\n', encoding="utf-8")
    assert read_texts(tmp_path / "a.txt") == ["one\n\ntwo"]
    assert read_texts(tmp_path / "a.jsonl") == ["one", "zwölf"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "found none"),
        ("a.txt", b" \n", "found none"),
        ("a.txt", b"good \xff", "offset 5"),
        ("a.csv", b"text", "found a.csv"),
        ("a.jsonl", b'{"text": "one"}\n{"text": 3}', "line 2"),
        ("a.jsonl", b'{"text": "one"', "line 1"),
        ("a.jsonl", b"[" * 100_000, "line 1"),
        ("a.jsonl", b'{"messages": []}', "line 1"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', "line 1"),
        ("a.txt", "text".encode("utf-16-le"), "a character of code 0 at offset 1"),
        ("a.jsonl", b'{"text": "one"}\n{"text": "a\\ud800b"}', r"line 2 of a.jsonl, found half a surrogate pair, .* 1"),
        (
            "a.jsonl", b'{"messages": [{"role": "user", "content": "\\udc00"}]}',
            "line 1 of a.jsonl, found half a surrogate pair",
        ),
    ],
)  # fmt: skip
def test_bad_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_texts(tmp_path / name)


def test_a_line_of_json_is_what_ends_with_a_line_feed(tmp_path: Path) -> None:
    """Other characters that end lines of text stand for themselves in JSON."""
    text = "one\u2028two\u2029three\x85four"
    line = json.dumps({"text": text}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_bytes(f'{line}\r\n{{"text": "five"}}\r\n'.encode())
    assert read_texts(tmp_path / "a.jsonl") == [text, "five"]


def test_of_texts_that_are_far_too_long_pieces_are_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def tokenize(text: str) -> list[int]:
        seen.append(text)
        return [int(word) for word in text.split()]

    text = "".join(f"{i:07d} " for i in range(20_000))
    whole = token_windows([text], tokenize, 3, 100)
    assert seen == [text]
    seen.clear()
    monkeypatch.setattr(texts_module, "LONG", 16_000)
    few = token_windows([text[:80_000], text[80_000:]], tokenize, 3, 100)
    assert [len(each) for each in seen] == [1600] * 10  # of 100 pieces
    assert "".join(seen).startswith("0000000 ")
    assert int(few[-1][-1]) > 19_000
    assert [len(each) for each in few] == [len(each) for each in whole]
    assert max(abs(int(a[0]) - int(b[0])) for a, b in zip(few, whole, strict=True)) < 2500  # from about the same places


def test_conversations_go_through_the_template(tmp_path: Path) -> None:
    lines = (
        '{"text": "plain"}\n'
        '{"messages": [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "two"}]}\n'
        '{"messages": [{"role": "user", "content": "three?"}]}\n'
    )
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    texts = read_texts(tmp_path / "a.jsonl")

    def template(messages: list[dict[str, str]], answer: bool) -> str:
        return "".join(f"<{each['role']}>{each['content']}" for each in messages) + "<assistant>" * answer

    talks = ["<user>one?<assistant>two", "<user>three?<assistant>"]
    assert rendered(texts, template, chat=False) == ["plain", *talks]
    assert rendered(texts, template, chat=True) == ["<user>plain<assistant>", *talks]
    assert rendered(["plain"], None, chat=False) == ["plain"]
    for given, chat in ((texts, False), (["plain"], True)):
        with pytest.raises(InputError, match="expected a model with a chat template"):
            rendered(given, None, chat=chat)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found none at"):
        read_texts(tmp_path / "none.txt")


def test_windows_are_spread_over_the_text() -> None:
    def tokenize(text: str) -> list[int]:
        return [int(word) for word in text.split()]

    text = " ".join(map(str, range(1000)))
    found = token_windows([text], tokenize, 3, 100)
    assert [int(w[0]) for w in found] == [0, 400, 900]
    assert all(len(w) == 100 for w in found)
    np.testing.assert_array_equal(token_windows([text], tokenize, 4, 5000)[0], np.arange(1000))
    with pytest.raises(InputError, match=r"at least 64 tokens .* found 10"):
        token_windows(["1 2 3 4 5 6 7 8 9 10"], tokenize, 4, 100)


def test_windows_begin_with_what_the_tokenizer_puts_before_every_text() -> None:
    found = token_windows([" ".join(map(str, range(1000)))], lambda t: [int(w) for w in t.split()], 3, 100, [7, 8])
    assert [each[:3].tolist() for each in found] == [[7, 8, 0], [7, 8, 392], [7, 8, 882]]
    assert {len(each) for each in found} == {100}


def test_lines_are_windows_of_their_own() -> None:
    found = text_windows(built_in_texts(), lambda text: [1, *map(len, text.split()), 2], 10)
    assert len(found) == 10
    assert all(each[0] == 1 and each[-1] == 2 for each in found)
    with pytest.raises(InputError, match="found 6"):
        text_windows(["a\nb"], lambda _: [1, 5, 2], 10)
