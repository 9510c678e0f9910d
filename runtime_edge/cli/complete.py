"""Completion in shells: what a Tab offers for the values that both command lines take, and words as bash splits them.

A shell asks the command line itself (`_LEPTONC_COMPLETE=bash_source leptonc`), so nothing heavy may be imported here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

_BREAKS = (":", "=")  # where bash splits words, besides at spaces


@add_completion_class
class Bash(BashComplete):
    """Bash has `sample:tiny` as three words and completes the last: they are joined, and what it has is left out."""

    _present = ""  # what bash has of the incomplete value before its last word

    def get_completion_args(self) -> tuple[list[str], str]:
        """Returns the complete arguments, and the incomplete value."""
        words, last = super().get_completion_args()
        joined: list[str] = []
        after_break = False
        for word in (*words, last):
            is_break = word in _BREAKS
            if joined and (is_break or after_break):
                self._present = joined[-1] + (word if is_break else "")
                joined[-1] += word
            else:
                self._present = ""
                joined.append(word)
            after_break = is_break
        return joined[:-1], joined[-1]

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """Returns a candidate without what bash has of it; a value behind `--option=` begins after that."""
        present = self._present
        if present.startswith("--"):
            present = present.partition("=")[2]
        return f"{item.type},{item.value.removeprefix(present)}"


def starting(incomplete: str, values: Iterable[tuple[str, str | None]]) -> list[CompletionItem[Any]]:
    """Returns the values that begin with what was typed, with the help that some shells show beside them."""
    return [CompletionItem(value, help=about) for value, about in values if value.startswith(incomplete)]


def variants(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[Any]]:
    """Offers the variants of the artifact on the command line; none where it cannot be read."""
    from runtime_edge.errors import LeptonError
    from runtime_edge.verify import read_manifest

    # click leaves arguments where they are while an option before them has no value yet.
    for path in filter(None, (ctx.params.get("artifact"), *ctx.args)):
        with contextlib.suppress(LeptonError, OSError, ValueError):
            return starting(incomplete, [(variant.name, None) for variant in read_manifest(Path(path)).variants])
    return []
