"""The messages that the page of troubleshooting explains are those that the code writes."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator

import pytest

from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
WORDS = 3  # that a message has in common with the code, in their order
VALUES = r"…|(?<!\w)(?:TensorRT|[<>=]*\d[\d.;<>=]*\b)"  # what is put in while the code runs
NOT_OURS = {"Killed", "length", "expected manifest.json, found: No such file or directory"}


def messages() -> Iterator[str]:
    """Yields what the first column of each table quotes."""
    for row in re.findall(r"^\| (.*?) \|", PAGE.read_text(encoding="utf-8"), re.M):
        for quoted in re.finditer(r"``(.+?)``|`(.+?)`", row):
            yield quoted[1] or quoted[2]


@functools.cache
def written() -> str:
    """Returns every text of the code, a line each, with a gap in the place of what is put in while it runs."""
    lines = []
    for package in ("leptonc", "runtime_edge"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                    lines.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    lines.append(node.value)
    return "\n".join(lines)


def common(message: str) -> bool:
    """Whether a message without its values, or some words of it, are in a text of the code."""
    words = message.split()
    count = min(WORDS, len(words))
    parts = (" ".join(words[start : start + count]) for start in range(len(words) - count + 1))
    return re.sub(VALUES, "\0", message) in written() or any(part in written() for part in parts)


@pytest.mark.parametrize("message", sorted(set(messages()) - NOT_OURS))
def test_a_message_is_one_that_the_code_writes(message: str) -> None:
    assert common(message)


def test_other_messages_are_noticed() -> None:
    assert len(set(messages())) > 30
    assert not common("expected a cow, found a horse")
