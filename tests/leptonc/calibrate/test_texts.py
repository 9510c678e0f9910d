"""Calibration files, good and bad, and how they are cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from leptonc.calibrate.texts import built_in_texts, read_texts, rendered, text_windows, token_windows
from leptonc.errors import InputError


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
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_texts(tmp_path / name)


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
