"""JSON files of a model directory, read with a bound on their size and with errors that name them."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from leptonc.errors import InputError

MAX_JSON_BYTES = 256 * 2**20


def read_bytes(path: Path) -> bytes:
    """Returns the file's bytes.

    Raises:
        InputError: it is no file, cannot be read or is larger than `MAX_JSON_BYTES`.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise InputError(f"{path}: expected a file, found something else")
        size = status.st_size
        if size > MAX_JSON_BYTES:
            raise InputError(f"{path}: expected at most {MAX_JSON_BYTES} bytes, found {size}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_text(path: Path) -> str:
    """Returns the file's text, which must be UTF-8."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, found byte {error.object[error.start]:#04x}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object that the file holds."""
    value = _parse(path)
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: expected a JSON object, found {type(value).__name__}",
            hint="the file is damaged; fetch it again",
        )
    return value


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """Returns the JSON array of objects that the file holds."""
    value = _parse(path)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InputError(f"{path}: expected a JSON array of objects")
    return value


def _parse(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: expected JSON, found an error: {error}", hint="the file is damaged; fetch it again"
        ) from error
