"""Jinja's operators within the budget: arithmetic, comparisons, slices, `%` formats."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from types import GeneratorType
from typing import Any

from jinja2 import Undefined

from runtime_edge.template.budget import (
    CONTAINERS,
    ESCAPED,
    LISTS,
    MAX_BITS,
    NODE,
    RAW,
    SCALARS,
    VIEWS,
    Budget,
    refusal,
)

_SPREAD: tuple[type[Any], ...] = (str, range, *CONTAINERS)
_HASHED: tuple[type[Any], ...] = (dict, VIEWS[0])
_INTEGERS = frozenset({int, bool})
_NUMBERS = frozenset({int, bool, float})
_TEXT_OR_LIST = (str, list, tuple)
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "**": operator.pow,
    "%": operator.mod,
}
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gteq": operator.ge,
    "lt": operator.lt,
    "lteq": operator.le,
}
_CONVERSION = re.compile(r"%(?:\([^)]*\))?([^A-Za-z%]*)")


def binary(budget: Budget, sign: str, left: Any, right: Any) -> Any:
    """Returns `left sign right`, as Python has it."""
    function = BINARY[sign]
    left_kind, right_kind = type(left), type(right)
    if left_kind in _NUMBERS and right_kind in _NUMBERS:
        if sign == "**" and left_kind in _INTEGERS and right_kind in _INTEGERS and abs(left) > 1:
            _check_bits(left.bit_length() * max(0, right))
        return integer(function(left, right))
    if isinstance(left, VIEWS) or isinstance(right, VIEWS):
        raise refusal("arithmetic of numbers, texts and lists", f"that of {left_kind.__name__}")
    if sign == "+" and isinstance(left, str) and isinstance(right, str):
        size = len(left) + len(right)
        if left_kind is not right_kind:
            budget.require(ESCAPED * size)
        budget.spend(size)
    elif sign == "+" and isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        budget.spend(2 * (len(left) + len(right)))
    elif sign == "*":
        for sized, times in ((left, right), (right, left)):
            if isinstance(sized, _TEXT_OR_LIST) and type(times) in _INTEGERS:
                budget.spend(2 * len(sized) * max(0, times))
    elif sign == "%" and isinstance(left, str):
        percent(budget, left, right)
        return budget.pay(function(left, right))
    elif not isinstance(left, Undefined) and not isinstance(right, Undefined) and sign != "+":
        raise TypeError(f"unsupported operand types for {sign}: {left_kind.__name__!r} and {right_kind.__name__!r}")
    return function(left, right)


def integer(value: Any) -> Any:
    """Returns a number (raises `ChatTemplateError` for an integer that is too large)."""
    if type(value) is int:
        _check_bits(value.bit_length())
    return value


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise refusal(f"integers of at most {MAX_BITS} bits", f"one of {bits}")


def compare(budget: Budget, name: str, left: Any, right: Any) -> Any:
    """Returns a comparison, or whether `left` is (not) in `right`."""
    if name == "in":
        return contains(budget, left, right)
    if name == "notin":
        return not contains(budget, left, right)
    function = COMPARISONS[name]
    left_kind, right_kind = type(left), type(right)
    if left_kind is str and right_kind is str:
        if len(left) > 256:
            budget.spend(min(len(left), len(right)) >> 3)
    elif left_kind not in SCALARS and right_kind not in SCALARS:
        _compared(budget, name, left, right)
    return function(left, right)


def _compared(budget: Budget, name: str, left: Any, right: Any) -> None:
    """Spends a comparison of containers: Python ends early where their lengths differ."""
    if isinstance(left, (list, tuple, dict)) and isinstance(right, (list, tuple, dict)):
        if name in ("eq", "ne") and len(left) != len(right):
            return
        budget.walk(left)
    elif isinstance(left, VIEWS) or isinstance(right, VIEWS):
        budget.walk(left)
        budget.walk(right)


def contains(budget: Budget, value: Any, container: Any) -> bool:
    """Returns `value in container`."""
    if isinstance(container, str):
        budget.spend(len(container) >> 2)
        return value in container
    if isinstance(container, _HASHED):
        key(budget, value)
        return value in container
    if isinstance(container, range):
        if type(value) is not int:
            budget.spend(len(container))
        return value in container
    if isinstance(container, LISTS):
        budget.spend(2 * len(container))
        if type(value) not in SCALARS and not isinstance(value, str):
            budget.walk(value)
            budget.walk(container)
        elif isinstance(value, str):
            budget.spend(len(container) * (len(value) >> 5))
        return value in container
    if isinstance(container, GeneratorType):  # metered, but for the comparisons
        return any(value is item or compare(budget, "eq", item, value) for item in budget.metered(container))
    return value in container


def key(budget: Budget, value: Any) -> Any:
    """Returns a value that is hashed next."""
    if isinstance(value, (tuple, list)):
        budget.walk(value)
    elif isinstance(value, str) and len(value) > 64:
        budget.spend(len(value) >> 2)
    return value


def spread(budget: Budget, value: Any) -> Any:
    """Returns what `*value` or `**value` spreads over arguments, paid."""
    if isinstance(value, _SPREAD):
        budget.spend(NODE * len(value))
    return value


def cut(budget: Budget, value: Any, start: Any, stop: Any, step: Any) -> Any:
    """Returns `value[start:stop:step]`."""
    where = slice(start, stop, step)
    # Bounds of another kind raise below, as they do in Python.
    right = all(type(bound) in _INTEGERS or bound is None for bound in (start, stop, step)) and step != 0
    if right and isinstance(value, (str, list, tuple)):
        budget.spend(2 * len(range(*where.indices(len(value)))))
    return value[where]


def percent(budget: Budget, pattern: str, values: Any) -> None:
    """Spends what `pattern % values` makes: its text, its widths, and its values for every time they may be written."""
    if re.search(r"%\([^)]*\(", pattern):
        raise refusal("names without brackets in a format", repr(pattern[:80]))
    conversions = 0
    for conversion in _CONVERSION.finditer(pattern):
        conversions += 1
        for digits in re.findall(r"\d+", conversion[1]):
            budget.require(0 if len(digits) < 9 else budget.left + 1)
            budget.require(int(digits))
            budget.spend(int(digits) // 4)
        if "*" in conversion[1]:
            widths = values if isinstance(values, tuple) else (values,)
            budget.require(sum(abs(width) for width in widths if type(width) in _INTEGERS))
    budget.spend(len(pattern) + NODE * conversions)
    if isinstance(values, Mapping):
        largest = max((budget.text(item) for item in values.values()), default=0)
        budget.require(conversions * largest)
        if re.search(r"[ra]", pattern):
            budget.require(RAW * conversions * largest)
        return
    parts: Iterable[Any] = values if isinstance(values, tuple) else (values,)
    total = sum(budget.text(item) for item in parts)
    if re.search(r"[ra]", pattern):
        budget.require(RAW * total)
