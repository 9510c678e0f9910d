"""A verb's click options, made of the fields of a dataclass that carry an `Option`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from leptonc.cli.complete import OF_FIELDS
from leptonc.options import Option, kinds_of, options_of
from runtime_edge.cli.complete import starting
from runtime_edge.cli.options import GroupedOption

_Verb = TypeVar("_Verb", bound=Callable[..., Any])


def options_from(
    record: type[Any], only: Collection[str] | None = None, help: str | None = None
) -> Callable[[_Verb], _Verb]:
    """Returns a decorator that gives a verb an option for each field; values arrive by the fields' names.

    Args:
        record: A dataclass whose fields carry an `Option`.
        only: Names of the fields to take. Default: all that the command line has.
        help: A text in the place of the fields' own.
    """
    kinds, defaults = kinds_of(record), {item.name: item.default for item in dataclasses.fields(record)}

    def decorate(verb: _Verb) -> _Verb:
        for name, option in reversed(options_of(record).items()):
            if option.in_command and (only is None or name in only):
                about = option if help is None else dataclasses.replace(option, help=help, usual=None, group=None)
                verb = _click_option(name, about, kinds[name], defaults[name])(verb)
        return verb

    return decorate


def _click_option(name: str, option: Option, kind: str, default: Any) -> Callable[[_Verb], _Verb]:
    flags = option.flags or (f"--{name.replace('_', '-')}",)
    told = f"  [default: {option.usual}]" if option.usual is not None else ""
    about: dict[str, Any] = {"help": option.help + told, "metavar": option.metavar, "default": default}
    about |= {"cls": GroupedOption, "group": option.group, "shell_complete": OF_FIELDS.get(name)}
    if kind == "bool":
        about["is_flag"] = True
        about["show_default"] = bool(default)
    else:
        about["type"] = _type(kind, option)
        about["show_default"] = default is not None
    if option.several:
        about |= {"multiple": True, "default": (default,), "callback": _one_or_several}
    return click.option(*flags, name, **about)


def _type(kind: str, option: Option) -> click.ParamType[Any]:
    if option.choices:
        return OneOf(option)
    if option.percent:
        return Percent()
    if kind == "int":
        return click.IntRange(_whole(option.least), _whole(option.most))
    if kind == "float":
        return click.FloatRange(option.least, option.most)
    return click.Path(path_type=Path) if kind == "Path" else click.STRING


def _whole(bound: float | None) -> int | None:
    return None if bound is None else int(bound)


def _one_or_several(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> str | tuple[str, ...]:
    return values[0] if len(values) == 1 else values


class OneOf(click.ParamType):  # type: ignore[type-arg]
    """One of an option's choices, of their own type, or a text of its open form."""

    name = "choice"

    def __init__(self, option: Option) -> None:
        self._option = option

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{'|'.join(self._option.listed())}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        for choice in self._option.choices:
            if str(value) == str(choice):
                return choice
        if not self._option.may_be(value):
            *others, last = self._option.listed()
            listed = f"one of {', '.join(others)} or {last}" if others else last
            self.fail(f"expected {listed}, found {value!r}", param, ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        form, colon, _ = (self._option.open_choice or "").partition(":")
        return starting(incomplete, [(text, None) for text in (*map(str, self._option.choices), form + colon) if text])


class Percent(click.ParamType):  # type: ignore[type-arg]
    """A number of percent, 0 or more, its sign written or not."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = click.FLOAT(str(value).strip().removesuffix("%"), param, ctx)
        if not number >= 0:
            self.fail(f"expected a number of 0 or more, found {value}", param, ctx)
        return float(number)
