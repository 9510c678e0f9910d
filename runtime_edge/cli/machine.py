"""What machine this is, and what is installed on it."""

from __future__ import annotations

import platform
from importlib import metadata

from runtime_edge.probe import cpu_field


def processor() -> str:
    """The processor's name, as the system gives it."""
    return cpu_field("model name") or platform.processor() or platform.machine()


def version(distribution: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
