"""The text that fidelity is measured on: the user's, or by default the built-in one."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from leptonc.errors import InputError


def load_text(path: Path | None) -> str:
    """Returns the user's text. Without a path it is the built-in one.

    Raises:
        InputError: The file is missing, not UTF-8, or empty.
    """
    if path is None:
        return (files("leptonc.evaluate") / "text.txt").read_text(encoding="utf-8")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"expected UTF-8 text in {path}, found other bytes at {error.start}") from error
    except OSError as error:
        raise InputError(f"cannot read the text {path}: {error.strerror}") from error
    if not text.strip():
        raise InputError(f"expected text in {path}, found none")
    return text


def sentences(text: str, limit: int) -> list[str]:
    """Returns the first `limit` sentences of a text."""
    parts = [s.strip() for s in re.split(r"(?<=[.!?])\s+", text.strip()) if s.strip()]
    return parts[:limit]
