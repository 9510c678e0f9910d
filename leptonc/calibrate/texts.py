"""Calibration texts: files of the user's, cut into windows of tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonc.errors import InputError

FEWEST = 64  # tokens of a text that is long enough
LARGEST = 2**30  # bytes
LONG = 2**23  # characters. Only pieces of longer texts are tokenized, because tokens take thirty times the bytes
PER_TOKEN = 16  # characters of a piece for each token that is wanted: about four times as many as most tokens have
FORMATS = (".txt", ".jsonl")
BUILT_IN = "built-in"  # in a file's place: text of many kinds that Lepton carries

Conversation = list[dict[str, Any]]  # messages with `role` and `content`, as chat templates take them


def read_texts(path: Path) -> list[str | Conversation]:
    """Returns the texts of a file: a .txt is one, a .jsonl has one a line, in the field "text" or "messages".

    `BUILT_IN` stands for the text of many kinds, unless there is a file of that name.

    Raises:
        InputError: The file is not there, too large, of another format, not UTF-8, or without text.
    """
    if is_built_in(path):
        return list(built_in_pieces())
    if not path.is_file():
        raise InputError(f"expected a calibration file, found none at {path}", hint="a .txt or .jsonl file of text")
    if path.suffix not in FORMATS:
        raise InputError(
            f"expected a calibration file of a format among {', '.join(FORMATS)}, found {path.name}",
            hint='.txt is plain text; .jsonl has an object a line with a field "text" or "messages"',
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
    if "\0" in text:
        raise InputError(
            f"expected text in {path.name}, found a character of code 0 at offset {text.index(chr(0))}",
            hint="convert the file to UTF-8 (UTF-16 has such characters)",
        )
    lines = enumerate(text.split("\n"), 1)  # other ends of lines may stand inside a line of JSON
    texts = [text] if path.suffix == ".txt" else [_line(path, n, line) for n, line in lines if line.strip()]
    texts = [content for content in texts if not isinstance(content, str) or content.strip()]
    if not texts:
        raise InputError(f"expected text in {path.name}, found none", hint="text like what the model will read")
    return texts


def built_in_texts() -> list[str]:
    """Returns a small text, written for this, for models that cannot write one."""
    return (files("leptonc.calibrate") / "text.txt").read_text(encoding="utf-8").splitlines()


def is_built_in(path: Path) -> bool:
    """Returns whether a path stands for the text of many kinds."""
    return path == Path(BUILT_IN) and not path.exists()


def built_in_pieces() -> list[str]:
    """Returns pieces of text of many kinds, written for this: articles, prose, dialogue, code, tables, languages.

    Kinds take turns, so that an evenly spread part of the pieces has all of them.
    """
    folder = files("leptonc.calibrate") / "text"
    kinds = [
        [piece.strip("\n") for piece in file.read_text(encoding="utf-8").split("\n%%\n") if piece.strip()]
        for file in sorted(folder.iterdir(), key=lambda file: file.name) if file.name.endswith(".txt")
    ]  # fmt: skip
    return [kind[at] + "\n\n" for at in range(max(map(len, kinds))) for kind in kinds if at < len(kind)]


def rendered(
    texts: Sequence[str | Conversation], template: Callable[[Conversation, bool], str] | None, *, chat: bool
) -> list[str]:  # fmt: skip
    """Returns texts as the model reads them.

    Args:
        texts: The texts of a file.
        template: Renders messages and, where its second argument is true, the beginning of an answer. None: the model
            has no template.
        chat: Whether a plain text becomes a conversation: a user's message that an answer would follow.

    Raises:
        InputError: There are conversations, and no template.
    """
    if template is None:
        if chat or any(not isinstance(content, str) for content in texts):
            raise InputError(
                "expected a model with a chat template for conversations of a calibration text, found none",
                hint='lines with a field "text", and no --chat, are read as they are',
            )
        return [content for content in texts if isinstance(content, str)]
    outputs = []
    for content in texts:
        if isinstance(content, str) and not chat:
            outputs.append(content)
        else:
            messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
            outputs.append(template(messages, messages[-1]["role"] != "assistant"))
    return outputs


def _is_conversation(messages: Any) -> bool:
    return isinstance(messages, list) and bool(messages) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in messages
    )  # fmt: skip


def _line(path: Path, number: int, line: str) -> str | Conversation:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if isinstance(record, dict) and isinstance(record.get("text"), str):
        text: str = record["text"]
        _encodes(path, number, text)
        return text
    if isinstance(record, dict) and _is_conversation(record.get("messages")):
        messages: Conversation = record["messages"]
        _encodes(path, number, "".join(message["content"] for message in messages))
        return messages
    raise InputError(
        f'expected an object with a field "text" or "messages" in line {number} of {path.name}, found {line[:60]!r}',
        hint='a line looks like {"text": "…"} or {"messages": [{"role": "user", "content": "…"}]}',
    )


def _encodes(path: Path, number: int, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a lone surrogate is valid JSON, and no text
        raise InputError(
            f"expected Unicode text in line {number} of {path.name}, found half a surrogate pair, "
            f"{text[error.start]!r}, at character {error.start}",
            hint="write characters beyond U+FFFF as themselves, or as both halves",
        ) from None


def _pieces(texts: Sequence[str], length: int) -> Sequence[str]:
    """Returns texts or, of those that are far longer than the windows need, pieces spread evenly over them."""
    if sum(map(len, texts)) <= LONG:
        return texts
    size = length * PER_TOKEN
    places = [(text, at) for text in texts for at in range(0, len(text), size)]
    picked = np.unique(np.linspace(0, len(places) - 1, min(len(places), LONG // size)).astype(int))
    return [text[at : at + size] for text, at in map(places.__getitem__, picked)]


def token_windows(
    texts: Sequence[str], tokenize: Callable[[str], list[int]], samples: int, length: int, lead: Sequence[int] = ()
) -> list[NDArray[np.int64]]:
    """Cuts texts, joined in order, into windows spread evenly over them.

    Args:
        texts: The texts.
        tokenize: Returns a text's token ids.
        samples: Most windows.
        length: Tokens of each window. A shorter text is one window of its own length.
        lead: Tokens that each window begins with, and that count. Default: none.

    Returns:
        Token ids int64 [length] of each window.

    Raises:
        InputError: There are fewer than `FEWEST` tokens.
    """
    pieces = _pieces(texts, length)
    ids = np.asarray([token for piece in pieces for token in tokenize(piece)], np.int64)
    _enough(len(ids))
    first, step = np.asarray(lead, np.int64), length - len(lead)
    whole = len(ids) // step
    if whole == 0:
        return [np.concatenate([first, ids])]
    picked = np.unique(np.linspace(0, whole - 1, min(samples, whole)).astype(int))
    return [np.concatenate([first, ids[at * step : (at + 1) * step]]) for at in picked]


def text_windows(texts: Sequence[str], tokenize: Callable[[str], list[int]], samples: int) -> list[NDArray[np.int64]]:
    """Makes windows of lines, for models that read sentences. The lines are spread evenly over the texts.

    Args:
        texts: The texts.
        tokenize: Returns a text's token ids, with the special tokens around it.
        samples: Most windows.

    Raises:
        InputError: There are fewer than `FEWEST` tokens.
    """
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    picked = np.unique(np.linspace(0, len(lines) - 1, min(samples, len(lines))).astype(int))
    windows = [np.asarray(tokenize(lines[at]), np.int64) for at in picked]
    _enough(sum(map(len, windows)))
    return windows


def _enough(tokens: int) -> None:
    if tokens < FEWEST:
        raise InputError(
            f"expected at least {FEWEST} tokens of calibration text, found {tokens}",
            hint="text like what the model will read; 16,000 tokens and more are better",
        )
