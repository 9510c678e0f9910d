"""Renders chat messages with the model's own template, which is untrusted: sandboxed and bounded.

The template language is that of `transformers`' chat templates: Jinja with `raise_exception`, `strftime_now`, a plain
`tojson`, loop controls, and `{% generation %}` blocks, which only training needs.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from runtime_edge.errors import ChatTemplateError

MAX_CHARACTERS = 4 * 2**20  # of a rendered prompt, and of any text on the way there
MAX_ITERATIONS = 2_000_000  # of all loops of one rendering together
_TICK = "lepton_count_iterations"

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
        self._lock = threading.Lock()  # the environment counts iterations of one rendering at a time
        try:
            self._template = self._environment.from_string(source)
        except (TemplateError, RecursionError) as error:
            raise ChatTemplateError(f"chat template: expected a Jinja template, found: {error}") from error

    def render(self, messages: Sequence[Message]) -> str:
        """Returns the prompt, ending where the assistant's answer begins.

        Raises:
            ChatTemplateError: The template refused the messages, failed, or exceeded a bound.
        """
        variables = {**self._special_tokens, "messages": list(messages), "add_generation_prompt": True}
        pieces: list[str] = []
        length = 0
        with self._lock:
            self._environment.iterations = 0
            try:
                for piece in self._template.generate(**variables):
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
    """The sandbox, with bounds on what it leaves open: nested loops, and operators that make long values of short."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.iterations = 0
        self.filters["tojson"] = _to_json
        self.filters[_TICK] = self._count
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        for loop in list(template.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, _TICK, [], [], None, None, lineno=loop.lineno)
        # `a ~ b` joins text without asking the sandbox; counting its result bounds repeated doubling.
        for joined in list(template.find_all(nodes.Concat)):
            joined.nodes = [nodes.Filter(node, _TICK, [], [], None, None, lineno=node.lineno) for node in joined.nodes]
        return template

    def _count(self, value: Any) -> Any:
        """Counts what a loop goes over, or refuses a text too long to join."""
        if isinstance(value, str):
            _bound("characters", len(value), MAX_CHARACTERS)
            return value
        if isinstance(value, Iterable) and not isinstance(value, Mapping):
            value = list(value)
        if isinstance(value, (list, Mapping)):
            self.iterations += len(value)
            _bound("iterations", self.iterations, MAX_ITERATIONS)
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for sized, times in ((left, right), (right, left)):
                if isinstance(sized, (str, list, tuple)) and isinstance(times, int):
                    _bound("characters", len(sized) * times, MAX_CHARACTERS)
        elif operator == "**":
            _bound("bits", _bits(left) * abs(right) if isinstance(right, int) else 0, MAX_CHARACTERS)
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, (str, list, tuple)):
            _bound("characters", len(result), MAX_CHARACTERS)
        return result


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
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
