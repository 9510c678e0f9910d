"""Calibration texts: files of the user's, cut into windows of tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leptonc.errors import InputError

FEWEST = 64  # tokens that say anything of a model
LARGEST = 2**30  # bytes
FORMATS = (".txt", ".jsonl")


def read_texts(path: Path) -> list[str]:
    """Returns the texts of a file: a .txt is one, a .jsonl has one a line, in the field "text".

    Raises:
        InputError: The file is not there, too large, of another format, not UTF-8, or without text.
    """
    if not path.is_file():
        raise InputError(f"expected a calibration file, found none at {path}", hint="a .txt or .jsonl file of text")
    if path.suffix not in FORMATS:
        raise InputError(
            f"expected a calibration file of a format among {', '.join(FORMATS)}, found {path.name}",
            hint='.txt is plain text; .jsonl has an object a line with a field "text"',
        )
    if path.stat().st_size > LARGEST:
        raise InputError(
            f"expected a calibration file of at most {LARGEST:,} bytes, found {path.stat().st_size:,} in {path.name}",
            hint="a few hundred kilobytes are plenty",
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"expected UTF-8 in {path.name}, found a byte that is not at offset {error.start}",
            hint="convert the file to UTF-8",
        ) from None
    texts = [text] if path.suffix == ".txt" else [_line(path, n, line) for n, line in enumerate(text.splitlines(), 1)]
    texts = [each for each in texts if each.strip()]
    if not texts:
        raise InputError(f"expected text in {path.name}, found none", hint="text like what the model will read")
    return texts


def _line(path: Path, number: int, line: str) -> str:
    if not line.strip():
        return ""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("text"), str):
        raise InputError(
            f'expected an object with a field "text" in line {number} of {path.name}, found {line[:60]!r}',
            hint='a line looks like {"text": "…"}',
        )
    text: str = found["text"]
    return text


def token_windows(
    texts: Sequence[str], tokenize: Callable[[str], list[int]], samples: int, length: int
) -> list[NDArray[np.int64]]:
    """Cuts texts, joined in order, into windows spread evenly over them.

    Args:
        texts: The texts.
        tokenize: Returns a text's token ids.
        samples: Most windows.
        length: Tokens of each; text shorter than one window is one of its own length.

    Returns:
        Token ids int64 [length] of each window.

    Raises:
        InputError: There are fewer than `FEWEST` tokens.
    """
    ids = np.asarray([token for text in texts for token in tokenize(text)], np.int64)
    if len(ids) < FEWEST:
        raise InputError(
            f"expected at least {FEWEST} tokens of calibration text, found {len(ids)}",
            hint="text like what the model will read; 16,000 tokens and more are better",
        )
    whole = len(ids) // length
    if whole == 0:
        return [ids]
    picked = np.unique(np.linspace(0, whole - 1, min(samples, whole)).astype(int))
    return [ids[at * length : (at + 1) * length] for at in picked]
