"""What a caller asks for, checked: every fault is a `RequestError` that names the option."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from runtime_edge import drafts as drafting
from runtime_edge.ending import Ending, Event
from runtime_edge.errors import RequestError
from runtime_edge.listed import listed
from runtime_edge.messages import ChatOptions
from runtime_edge.sampling import MOST_PENALTY, SamplingOptions

_TRUTHS = ("bool", "bool_")  # Python's and numpy's, which is an index too up to numpy 2.2
_CONVERSION = (TypeError, ValueError, ArithmeticError, RuntimeError)  # what making a number of an object raises


class Options(ChatOptions, total=False):
    """The options of a generation; see `TextGeneration.generate`."""

    max_new_tokens: int | None
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | Iterable[str]
    stop_token_ids: Iterable[int]
    cancel: Event | None
    timeout: float | None
    drafts: bool | int


@dataclass(frozen=True)
class Request:
    """A checked request for one generation."""

    token_ids: list[int]
    max_new_tokens: int | None
    sampling: SamplingOptions
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    ending: Ending
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
        else _real(
            "repetition_penalty",
            repetition_penalty,
            f"a number from {1 / MOST_PENALTY:g} to {MOST_PENALTY:g}",
            lambda value: 1 / MOST_PENALTY <= value <= MOST_PENALTY,
        ),
        seed=None if seed is None else integer("seed", seed, 0),
    )


def stop_strings(stop: str | Iterable[str]) -> tuple[str, ...]:
    """Checks stop strings; one alone may be given as it is."""
    given = iter((stop,)) if isinstance(stop, str) else listed(stop)
    if given is None:
        raise RequestError(f"stop: expected strings, found {_name(stop)}")
    stops = tuple(given)
    for string in stops:
        if not isinstance(string, str) or not string:
            raise RequestError(f"stop: expected strings that are not empty, found {_short(string)}")
        text("stop", string)
    return stops


def ending(cancel: Any, timeout: Any) -> Ending:
    """Checks what ends a call early."""
    if cancel is not None and not callable(getattr(cancel, "is_set", None)):
        raise RequestError(f"cancel: expected a threading.Event, found {_name(cancel)}")
    if timeout is not None:
        timeout = _real("timeout", timeout, "a number of seconds > 0", lambda value: value > 0)
    return Ending(cancel, timeout)


def token_ids(name: str, values: Iterable[Any], vocab_size: int) -> list[int]:
    """Checks token ids against the vocabulary."""
    if (given := listed(values)) is None:
        raise RequestError(f"{name}: expected token ids in a list, found {_name(values)}")
    ids = [integer(name, value, 0) for value in given]
    worst = max(ids, default=0)
    if worst >= vocab_size:
        raise RequestError(f"{name}: expected token ids below {vocab_size} (vocab_size), found {_short(worst)}")
    return ids


def drafts(value: Any) -> int:
    """Checks how many tokens a draft has at most: False none, True the usual number."""
    if isinstance(value, bool):
        return drafting.MOST if value else 0
    return integer("drafts", value, 0, others="True, False or ")


def several(prompt: Any) -> list[Any] | None:
    """Returns the prompts of a list of several, or None of what is one prompt: text, token ids, or messages.

    The first element tells: a list of texts or of lists is several prompts, one of dicts is one conversation, and one
    of numbers is one prompt's token ids.
    """
    if isinstance(prompt, (str, bytes, Mapping)) or not isinstance(prompt, Iterable):
        return None
    if not isinstance(prompt, (list, tuple)):
        if getattr(prompt, "ndim", 1) != 2:
            return None
        prompt = list(prompt)
    first = prompt[0] if prompt else None
    is_list = isinstance(first, (list, tuple)) or getattr(first, "ndim", 0) == 1
    return list(prompt) if is_list or isinstance(first, str) else None


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


def boolean(name: str, value: Any) -> None:
    """Checks that an option is True or False: of an array, a text or a number it would be guessed which."""
    if not isinstance(value, bool):
        raise RequestError(f"{name}: expected True or False, found {_name(value)} {_short(value)}")


def integer(name: str, value: Any, least: int, most: int | None = None, *, others: str = "") -> int:
    """Checks a whole number, of Python or of numpy; `others` are what the option takes besides, for the message."""
    wanted = others + (f"a whole number >= {least}" if most is None else f"a whole number from {least} to {most}")
    if _name(value) in _TRUTHS or not hasattr(value, "__index__"):
        raise RequestError(f"{name}: expected {wanted}, found {_name(value)} {_short(value)}")
    try:
        number = operator.index(value)
    except _CONVERSION as error:  # an array of several numbers has __index__ too
        raise RequestError(f"{name}: expected {wanted}, found {_name(value)}") from error
    if number < least or (most is not None and number > most):
        raise RequestError(f"{name}: expected {wanted}, found {_short(number)}")
    return number


def _real(name: str, value: Any, wanted: str, is_valid: Callable[[float], bool]) -> float:
    is_number = hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0 and _name(value) not in _TRUTHS
    if isinstance(value, str) or not is_number:
        raise RequestError(f"{name}: expected {wanted}, found {_name(value)} {_short(value)}")
    try:
        number = float(value)
    except OverflowError as error:
        raise RequestError(f"{name}: expected {wanted}, found a number beyond float64") from error
    except _CONVERSION as error:
        raise RequestError(f"{name}: expected {wanted}, found {_name(value)}") from error
    if not math.isfinite(number) or not is_valid(number):
        raise RequestError(f"{name}: expected {wanted}, found {number}")
    return number


def _name(value: Any) -> str:
    return type(value).__name__


def _short(value: Any) -> str:
    try:
        return repr(value)[:60]
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"
