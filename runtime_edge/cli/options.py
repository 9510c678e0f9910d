"""Arguments and options that several verbs share, each written once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

_COLUMN = 30  # letters of the help's first column at most, as click has it


class GroupedOption(click.Option):
    """An option with the heading that it stands under in the help of a `GroupedCommand`."""

    def __init__(self, *declarations: Any, group: str | None = None, **about: Any) -> None:
        super().__init__(*declarations, **about)
        self.group = group


class GroupedCommand(click.Command):
    """A verb whose help lists its options under headings; those without one come last, as `Options`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes each heading with its options."""
        for group, members in grouped(self.get_params(ctx)):
            records = [record for member in members if (record := member.get_help_record(ctx)) is not None]
            if records:
                widest = min(_COLUMN, max(len(names) for names, _ in records))
                with formatter.section(group):  # all of them with the same columns
                    formatter.write_dl(records, col_max=_COLUMN, col_spacing=2 + _COLUMN - widest)


def grouped(parameters: Iterable[click.Parameter]) -> list[tuple[str, list[click.Option]]]:
    """Returns a verb's options by their headings, in their order; those without a heading come last."""
    options = [parameter for parameter in parameters if isinstance(parameter, click.Option)]
    names = dict.fromkeys(getattr(option, "group", None) for option in options)
    order = [*(name for name in names if name is not None), None]
    return [
        (name or "Options", members)
        for name in order
        if (members := [option for option in options if getattr(option, "group", None) == name])
    ]


artifact = click.argument("artifact", metavar="ART", type=click.Path(path_type=Path))
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text for people.")
threads = click.option(
    "--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads to compute with.  [default: usable cores]"
)
seed = click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, metavar="N", help="Seed of all chance."
)


def given() -> set[str]:
    """Returns the parameters of the verb that runs which were given, on the command line or in the environment."""
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    return {name for name in context.params if context.get_parameter_source(name) is not default}
