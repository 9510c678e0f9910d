"""Completion in shells of what only the compiler takes: targets, sources and recipes."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from runtime_edge.cli.complete import starting

_SAMPLE = "sample:"


def target_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[Any]]:
    """Offers the targets; behind a name and a comma, the values that its profile has a table of."""
    import targets

    name, comma, _ = incomplete.partition(",")
    if not comma:
        return starting(incomplete, [(name, targets.load(name).description) for name in targets.names()])
    axes = targets.axes(name) if name in targets.names() else {}
    return starting(incomplete, [(f"{name},{field}={value}", None) for field in axes for value in axes[field]])


def sources(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[Any]]:
    """Offers the samples where that is begun, else files and folders."""
    from sample_models import packaged_names, tiny_names

    if incomplete and (incomplete.startswith(_SAMPLE) or _SAMPLE.startswith(incomplete)):
        return starting(incomplete, [(_SAMPLE + name, None) for name in (*packaged_names(), *tiny_names())])
    return [CompletionItem(incomplete, type="file")]


def recipes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[Any]]:
    """Offers the shipped recipes, and files where none begins so."""
    folder = Path(str(files("leptonc") / "recipes"))
    shipped = starting(incomplete, [(name, None) for name in sorted(path.stem for path in folder.glob("*.toml"))])
    return shipped or [CompletionItem(incomplete, type="file")]


OF_FIELDS = {"target": target_names}  # of `BuildOptions`
