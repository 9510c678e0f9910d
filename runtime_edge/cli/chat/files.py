"""Files of a chat: texts that go into a message, and conversations that are saved and loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from runtime_edge.errors import RequestError
from runtime_edge.writing import write_whole

_MOST_BYTES = 16 * 2**20


def path_of(text: str) -> Path:
    """The path that a person typed: quotes around it are taken away, `~` is the home folder.

    Raises:
        RequestError: It is empty, or names a home folder that there is not.
    """
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    if not text or "\0" in text:
        raise RequestError("expected a file's name, found none")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # a home folder that nobody knows
        raise RequestError(f"{text}: {error}") from error


def read_text(path: Path) -> str:
    """Reads a text file.

    Raises:
        RequestError: It is no text in UTF-8, too large, or no regular file.
        OSError: It cannot be read.
    """
    if path.exists() and not path.is_file():
        raise RequestError(f"{path}: expected a text file, found {'a folder' if path.is_dir() else 'no regular file'}")
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise RequestError(f"{path}: expected at most {_MOST_BYTES // 2**20} MB of text, found more")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: expected text in UTF-8, found other bytes at {error.start}") from error
    if "\0" in text:
        raise RequestError(f"{path}: expected text, found a binary file")
    return text.replace("\r\n", "\n")


def quoted(name: str, text: str) -> str:
    """A file's text as it stands in a message: its name, then the text between fences."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{name}:\n{fence}\n{text.rstrip()}\n{fence}"


def save(path: Path, messages: list[dict[str, Any]], *, replaces: bool) -> None:
    """Writes messages as the JSON that `run --messages` reads.

    Raises:
        RequestError: The file exists, and `replaces` is False.
        OSError: It cannot be written.
    """
    if path.is_dir():
        raise RequestError(f"{path}: expected a file's name, found a folder")
    if path.exists() and not replaces:
        raise RequestError(f"{path} exists: /save! {path} replaces it")
    write_whole(path, json.dumps(messages, ensure_ascii=False, indent=2).encode("utf-8", "replace") + b"\n")


def load(path: Path) -> list[dict[str, Any]]:
    """Reads the messages of a conversation (raises `RequestError`, `OSError`)."""
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: expected JSON, found: {str(error)[:200]}") from error
    are_messages = isinstance(values, list) and all(
        isinstance(value, dict) and isinstance(value.get("role"), str) for value in values
    )
    if not are_messages or not values:
        raise RequestError(f'{path}: expected a list of messages, as [{{"role": "user", "content": "…"}}]')
    return list(values)
