"""`targets`: the devices that Lepton knows."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from leptonc.cli.complete import target_names
from runtime_edge.cli import options


@click.command("targets")
@click.argument("name", required=False, shell_complete=target_names)
@options.as_json
def show_targets(name: str | None, as_json: bool) -> None:
    """List the devices that Lepton knows, or show one.

    One is shown with the source of each fact. NAME may have changes behind it, as for `leptonc build --target`:
    jetson-orin,jetpack=7.2
    """
    import targets
    from runtime_edge.cli.console import print_json, print_pairs, print_table

    chosen = [targets.load(name)] if name is not None else [targets.load(known) for known in targets.names()]
    records = [target.as_dict() for target in chosen]
    if as_json:
        print_json(records[0] if name is not None else records)
    elif name is not None:
        print_pairs([*_rows(records[0]), ("recipe", _recipe(chosen[0].lineage))])
    else:
        headings = ("name", "backend", "weights", "memory", "description")
        rows = (
            (
                target.name,
                target.backend,
                target.weights,
                f"{target.memory_gb:g} GB" if target.memory_gb is not None else "",
                target.description,
            )
            for target in chosen
        )
        print_table(headings, rows, numbers_from=len(headings))


def _recipe(lineage: tuple[str, ...]) -> str:
    """The shipped recipe that says what a build for the target does: that of the nearest profile which has one."""
    folder = Path(str(files("leptonc") / "recipes"))
    name = next((name for name in lineage if (folder / f"{name}.toml").is_file()), None)
    return f"{name}: what a build does without options, as `leptonc build --recipe {name}`" if name else "none"


def _rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    sources = record.pop("sources")
    rows: list[tuple[str, str]] = []
    for field, value in record.items():
        if value not in (None, ()):
            rows.append((field, ", ".join(value) if isinstance(value, tuple) else str(value)))
        if field in sources:
            rows.append(("", f"({sources[field]})"))
    return rows
