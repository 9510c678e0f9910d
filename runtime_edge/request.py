"""What a caller asks for, checked: every fault is a `RequestError` that names the option."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from runtime_edge import drafts as drafting
from runtime_edge.errors import RequestError
from runtime_edge.sampling import SamplingOptions


class Event(Protocol):
    """What `cancel` takes: a `threading.Event`, or anything with its `is_set`."""

    def is_set(self) -> bool:
        """Returns whether to stop."""


def is_set(cancel: Event | None) -> bool:
    """Returns whether `cancel` was given and says to stop."""
    return cancel is not None and cancel.is_set()


@dataclass(frozen=True)
class Request:
    """A checked request for one generation."""

    token_ids: list[int]
    max_new_tokens: int | None
    sampling: SamplingOptions
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    cancel: Event | None
    drafts: int = 0


def sampling_options(
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
    seed: int | None,
) -> SamplingOptions:
    """Checks sampling options (None leaves one off)."""
    return SamplingOptions(
        temperature=_real("temperature", temperature, "a number >= 0", lambda value: value >= 0),
        top_k=0 if top_k is None else integer("top_k", top_k, 0),
        top_p=1.0 if top_p is None else _real("top_p", top_p, "a number in (0, 1]", lambda value: 0 < value <= 1),
        min_p=0.0 if min_p is None else _real("min_p", min_p, "a number in [0, 1]", lambda value: 0 <= value <= 1),
        repetition_penalty=1.0
        if repetition_penalty is None
        else _real("repetition_penalty", repetition_penalty, "a number > 0", lambda value: value > 0),
        seed=None if seed is None else integer("seed", seed, 0),
    )


def stop_strings(stop: str | Iterable[str]) -> tuple[str, ...]:
    """Checks stop strings; one alone may be given as it is."""
    if not isinstance(stop, Iterable):
        raise RequestError(f"stop: expected strings, found {type(stop).__name__}")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    for one in stops:
        if not isinstance(one, str) or not one:
            raise RequestError(f"stop: expected strings that are not empty, found {one!r}")
    return stops


def token_ids(name: str, values: Iterable[Any], vocab_size: int) -> list[int]:
    """Checks token ids against the vocabulary."""
    found = [integer(name, value, 0) for value in values]
    worst = max(found, default=0)
    if worst >= vocab_size:
        raise RequestError(f"{name}: expected token ids below {vocab_size} (vocab_size), found {worst}")
    return found


def drafts(value: Any) -> int:
    """Checks how many tokens a draft has at most: False none, True the usual number."""
    if isinstance(value, bool):
        return drafting.MOST if value else 0
    return integer("drafts", value, 0, others="True, False or ")


def messages(values: Sequence[Any]) -> list[Mapping[str, Any]]:
    """Checks chat messages: mappings with a `role` and a `content`, both text; other keys are the template's."""
    for index, value in enumerate(values):
        if not isinstance(value, Mapping):
            raise RequestError(f"messages[{index}]: expected a dict with role and content, found {_name(value)}")
        for key in ("role", "content"):
            if not isinstance(value.get(key), str):
                raise RequestError(f"messages[{index}].{key}: expected text, found {_name(value.get(key))}")
    return list(values)


def text(name: str, value: Any) -> str:
    """Checks that a value is text that UTF-8 can carry."""
    if not isinstance(value, str):
        raise RequestError(f"{name}: expected text, found {_name(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{name}: expected Unicode text, found a lone surrogate at character {error.start}"
        ) from error
    return value


def integer(name: str, value: Any, least: int, most: int | None = None, *, others: str = "") -> int:
    """Checks a whole number, of Python or of numpy; `others` are what the option takes besides, for the message."""
    wanted = others + (f"a whole number >= {least}" if most is None else f"a whole number from {least} to {most}")
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise RequestError(f"{name}: expected {wanted}, found {_name(value)} {_short(value)}")
    try:
        number = operator.index(value)
    except TypeError as error:  # an array of several numbers has __index__ too
        raise RequestError(f"{name}: expected {wanted}, found {_name(value)}") from error
    if number < least or (most is not None and number > most):
        raise RequestError(f"{name}: expected {wanted}, found {number}")
    return number


def _real(name: str, value: Any, wanted: str, is_valid: Any) -> float:
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise RequestError(f"{name}: expected {wanted}, found {_name(value)} {_short(value)}")
    number = float(value)
    if not math.isfinite(number) or not is_valid(number):
        raise RequestError(f"{name}: expected {wanted}, found {number}")
    return number


def _name(value: Any) -> str:
    return type(value).__name__


def _short(value: Any) -> str:
    return repr(value)[:60]
