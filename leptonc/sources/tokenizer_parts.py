"""A tokenizer.json in its parts, each as the JSON text that it is: what needs one part does not read a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

Parts = dict[str, bytes]
NULL = b"null"


def split(data: bytes | str) -> Parts:
    """Returns the text of each field of a JSON object.

    Raises:
        ValueError: It is no JSON object.
    """
    try:
        raw = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    return {name: bytes(part) for name, part in raw.items()}


def joined(parts: Mapping[str, bytes]) -> bytes:
    """Returns the JSON object of these fields."""
    return b"{" + b",".join(msgspec.json.encode(name) + b":" + part for name, part in parts.items()) + b"}"


def value_of(parts: Mapping[str, bytes], name: str) -> Any:
    """Returns what a field holds; None where there is none (raises `ValueError` where it is no JSON)."""
    return msgspec.json.decode(parts.get(name, NULL))


def text_of(value: Any) -> bytes:
    """Returns a value as a field's text."""
    return msgspec.json.encode(value)


class _Model(msgspec.Struct):
    type: str | None = None


def model_type(parts: Mapping[str, bytes]) -> str | None:
    """Returns the `type` of a tokenizer's model, such as BPE; older files have none."""
    return msgspec.json.decode(parts["model"], type=_Model).type
