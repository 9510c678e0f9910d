"""Calibration texts: files of the user's, cut into windows of tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.resources import files
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


def built_in_texts() -> list[str]:
    """Returns a small text of our own writing, for models that cannot write one."""
    return (files("leptonc.calibrate") / "text.txt").read_text(encoding="utf-8").splitlines()


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
    texts: Sequence[str], tokenize: Callable[[str], list[int]], samples: int, length: int, lead: Sequence[int] = ()
) -> list[NDArray[np.int64]]:
    """Cuts texts, joined in order, into windows spread evenly over them.

    Args:
        texts: The texts.
        tokenize: Returns a text's token ids.
        samples: Most windows.
        length: Tokens of each; text shorter than one window is one of its own length.
        lead: Tokens that each begins with; they count.

    Returns:
        Token ids int64 [length] of each window.

    Raises:
        InputError: There are fewer than `FEWEST` tokens.
    """
    ids = np.asarray([token for text in texts for token in tokenize(text)], np.int64)
    _enough(len(ids))
    first, step = np.asarray(lead, np.int64), length - len(lead)
    whole = len(ids) // step
    if whole == 0:
        return [np.concatenate([first, ids])]
    picked = np.unique(np.linspace(0, whole - 1, min(samples, whole)).astype(int))
    return [np.concatenate([first, ids[at * step : (at + 1) * step]]) for at in picked]


def text_windows(texts: Sequence[str], tokenize: Callable[[str], list[int]], samples: int) -> list[NDArray[np.int64]]:
    """Makes each line of texts a window, for models that read sentences; those are spread evenly over the lines.

    Args:
        texts: The texts.
        tokenize: Returns a text's token ids, with those that the model wants around it.
        samples: Most windows.

    Raises:
        InputError: There are fewer than `FEWEST` tokens.
    """
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    picked = np.unique(np.linspace(0, len(lines) - 1, min(samples, len(lines))).astype(int))
    found = [np.asarray(tokenize(lines[at]), np.int64) for at in picked]
    _enough(sum(map(len, found)))
    return found


def _enough(tokens: int) -> None:
    if tokens < FEWEST:
        raise InputError(
            f"expected at least {FEWEST} tokens of calibration text, found {tokens}",
            hint="text like what the model will read; 16,000 tokens and more are better",
        )
