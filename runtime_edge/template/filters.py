"""The filters and tests of Jinja within the budget: each with what it costs, spent before jinja2's own code runs.

A cost is a function of the filter's arguments; it may return another value for the filter to work on, as a list for an
iterator. A filter or a test that the tables lack does not exist.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from types import GeneratorType
from typing import Any, cast

from jinja2 import Undefined, pass_context
from jinja2.filters import FILTERS
from jinja2.runtime import Context
from jinja2.tests import TESTS

from runtime_edge.template.budget import CHARACTER_OBJECT, ESCAPED, MAX_DIGITS, NODE, RAW, SCALARS, Budget, refusal
from runtime_edge.template.methods import joined, replaced
from runtime_edge.template.operators import binary, compare, percent

Cost = Callable[..., Any]
_MAX_PRECISION = 300  # digits that numbers are rounded to
_NAMED = {"==": "eq", "equalto": "eq", "!=": "ne", "greaterthan": "gt", ">": "gt", ">=": "gteq", "ge": "gteq"}
_NAMED |= {"lessthan": "lt", "<": "lt", "<=": "lteq", "le": "lteq", "in": "in", "eq": "eq", "ne": "ne"}
_NAMED |= {"gt": "gt", "lt": "lt"}


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """The filter `tojson` as transformers has it: nothing is escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _free(budget: Budget, *args: Any, **kwargs: Any) -> None:
    """A filter whose cost does not depend on its values."""


def _text(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> None:
    budget.text(value)


def _wider(factor: int) -> Cost:
    """A filter that makes up to `factor` characters of one, of which most texts have few."""

    def cost(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> None:
        budget.require(factor * budget.text(value))

    return cost


def _slow(factor: int) -> Cost:
    """A filter that takes the time of `factor` units for a character."""

    def cost(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> None:
        budget.spend(factor * budget.text(value))

    return cost


def _quadratic(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> None:
    """A filter whose regular expressions may read each line once for every character."""
    budget.text(value)
    size = max((len(line) for line in str(value).splitlines()), default=0)
    budget.spend(len(str(value)) * (64 + size // 16))
    _options(budget, *args, **kwargs)


def _options(budget: Budget, *args: Any, **kwargs: Any) -> None:
    budget.spend(sum(budget.text(option) for option in (*args, *kwargs.values())))


def _strip(budget: Budget, value: Any, chars: Any = None) -> None:
    size = budget.text(value)
    budget.spend(size * (len(chars) >> 4) if isinstance(chars, str) else 0)


def _center(budget: Budget, value: Any, width: Any = 80) -> None:
    budget.text(value)
    budget.spend(abs(width) if isinstance(width, int) else 0)


def _format(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> None:
    budget.text(value)
    percent(budget, str(value), kwargs or args)


def _indent(budget: Budget, s: Any, width: Any = 4, first: bool = False, blank: bool = False) -> None:
    size = budget.text(s)
    wide = len(width) if isinstance(width, str) else abs(width) if isinstance(width, int) else 0
    lines = 2 + (len(s.splitlines()) if isinstance(s, str) else 0)
    budget.spend(CHARACTER_OBJECT * lines + size + wide * lines)


def _replace(budget: Budget, s: Any, old: Any, new: Any, count: Any = None) -> None:
    for text in (s, old, new):
        budget.text(text)
    replaced(budget, str(s), str(old), str(new))


def _truncate(
    budget: Budget, s: Any, length: Any = 255, killwords: Any = False, end: Any = "...", leeway: Any = None
) -> None:
    budget.text(s)
    budget.text(end)


def _json(
    budget: Budget,
    value: Any,
    ensure_ascii: Any = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: Any = False,
) -> None:
    characters, values = budget.walk(value)
    budget.require(RAW * characters)
    wide = len(indent) if isinstance(indent, str) else abs(indent) if isinstance(indent, int) else 0
    if wide:
        budget.require(wide * values)
        budget.spend(wide * values * _depth(value))
    if isinstance(separators, (list, tuple)):
        budget.spend(values * sum(len(separator) for separator in separators if isinstance(separator, str)))


def _depth(value: Any) -> int:
    """Lists within lists: the walk before bounds them."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return 1 + max((_depth(part) for part in parts), default=0)


def _number(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> None:
    """Text that becomes a number."""
    if isinstance(value, str) and len(value) > MAX_DIGITS:
        raise refusal(f"numbers of at most {MAX_DIGITS} digits", f"a text of {len(value)} characters")


def _arithmetic(budget: Budget, value: Any, *args: Any) -> None:
    """A test or a filter that calculates with its values; `%` of a text is a format."""
    for operand in (value, *args):
        if type(operand) not in SCALARS and not isinstance(operand, Undefined):
            raise TypeError(f"expected a number, found {type(operand).__name__}")


def _round(budget: Budget, value: Any, precision: Any = 0, method: Any = "common") -> None:
    _arithmetic(budget, value)
    if isinstance(precision, int) and abs(precision) > _MAX_PRECISION:
        raise refusal(f"a precision of at most {_MAX_PRECISION} digits", f"{precision:.3g}")


def _list(budget: Budget, value: Any) -> None:
    budget.copied(value)


def _ordered(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> Any:
    """A filter that looks at all elements and compares them: what compares two reads the smaller of both."""
    items = list(value) if isinstance(value, GeneratorType) else value
    if isinstance(items, Undefined) or type(items) in SCALARS:
        return None
    count = len(items) if hasattr(items, "__len__") else 1
    characters, values = budget.walk(tuple(items) if isinstance(items, (str, range)) else items)
    budget.spend((NODE * count + values + (characters >> 3)) * (1 + math.ceil(math.log2(count + 1))))
    _attribute(budget, count, *args, **kwargs)
    return items


def _attribute(budget: Budget, count: int, *args: Any, **kwargs: Any) -> None:
    """Spends what names of attributes cost that are followed for each element."""
    for name in (*args, *kwargs.values()):
        if isinstance(name, str):
            budget.spend(count * NODE * (1 + name.count(".") + name.count(",")))


def _each(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> Any:
    """A filter that gives an iterator: it pays as it goes, with what the names of attributes cost."""
    count = len(value) if hasattr(value, "__len__") and not isinstance(value, Undefined) else 1
    _attribute(budget, count, *args, **kwargs)
    return _metered(budget, value)


def _metered(budget: Budget, value: Any) -> Any:
    known = isinstance(value, (dict, list, tuple, str, GeneratorType, range))
    return budget.metered(value) if known and value else None


def _unique(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> Any:
    """It hashes elements, or what is in them."""

    def walked(values: Any) -> Any:
        for item in values:
            budget.walk(item)
            yield item

    metered = _each(budget, value, *args, **kwargs)
    return None if metered is None else walked(metered)


def _batch(budget: Budget, value: Any, linecount: Any, fill_with: Any = None) -> Any:
    if fill_with is not None and isinstance(linecount, int):
        budget.spend(2 * abs(linecount))
    return _metered(budget, value)


def _slice(budget: Budget, value: Any, slices: Any, fill_with: Any = None) -> None:
    budget.copied(value)


def _join(budget: Budget, value: Any, d: Any = "", attribute: Any = None) -> Any:
    parts = list(value) if isinstance(value, GeneratorType) else value
    separator = "" if isinstance(d, Undefined) else str(d) if budget.text(d) else ""
    if isinstance(parts, (str, dict, list, tuple)):
        _attribute(budget, len(parts), *(() if attribute is None else (attribute,)))
        joined(budget, separator, parts)
        budget.spend(NODE * len(parts) // 4)
        if not isinstance(parts, str):
            budget.require(budget.text(parts))
    return parts


def _sum(budget: Budget, value: Any, attribute: Any = None, start: Any = 0) -> Any:
    """Adds up within the budget what Python's `sum` adds: numbers, or lists to a list."""
    if isinstance(start, str):
        return None  # Python refuses it
    parts = list(value) if not isinstance(value, (str, Undefined)) else value
    if attribute is not None:
        _attribute(budget, len(parts), attribute)
        return parts
    budget.spend(NODE * len(parts))
    total = start
    for part in parts:
        total = binary(budget, "+", total, part)
    return parts


def _pairs(budget: Budget, value: Any) -> None:
    """The filter `items`: an iterator."""


def _attributes(budget: Budget, value: Any, autospace: bool = True) -> None:
    budget.require(ESCAPED * budget.text(value))
    budget.spend(NODE * (len(value) if isinstance(value, dict) else 0))


def _tags(budget: Budget, value: Any) -> None:
    """`striptags` copies the text for every tag."""
    size = budget.text(value)
    budget.require(ESCAPED * size)
    budget.spend(size * (2 + (str(value).count("<") >> 5)))


FILTER_COSTS: dict[str, Cost] = {
    **dict.fromkeys(("abs", "round"), _round),
    "abs": _arithmetic,
    **dict.fromkeys(("attr", "count", "d", "default", "first", "last", "length", "random", "reverse"), _free),
    **dict.fromkeys(("e", "escape", "forceescape"), _wider(ESCAPED)),
    **dict.fromkeys(("capitalize", "lower", "upper"), _wider(3)),
    **dict.fromkeys(("safe", "string"), _text),
    "title": _slow(8),
    "wordcount": _slow(CHARACTER_OBJECT),
    "urlencode": _slow(RAW),
    "pprint": _slow(64),
    "trim": _strip,
    "center": _center,
    "format": _format,
    "indent": _indent,
    "replace": _replace,
    "truncate": _truncate,
    "tojson": _json,
    **dict.fromkeys(("float", "int", "filesizeformat"), _number),
    "list": _list,
    **dict.fromkeys(("dictsort", "groupby", "max", "min", "sort"), _ordered),
    **dict.fromkeys(("map", "reject", "rejectattr", "select", "selectattr"), _each),
    "unique": _unique,
    "batch": _batch,
    "slice": _slice,
    "join": _join,
    "sum": _sum,
    "items": _pairs,
    "striptags": _tags,
    "xmlattr": _attributes,
    **dict.fromkeys(("urlize", "wordwrap"), _quadratic),
}
_FREE_TESTS: tuple[str, ...] = (
    "defined",
    "undefined",
    "filter",
    "test",
    "none",
    "boolean",
    "false",
    "true",
    "integer",
    "float",
)
_FREE_TESTS += ("string", "mapping", "number", "sequence", "iterable", "callable", "sameas", "escaped")
TEST_COSTS: dict[str, Cost] = {
    **dict.fromkeys(_FREE_TESTS, _free),
    **dict.fromkeys(("odd", "even", "divisibleby"), _arithmetic),
    **dict.fromkeys(("lower", "upper"), _text),
}


def metered_filters(budget: Budget) -> dict[str, Callable[..., Any]]:
    """Returns all filters of Jinja with their costs."""
    functions = {**FILTERS, "tojson": to_json}
    return {name: _with_cost(budget, functions[name], cost) for name, cost in FILTER_COSTS.items()}


def metered_tests(budget: Budget) -> dict[str, Callable[..., Any]]:
    """Returns all tests of Jinja with their costs."""

    def comparing(name: str) -> Callable[[Any, Any], Any]:
        return lambda left, right: compare(budget, name, left, right)

    made: dict[str, Callable[..., Any]] = {word: comparing(name) for word, name in _NAMED.items()}
    for name, cost in TEST_COSTS.items():
        made[name] = _with_cost(budget, cast(Callable[..., Any], TESTS[name]), cost)
    return made


def _with_cost(budget: Budget, function: Callable[..., Any], cost: Cost) -> Callable[..., Any]:
    """Returns a filter or a test that spends its cost first; iterators that it returns pay element by element."""
    wanted = getattr(function, "jinja_pass_arg", None)  # the enumeration is jinja2's own
    kind = None if wanted is None else wanted.name

    def run(first: tuple[Any, ...], value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        other = cost(budget, value, *args, **kwargs)
        made = function(*first, value if other is None else other, *args, **kwargs)
        if isinstance(made, str):
            return budget.pay(made)
        return budget.metered(made) if isinstance(made, Iterator) else made

    if kind is None:
        return lambda value, *args, **kwargs: run((), value, args, kwargs)

    @pass_context
    def passing(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        first = {"context": context, "environment": context.environment, "eval_context": context.eval_ctx}[kind]
        return run((first,), value, args, kwargs)

    return passing
