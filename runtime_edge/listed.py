"""Values that a caller gives one after the other, in whatever holds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def listed(values: Any) -> Iterator[Any] | None:
    """Returns an iterator over values, or None where they are none: text, bytes, a dict, what cannot be iterated over.

    It asks by iterating: an array of numpy without dimensions has `__iter__`, which raises TypeError. Errors that
    come while values are made, by a generator of the caller, are the caller's.
    """
    if isinstance(values, (str, bytes, bytearray, Mapping)):
        return None
    try:
        iterator: Iterator[Any] = iter(values)
    except TypeError:
        return None
    return iterator
