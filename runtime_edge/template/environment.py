"""The environment that templates are compiled in: jinja2's immutable sandbox, with transformers' additions, metered."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn, cast

from jinja2 import Undefined, nodes, pass_context, pass_eval_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter
from jinja2.utils import Joiner, Namespace
from markupsafe import Markup

from runtime_edge.errors import ChatTemplateError
from runtime_edge.template import operators, syntax
from runtime_edge.template.budget import MAX_CALLS, NODE, SCALARS, Budget, refusal
from runtime_edge.template.filters import metered_filters, metered_tests
from runtime_edge.template.methods import check_attribute, spend_call

_DICT_NAMES = frozenset(dir(dict))
_STRFTIME = 256  # characters that Python makes of one of a format at the most


class Environment(ImmutableSandboxedEnvironment):
    """Compiles and runs chat templates; its `budget` is that of one rendering at a time."""

    intercepted_binops = frozenset(operators.BINARY)

    def __init__(self) -> None:
        # Not optimized: constants would be computed while it compiles, outside the budget.
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, loopcontrols])
        budget = self.budget = Budget()
        self.finalize = _finalizer(budget)
        self.filters = cast(Any, metered_filters(budget))
        self.tests = cast(Any, metered_tests(budget))
        hooks: dict[str, Callable[..., Any]] = {
            syntax.SPEND: budget.spend,
            syntax.TEXT: lambda value: _text(budget, value),
            syntax.SLICE: lambda value, *bounds: operators.cut(budget, value, *bounds),
            syntax.KEY: lambda value: operators.key(budget, value),
            syntax.SPREAD: lambda value: operators.spread(budget, value),
        }
        for name in (*operators.COMPARISONS, "in", "notin"):
            hooks[syntax.COMPARE + name] = _comparing(budget, name)
        self.filters.update(hooks)
        lipsum = self.globals["lipsum"]

        def metered_lipsum(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> Any:
            budget.spend(64 * n * max)
            return lipsum(n, html, min, max)  # type: ignore[operator]

        def strftime_now(format: str) -> str:
            budget.require(_STRFTIME * len(format))
            return budget.pay(datetime.now().strftime(format))

        self.globals.update(
            lipsum=metered_lipsum,
            raise_exception=_raise_exception,
            strftime_now=strftime_now,
            dict=_Dict(budget),
            namespace=_Namespace,
        )
        self._functions = frozenset(map(id, self.globals.values()))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        syntax.check_source(source)
        return syntax.counted(super()._parse(source, name, filename))

    def getattr(self, obj: Any, attribute: str) -> Any:
        """See `SandboxedEnvironment.getattr`."""
        if type(obj) is dict and attribute not in _DICT_NAMES:
            try:
                return obj[attribute]
            except KeyError:
                return self.undefined(obj=obj, name=attribute)
        return self._allowed(obj, attribute, super().getattr(obj, attribute))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """See `SandboxedEnvironment.getitem`."""
        kind = type(obj)
        if kind is dict or kind is list:
            try:
                return obj[operators.key(self.budget, argument)]
            except (TypeError, LookupError):
                if type(argument) is not str:
                    return self.undefined(obj=obj, name=argument)
        elif type(argument) is not str:
            operators.key(self.budget, argument)
            return super().getitem(obj, argument)
        return self._allowed(obj, argument, super().getitem(obj, argument))

    def _allowed(self, obj: Any, name: str, value: Any) -> Any:
        if not isinstance(value, (Undefined, _Format)) and not isinstance(obj, (Namespace, Undefined, _Dict)):
            check_attribute(obj, name)
        return value

    def wrap_str_format(self, value: Any) -> Any:
        """See `SandboxedEnvironment.wrap_str_format`."""
        made = super().wrap_str_format(value)
        return None if made is None else _Format(self, value.__self__, value.__name__)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """See `SandboxedEnvironment.call_binop`."""
        return operators.binary(self.budget, operator, left, right)

    def call(self, context: Context, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        """See `SandboxedEnvironment.call`: what may be called is a list too."""
        budget = self.budget
        owner = getattr(called, "__self__", None)
        if isinstance(called, (Macro, LoopContext)):
            if budget.calls >= MAX_CALLS:
                raise refusal(f"at most {MAX_CALLS} macros within macros", "more (RecursionError)")
            budget.calls += 1
            try:
                made = super().call(context, called, *args, **kwargs)
            finally:
                budget.calls -= 1
            return budget.pay(made) if isinstance(made, str) else made
        if isinstance(called, (Undefined, _Format, Joiner, _Generation)) or id(called) in self._functions:
            return super().call(context, called, *args, **kwargs)
        if isinstance(owner, (_Dict, _Generation)):
            return super().call(context, called, *args, **kwargs)
        name = getattr(called, "__name__", None)
        if owner is None or not isinstance(name, str):
            raise TypeError(f"{type(called).__name__!r} object is not callable")
        given = (*args, *(value for key, value in kwargs.items() if key not in ("_loop_vars", "_block_vars", "caller")))
        spend_call(budget, owner, name, given)
        return super().call(context, called, *args, **kwargs)


def _finalizer(budget: Budget) -> Callable[..., Any]:
    # A function of the context, so that jinja2 computes no output while it compiles.
    @pass_context
    def finalize(context: Context, value: Any) -> Any:
        if type(value) is str:
            budget.spend(len(value))
            return value
        return _text(budget, value)

    return finalize


def _text(budget: Budget, value: Any) -> str:
    """Returns `str(value)`, paid."""
    if type(value) in SCALARS:
        budget.spend(NODE)
    budget.text(value)
    made = str(value)
    if not isinstance(value, str):
        budget.spend(len(made))
    return made


def _comparing(budget: Budget, name: str) -> Callable[[Any, Any], Any]:
    return lambda left, right: operators.compare(budget, name, left, right)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: its content, in a scope of its own as transformers has it."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("content"), [], [], body, lineno=line)

    @pass_eval_context
    def content(self, context: EvalContext, caller: Macro) -> str:
        text: str = caller()
        return text


class _Dict:
    """The global `dict`."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        for values in args:
            operators.spread(self._budget, values)
            self._budget.walk(values)
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        for values in args[:1]:
            operators.spread(self._budget, values)
            self._budget.walk(values)
        return dict.fromkeys(*args, **kwargs)


class _Namespace(Namespace):
    """The global `namespace`: names that begin with an underscore are refused, as in transformers."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_public(name)
        super().__init__(attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no names that begin with an underscore, found {name[:80]!r}")


class _Format:
    """`text.format` or `text.format_map`, as a template calls it."""

    def __init__(self, environment: Environment, text: str, name: str) -> None:
        self._text = text
        self._name = name
        self._budget = environment.budget
        self._formatter = (
            _EscapingFields(environment, escape=text.escape) if isinstance(text, Markup) else _Fields(environment)
        )

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        if self._name == "format_map":
            if kwargs or len(args) != 1:
                raise TypeError("format_map() takes exactly one argument")
            kwargs, args = args[0], ()
        self._budget.spend(4 * len(self._text))
        made = type(self._text)(self._formatter.vformat(self._text, args, kwargs))
        return self._budget.pay(made)


class _Fields(SandboxedFormatter):
    """Pays for every field."""

    @property
    def _budget(self) -> Budget:
        budget: Budget = self._env.budget  # type: ignore[attr-defined]
        return budget

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        self._budget.spend(NODE * (2 + field_name.count(".") + field_name.count("[")))
        return super().get_field(field_name, args, kwargs)

    def convert_field(self, value: Any, conversion: Any) -> Any:
        if conversion is None:
            return value
        self._budget.text(value)
        made = super().convert_field(value, conversion)
        return self._budget.pay(made) if isinstance(made, str) else made

    def format_field(self, value: Any, format_spec: str) -> Any:
        for digits in re.findall(r"\d+", format_spec):
            if len(digits) > 8:
                raise refusal("short widths in a format", repr(format_spec[:80]))
            self._budget.require(int(digits))
        self._budget.text(value)
        return self._budget.pay(super().format_field(value, format_spec))


class _EscapingFields(_Fields, SandboxedEscapeFormatter):
    """The same for Markup."""


def _raise_exception(message: Any) -> NoReturn:
    text = str(message) if isinstance(message, (str, int, float)) else type(message).__name__
    raise ChatTemplateError(
        f"chat template: {text[:1000]}", hint="it refuses these messages: see their roles and order"
    )
