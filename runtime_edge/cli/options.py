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
