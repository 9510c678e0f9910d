"""Which attributes values have for a template, and what their methods cost.

Attributes that change a list or a dictionary, and those with an underscore in front, are refused by jinja2's sandbox in
its own way. What is left is a table: what it lacks is refused in words, because a template that needs it would answer
otherwise here than elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from string import whitespace
from typing import Any

from jinja2.runtime import LoopContext, Macro
from jinja2.utils import Cycler
from markupsafe import Markup

from runtime_edge.template.budget import CHARACTER_OBJECT, CONTAINERS, ESCAPED, POINTER, Budget, refusal
from runtime_edge.template.operators import key

Cost = Callable[[Budget, Any, tuple[Any, ...]], None]
_LINES = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_SPACES = whitespace + "\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
_SPACES += "".join(map(chr, range(0x2000, 0x200B)))
_WIDER = 3  # characters that another case has for one at the most


def _free(budget: Budget, owner: Any, args: tuple[Any, ...]) -> None:
    """A method whose cost does not depend on its values."""


def _read(budget: Budget, text: str, args: tuple[Any, ...]) -> None:
    """It reads the text once."""
    budget.spend(len(text) >> 2)


def _copy(budget: Budget, text: str, args: tuple[Any, ...]) -> None:
    budget.spend(len(text))


def _case(budget: Budget, text: str, args: tuple[Any, ...]) -> None:
    budget.spend(_WIDER * len(text))


def _ends(budget: Budget, text: str, args: tuple[Any, ...]) -> None:
    """`startswith` and its like: one or several other texts are compared."""
    for other in args:
        others = other if isinstance(other, tuple) else (other,)
        budget.spend(POINTER * len(others))
        budget.spend(sum(min(len(text), len(affix)) >> 3 for affix in others if isinstance(affix, str)))


def _strip(budget: Budget, text: str, args: tuple[Any, ...]) -> None:
    budget.spend(len(text) * (1 + sum(len(characters) >> 4 for characters in args if isinstance(characters, str))))


def _find(budget: Budget, text: str, args: tuple[Any, ...]) -> None:
    """A search from the front."""
    budget.spend((len(text) >> 2) + sum(len(part) for part in args if isinstance(part, str)))


def _find_last(budget: Budget, text: str, args: tuple[Any, ...]) -> None:
    """A search from the back compares all of the other text at each position, at worst."""
    budget.spend((len(text) >> 2) + sum(len(text) * (len(part) >> 4) for part in args if isinstance(part, str)))


def _pad(budget: Budget, text: str, args: tuple[Any, ...]) -> None:
    budget.spend(len(text) + sum(abs(width) for width in args if isinstance(width, int)))


def _tabs(budget: Budget, text: str, args: tuple[Any, ...]) -> None:
    width = max([8, *(abs(size) for size in args if isinstance(size, int))])
    budget.spend(len(text) + text.count("\t") * width)


def split(budget: Budget, text: str, args: tuple[Any, ...]) -> None:
    """Spends what `text.split(*args)` costs."""
    separator = next((string for string in args if isinstance(string, str)), None)
    most = min((count for count in args if type(count) is int and count >= 0), default=len(text))
    if separator is None:
        parts = len(text) if len(text) < 64 else sum(text.count(space) for space in _SPACES)
    else:
        parts = text.count(separator) if separator else 0
        budget.spend(len(text) * (len(separator) >> 4))  # `rsplit`: as `_find_last`
    budget.spend(len(text) + CHARACTER_OBJECT * min(parts, most))


def _lines(budget: Budget, text: str, args: tuple[Any, ...]) -> None:
    budget.spend(len(text) + CHARACTER_OBJECT * sum(text.count(mark) for mark in _LINES))


def _replace(budget: Budget, text: str, args: tuple[Any, ...]) -> None:
    texts = [argument for argument in args if isinstance(argument, str)]
    if len(texts) == 2:
        replaced(budget, text, *texts)


def replaced(budget: Budget, text: str, old: str, new: str) -> None:
    """Spends what `text.replace(old, new)` costs."""
    budget.spend(len(text) + len(old) + text.count(old) * (1 + len(new)))


def _join(budget: Budget, text: str, args: tuple[Any, ...]) -> None:
    for values in args:
        joined(budget, text, values)


def joined(budget: Budget, separator: str, values: Any) -> None:
    """Spends what `separator.join(values)` costs, for texts in a container; metered iterators pay as they go."""
    if isinstance(values, str):
        budget.spend(len(values) * (CHARACTER_OBJECT + len(separator)))
    elif isinstance(values, CONTAINERS):
        budget.spend(len(values) * (POINTER + len(separator)))
        budget.spend(sum(len(item) for item in values if isinstance(item, str)))


def _walk(budget: Budget, owner: Any, args: tuple[Any, ...]) -> None:
    """It compares its argument with all elements."""
    if type(owner) is range:
        budget.spend(len(owner))
        return
    budget.walk(owner)
    budget.walk(args)


def _elements(budget: Budget, owner: Any, args: tuple[Any, ...]) -> None:
    budget.spend(8 * len(owner))


def _key(budget: Budget, owner: Any, args: tuple[Any, ...]) -> None:
    for argument in args:
        key(budget, argument)


def _cycle(budget: Budget, owner: Any, args: tuple[Any, ...]) -> None:
    budget.spend(POINTER * len(args))


def _changed(budget: Budget, owner: Any, args: tuple[Any, ...]) -> None:
    budget.walk(args)


_TEXT: dict[str, Cost] = {
    **dict.fromkeys(("capitalize", "casefold", "lower", "swapcase", "title", "upper"), _case),
    **dict.fromkeys(("strip", "lstrip", "rstrip"), _strip),
    **dict.fromkeys(("startswith", "endswith"), _ends),
    **dict.fromkeys(("removeprefix", "removesuffix"), _copy),
    **dict.fromkeys(("isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier"), _read),
    **dict.fromkeys(("islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper"), _read),
    **dict.fromkeys(("count", "find", "index", "partition"), _find),
    **dict.fromkeys(("rfind", "rindex", "rpartition"), _find_last),
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _pad),
    "expandtabs": _tabs,
    **dict.fromkeys(("split", "rsplit"), split),
    "splitlines": _lines,
    "replace": _replace,
    "join": _join,
    **dict.fromkeys(("format", "format_map"), _free),  # the formatter pays field by field
}
_LOOP = ("index", "index0", "revindex", "revindex0", "first", "last", "length", "depth", "depth0")
METHODS: Mapping[type, Mapping[str, Cost]] = {
    str: _TEXT,
    list: {"count": _walk, "index": _walk, "copy": _elements},
    tuple: {"count": _walk, "index": _walk},
    dict: {
        **dict.fromkeys(("items", "keys", "values"), _free),
        "get": _key,
        "copy": _elements,
    },
    range: {"count": _walk, "index": _walk},
    int: {"bit_length": _free, "conjugate": _free, "is_integer": _free},
    bool: {"bit_length": _free, "conjugate": _free, "is_integer": _free},
    float: {"is_integer": _free, "conjugate": _free, "hex": _free},
    LoopContext: {"cycle": _cycle, "changed": _changed},
    Cycler: {"next": _free, "reset": _free},
}
_NUMBER = frozenset({"real", "imag", "numerator", "denominator"})
_FIELDS: Mapping[type, frozenset[str]] = {
    range: frozenset({"start", "stop", "step"}),
    **dict.fromkeys((int, bool, float), _NUMBER),
    LoopContext: frozenset((*_LOOP, "previtem", "nextitem")),
    Macro: frozenset({"name", "arguments", "catch_kwargs", "catch_varargs", "caller"}),
    Cycler: frozenset({"current"}),
}
# What each type has for a template, in Python's own names.
ATTRIBUTES = {kind: frozenset(METHODS.get(kind, ())) | _FIELDS.get(kind, frozenset()) for kind in (*METHODS, Macro)}
UNKNOWN_HINT = "transformers may render it; here a template's methods are those whose cost is known"


def check_attribute(value: Any, name: str) -> None:
    """Raises unless a template may have an attribute that a value has."""
    kind = _kind(value)
    if name not in ATTRIBUTES.get(kind, ()) and name not in getattr(kind, "_fields", ()):
        raise refusal("methods that chat templates have", f"{kind.__name__}.{name}", UNKNOWN_HINT)


def spend_call(budget: Budget, owner: Any, name: str, args: Sequence[Any]) -> None:
    """Spends what a method costs for its arguments, those by keyword among them."""
    kind = _kind(owner)
    cost = METHODS.get(kind, {}).get(name)
    if cost is None:
        raise refusal("methods that chat templates have", f"{kind.__name__}.{name}", UNKNOWN_HINT)
    before = budget.left
    cost(budget, owner, tuple(args))
    if isinstance(owner, Markup):
        budget.spend((before - budget.left) * ESCAPED)


def _kind(value: Any) -> type:
    """The type that the tables know a value by: groups of `groupby` have names of their own."""
    plain_tuple = isinstance(value, tuple) and not hasattr(value, "_fields")
    return str if isinstance(value, str) else tuple if plain_tuple else type(value)
