"""Arguments and options that several verbs share, each written once."""

from __future__ import annotations

from pathlib import Path

import click

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
