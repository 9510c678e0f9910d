"""`verify`: check an artifact."""

from __future__ import annotations

from pathlib import Path

import click

from runtime_edge.cli import options
from runtime_edge.cli.console import megabytes, print_json


@click.command()
@options.artifact
@options.as_json
def verify(artifact: Path, as_json: bool) -> None:
    """Check that an artifact is complete and unchanged.

    Reads every file: sizes, sha256, no files or links that do not belong, graphs that read only their own weights.
    Exit code 1 with the file's name where something is wrong.
    """
    from runtime_edge.verify import verify as check

    manifest = check(artifact)
    size = sum(file.size for file in manifest.files)
    if as_json:
        print_json({"ok": True, "name": manifest.name, "files": len(manifest.files), "bytes": size})
    else:
        click.echo(f"{manifest.name}: ok, {len(manifest.files)} files, {megabytes(size)}")
