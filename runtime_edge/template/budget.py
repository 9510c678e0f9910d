"""The budget of one rendering, and what values weigh in it.

A unit is about 30 ns of one core and at most 4 bytes of memory, so that units bound both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from jinja2.utils import Namespace

from runtime_edge.errors import ChatTemplateError

# Bounds on a template.
MAX_SOURCE = 2**16  # characters: large ones of today have 20,000
MAX_NODES = 20_000  # of its syntax tree: large ones of today have 4,000
BLOCK_NODES = 8  # what a statement with a block counts for: a macro is a function of Python's
MAX_VARIABLES = 1_000  # names that it assigns: the compiler copies the table of them for every branch
MAX_NESTING = 40  # statements within statements
MAX_LOOPS = 16  # loops within loops: Python takes 20
MAX_EXPRESSION = 100  # operations within operations: Python takes 200 parentheses
# Bounds on a rendering.
UNITS = 2**23  # a third of a second and 32 MB at the most: 500 turns in the largest templates of today
UNITS_INPUT = 32  # more for each character of the messages: templates copy them a few times
INPUT_VALUE = 128  # characters that a value of the messages counts for: templates look at each with some operations
MAX_CALLS = 100  # macros within macros
MAX_DEPTH = 100  # lists within lists
MAX_BITS = 2**12  # of an integer
MAX_DIGITS = 4300  # of text that becomes an integer: Python's own bound
# What is spent.
NODE = 32  # an operation of the template, or the call of a function for one element
VALUE = 8  # a value that is looked at
POINTER = 2  # an element that is copied
CHARACTER_OBJECT = 16  # an element that is a new text
ESCAPED = 6  # characters that HTML has for one at the most: Markup escapes what is added to it
RAW = 12  # characters that `repr` or JSON make of one at the most

# Types of which every operation is cheap, whatever the value.
SCALARS = frozenset({bool, int, float, type(None)})
VIEWS: tuple[type[Any], ...] = (type({}.keys()), type({}.values()), type({}.items()))
LISTS: tuple[type[Any], ...] = (list, tuple, *VIEWS)
CONTAINERS: tuple[type[Any], ...] = (dict, *LISTS)


def refusal(expected: str, actual: str, hint: str | None = None) -> ChatTemplateError:
    """Returns the error of a template that does what it may not."""
    text = f"chat template: expected {expected}, found {actual[:400]}"
    return ChatTemplateError(text, hint=hint or "the template is not one for chats of usual length: see its source")


class Budget:
    """What is left of a rendering's units.

    Attributes:
        left: Units; below zero the rendering is over.
        calls: Macros that run within each other now.
    """

    __slots__ = ("calls", "left", "units")

    def __init__(self) -> None:
        self.left = self.units = self.calls = 0

    def start(self, size: int) -> None:
        """Begins a rendering of inputs of `size` characters, values among them for `INPUT_VALUE` each."""
        self.left = self.units = UNITS + UNITS_INPUT * size
        self.calls = 0

    def spend(self, units: int) -> None:
        """Spends units, none or more (raises `ChatTemplateError` where they are not left)."""
        self.left -= units
        if self.left < 0:
            raise self._spent()

    def require(self, units: int) -> None:
        """Raises unless so many units are left: what is made is then paid by its true size."""
        if units > self.left:
            raise self._spent()

    def pay(self, text: str) -> str:
        """Spends the characters of a text that was made, and returns it."""
        self.spend(len(text))
        return text

    def text(self, value: Any) -> int:
        """Spends and returns the characters of `str(value)`, or an upper bound of them.

        The bound of a container has no room for what `repr` escapes: that is required.
        """
        if isinstance(value, str):
            self.spend(len(value))
            return len(value)
        if type(value) in SCALARS:
            return _number(value)
        count, _ = self.walk(value)
        self.require(RAW * count)
        return count

    def walk(self, value: Any) -> tuple[int, int]:
        """Spends what looking at all of a value costs, shared parts as often as they occur.

        Returns:
            The characters of all its texts and numbers with what lies between them, and the number of its values.

        Raises:
            ChatTemplateError: It is too large, or nested too deeply.
        """
        characters = values = 0
        pending: list[Iterator[Any]] = [iter((value,))]
        while pending:
            for item in pending[-1]:
                values += 1
                kind = type(item)
                if isinstance(item, str):
                    size = len(item) + 4
                elif kind in SCALARS:
                    size = _number(item) + 2
                else:
                    size = 40
                characters += size
                self.spend(VALUE + size)
                parts = _parts(item)
                if parts is not None:
                    if len(pending) > MAX_DEPTH:
                        raise refusal(f"at most {MAX_DEPTH} lists within lists", "more")
                    pending.append(iter(parts))
                    break
            else:
                pending.pop()
        return characters, values

    def copied(self, value: Any) -> None:
        """Spends what a list of the elements of a value costs."""
        if isinstance(value, str):
            self.spend(CHARACTER_OBJECT * len(value))
        elif hasattr(value, "__len__"):
            self.spend(POINTER * len(value))

    def metered(self, values: Iterable[Any], units: int = NODE) -> Iterator[Any]:
        """Yields values, each for so many units."""
        for value in values:
            self.spend(units)
            yield value

    def _spent(self) -> ChatTemplateError:
        return refusal(f"to end within {self.units} units of work", "one that needs more")


def _parts(value: Any) -> Iterable[Any] | None:
    if isinstance(value, dict):
        return (part for pair in value.items() for part in pair)
    if isinstance(value, LISTS):
        listed: Iterable[Any] = value
        return listed
    if isinstance(value, Namespace):
        attributes: dict[str, Any] = value._Namespace__attrs
        return _parts(attributes)
    return None


def _number(value: Any) -> int:
    """Characters of a number, True, False or None at the most."""
    return 24 if type(value) is not int else 3 + value.bit_length() // 3


def plain(value: Any, depth: int = 0) -> tuple[Any, int]:
    """Returns a copy of an input that is made of JSON's types alone, and its size in characters.

    Values of other types become their names, `<ndarray>`, as in transformers: templates look only whether they are
    there, and their methods are not for templates.

    Raises:
        ChatTemplateError: It is nested too deeply, or contains itself.
    """
    if depth > MAX_DEPTH:
        raise refusal(f"messages of at most {MAX_DEPTH} lists within lists", "more", "do they contain themselves?")
    if value is None or isinstance(value, bool):
        return value, INPUT_VALUE
    if isinstance(value, str):
        return str.__str__(value), INPUT_VALUE + len(value)
    if isinstance(value, int):
        return int.__int__(value), INPUT_VALUE
    if isinstance(value, float):
        return float.__float__(value), INPUT_VALUE
    if hasattr(value, "items") and hasattr(value, "keys"):
        pairs = [(plain(key, depth + 1), plain(part, depth + 1)) for key, part in value.items()]
        size = sum(key[1] + part[1] for key, part in pairs)
        return {key[0]: part[0] for key, part in pairs}, INPUT_VALUE + size
    if isinstance(value, (list, tuple)):
        parts = [plain(part, depth + 1) for part in value]
        made = [part[0] for part in parts]
        return (made if isinstance(value, list) else tuple(made)), INPUT_VALUE + sum(part[1] for part in parts)
    return f"<{type(value).__name__}>", INPUT_VALUE
