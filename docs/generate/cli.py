"""`docs/reference/cli.md`, made of the verbs' click commands: what `--help` prints, as a page."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator

import click

from docs.generate import MADE, marked, table
from leptonc.cli import _VERBS
from runtime_edge.cli.options import grouped
from runtime_edge.cli.verbs import VERBS

_HEAD = """# Command line

`leptonc` has every verb. `lepton-edge`, the command line of the runtime alone, has those that a device needs too.
`leptonc VERB --help` prints what this page has.

- Results go to stdout. Progress, speed, warnings and errors go to stderr.
- `--json` prints the result for programs.
- Every option is also read from an environment variable, which the tables name. The command line wins.
- [Exit codes](exit-codes.md) and [other variables](environment.md) have pages of their own.

"""
_DEFAULT = re.compile(r"\s*\[default: (.*)\]$")


def page() -> str:
    """Returns the page."""
    verbs = ((f"[`{verb}`](#{verb})", about.summary, "yes" if verb in VERBS else "") for verb, about in _VERBS.items())
    first = table(("verb", "what it does", "in `lepton-edge`"), verbs)
    return MADE + _HEAD + first + "".join(_section(verb, _command(verb)) for verb in _VERBS)


def _command(verb: str) -> click.Command:
    module, _, attribute = _VERBS[verb].location.partition(":")
    command: click.Command = getattr(importlib.import_module(module), attribute)
    return command


def _section(verb: str, command: click.Command) -> str:
    context = click.Context(command, info_name=verb, auto_envvar_prefix=f"LEPTON_{verb.upper()}")
    usage = " ".join([f"leptonc {verb}", *command.collect_usage_pieces(context)])
    parts = [f"\n## {verb}\n\n```text\n{usage}\n```\n\n{_text(command)}\n"]
    groups = grouped(command.params)
    for group, options in groups:
        heading = f"\n**{group}**\n" if len(groups) > 1 else ""
        rows = (_row(option, context) for option in options)
        parts.append(f"{heading}\n{table(('option and variable', 'meaning', 'default'), rows)}")
    return "".join(parts)


def _text(command: click.Command) -> str:
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return marked("\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs))


def _row(option: click.Option, context: click.Context) -> tuple[str, ...]:
    text = option.help or ""
    told = _DEFAULT.search(text)
    default = told[1] if told else _default(option)
    meaning = _DEFAULT.sub("", text).replace("As for `build`.", "As for [`build`](#build).")
    variable = f"`{context.auto_envvar_prefix}_{(option.name or '').upper()}`"
    return f"{', '.join(_spelled(option, context))}<br>{variable}", marked(meaning), marked(default)


def _spelled(option: click.Option, context: click.Context) -> Iterator[str]:
    """Yields the names of an option, the last with its value."""
    if option.is_flag:
        yield from (f"`{name}`" for name in (*option.opts, *option.secondary_opts))
        return
    *others, last = option.opts
    value = re.sub(r"^\[(.*)\]$", r"\1", option.make_metavar(context))
    yield from (f"`{name}`" for name in others)
    yield f"`{last} {value.replace('|', ' | ')}`"


def _default(option: click.Option) -> str:
    """Returns what a value is that is not given, where the option has a default of its own."""
    if option.required:
        return "required"
    if option.is_flag:
        names = option.opts if option.default is True else option.secondary_opts
        return f"`{names[0]}`" if names else "off"
    default = option.default
    if not isinstance(default, (str, int, float, tuple)) or default in ("", ()):
        return "none"
    values = default if isinstance(default, tuple) else (default,)
    return f"`{', '.join(map(str, values))}`"
