"""Renders chat messages with the model's own template, which is untrusted: sandboxed and bounded.

The template language is that of `transformers`' chat templates: Jinja with `raise_exception`, `strftime_now`, a plain
`tojson`, loop controls, and `{% generation %}` blocks, which only training needs.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Mapping, Sequence, Sized
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, Undefined, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_indent, make_attrgetter
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from runtime_edge.errors import ChatTemplateError

MAX_CHARACTERS = 4 * 2**20  # of a rendered prompt
MAX_WORK = 2**25  # of one rendering: characters made on the way, and iterations
_MAX_INDENT = 64
_ITERATION = 32  # what one iteration counts for
# They pad or cut to any length that a number says; chat templates do without.
_UNBOUNDED_FILTERS = (
    "batch",
    "center",
    "filesizeformat",
    "format",
    "slice",
    "truncate",
    "urlize",
    "wordwrap",
    "xmlattr",
)
_LOOP, _JOIN = "lepton_loop", "lepton_join"

Message = Mapping[str, Any]


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: The template.
        special_tokens: `bos_token`, `eos_token`, … as the template's variables.

    Raises:
        ChatTemplateError: The template does not parse.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._environment = _Environment()
        self._special_tokens = dict(special_tokens)
        self._lock = threading.Lock()  # the environment counts the work of one rendering at a time
        try:
            self._template = self._environment.from_string(source)
        except (TemplateError, RecursionError) as error:
            raise ChatTemplateError(f"chat template: expected a Jinja template, found: {error}") from error

    def render(
        self, messages: Sequence[Message], *, answer: bool = True, variables: Mapping[str, Any] | None = None
    ) -> str:
        """Returns the prompt, ending where the assistant's answer begins, or after the last message.

        Args:
            messages: Plain data.
            answer: Whether the prompt ends where the answer begins.
            variables: Further variables, plain data; they win over special tokens and `answer`.

        Raises:
            ChatTemplateError: The template refused the messages, failed, or exceeded a bound.
        """
        # Templates test `tools is none` too, so what nobody gave is there, as None.
        everything = {
            **self._special_tokens,
            "tools": None,
            "documents": None,
            "add_generation_prompt": answer,
            **(variables or {}),
            "messages": list(messages),
        }
        pieces: list[str] = []
        length = 0
        with self._lock:
            self._environment.work = 0
            try:
                for piece in self._template.generate(**everything):
                    pieces.append(piece)
                    length += len(piece)
                    _bound("characters", length, MAX_CHARACTERS)
            except ChatTemplateError:
                raise
            except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
                raise ChatTemplateError(f"chat template: expected to render the messages, found: {error}") from error
            except (RecursionError, MemoryError) as error:
                raise ChatTemplateError(f"chat template: expected to end, found {type(error).__name__}") from error
        return "".join(pieces)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: its content as it stands."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, and a budget for what it leaves open: nested loops, and short expressions that make long text.

    A loop's iteration and a character that an operator or a method makes spend it.
    """

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        # Not optimized: constants would be computed while it compiles, outside the budget.
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, loopcontrols])
        self.work = 0
        self.filters["tojson"] = _to_json
        self.filters[_LOOP] = self._loop
        self.filters[_JOIN] = self._join
        self.filters["join"] = self._join_filter
        self.filters["replace"] = self._replace_filter
        self.filters["indent"] = self._indent_filter
        for name in _UNBOUNDED_FILTERS:
            del self.filters[name]
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        for loop in list(template.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, _LOOP, [], [], None, None, lineno=loop.lineno)
        # `a ~ b` joins text without asking the sandbox.
        for joined in list(template.find_all(nodes.Concat)):
            joined.nodes = [nodes.Filter(node, _JOIN, [], [], None, None, lineno=node.lineno) for node in joined.nodes]
        return template

    def spend(self, amount: int) -> None:
        self.work += amount
        _bound("units of work", self.work, MAX_WORK)

    def _loop(self, value: Any) -> Any:
        if isinstance(value, Iterable) and not isinstance(value, (Sized, Undefined)):
            value = list(value)
        if isinstance(value, Sized):
            self.spend(_ITERATION * len(value))
        return value

    def _join(self, value: Any) -> Any:
        if isinstance(value, str):
            self.spend(len(value))
        return value

    def _join_filter(self, value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
        parts = list(value if attribute is None else map(make_attrgetter(self, attribute), value))
        self._spend_on_joining(d, parts)
        return d.join(map(str, parts))

    def _replace_filter(self, value: Any, old: str, new: str, count: int = -1) -> str:
        text = str(value)
        self._spend_on_replacing(text, old, new)
        return text.replace(old, new, count)

    def _indent_filter(self, value: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        self.spend((width if isinstance(width, int) else len(width)) * (value.count("\n") + 1))
        return do_indent(value, width, first, blank)

    def _spend_on_joining(self, separator: str, parts: Sequence[Any]) -> None:
        self.spend(sum(len(separator) + (len(part) if isinstance(part, str) else 1) for part in parts))

    def _spend_on_replacing(self, text: str, old: str, new: str) -> None:
        self.spend(len(text) + text.count(old) * len(new))

    def call(self, context: Any, called: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(called, "__wrapped__", called)  # the sandbox wraps str.format
        text = getattr(method, "__self__", None)
        if isinstance(text, str):
            self._spend_on_method(text, method.__name__, (*args, *kwargs.values()))
        return super().call(context, called, *args, **kwargs)

    def _spend_on_method(self, text: str, name: str, args: tuple[Any, ...]) -> None:
        self.spend(len(text) + sum(abs(arg) for arg in args if isinstance(arg, int)))
        if name == "replace" and len(args) > 1:
            self._spend_on_replacing(text, str(args[0]), str(args[1]))
        elif name == "join" and args and isinstance(args[0], (list, tuple)):
            self._spend_on_joining(text, args[0])
        elif name in ("format", "format_map"):
            _check_widths(text)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for sized, times in ((left, right), (right, left)):
                if isinstance(sized, (str, list, tuple)) and isinstance(times, int):
                    self.spend(len(sized) * max(0, times))
        elif operator == "**":
            _bound("bits", _bits(left) * abs(right) if isinstance(right, int) else 0, MAX_CHARACTERS)
        elif operator == "%" and isinstance(left, str):
            _check_widths(left)
        elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            self.spend(len(left) + len(right))
        return super().call_binop(context, operator, left, right)


def _check_widths(pattern: str) -> None:
    """Refuses format strings that pad to any length: five digits, or a width that is an argument."""
    if re.search(r"\d{5}|%[^a-zA-Z]*\*|\{[^}]*\{", pattern):
        raise ChatTemplateError(f"chat template: expected short widths in a format, found {pattern[:80]!r}")


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _bound(what: str, found: int, limit: int) -> None:
    if found > limit:
        raise ChatTemplateError(f"chat template: expected at most {limit} {what}, found {found} or more")


def _raise_exception(message: str) -> NoReturn:
    raise ChatTemplateError(f"chat template: {message}", hint="it refuses these messages: see their roles and order")


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if isinstance(indent, int):
        _bound("spaces of indent", indent, _MAX_INDENT)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
