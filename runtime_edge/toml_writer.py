"""Writes recipes as TOML: options of a build, and tables of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def toml(record: Mapping[str, Any]) -> str:
    """Returns a recipe (options by name, and `layers`) as a file's text."""

    def plain(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(plain, value))}]"
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' if isinstance(value, str) else repr(value)

    lines = [f"{name} = {plain(value)}" for name, value in record.items() if name != "layers"]
    for rule in record.get("layers", ()):
        lines += ["", "[[layers]]", *(f"{name} = {plain(value)}" for name, value in rule.items())]
    return "\n".join(lines) + "\n"
