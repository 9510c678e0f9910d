"""`pack`: cut variants out of an artifact."""

from __future__ import annotations

from pathlib import Path

import click

from runtime_edge.cli import options
from runtime_edge.cli.complete import variants


@click.command()
@options.artifact
@click.option("--only", multiple=True, required=True, metavar="NAME", shell_complete=variants,
              help="A variant to keep, by its name or target.")  # fmt: skip
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), metavar="OUT", help="The artifact to write."
)
@click.option("--force", is_flag=True, help="Replace an artifact that is already at OUT.")
@options.as_json
def pack(artifact: Path, only: tuple[str, ...], out: Path, force: bool, as_json: bool) -> None:
    """Cut variants out of an artifact, for copying to a device.

    Every file is checked while it is copied. The artifact itself is not changed.
    """
    from leptonc.artifact.pack import pack as cut
    from runtime_edge.cli.console import megabytes, print_json

    manifest = cut(artifact, only, out, replace=force)
    if as_json:
        print_json({"path": str(out), "manifest": manifest})
        return
    size = sum(file.size for file in manifest.files)
    click.echo(f"{out}: {', '.join(variant.name for variant in manifest.variants)}, {megabytes(size)}")
