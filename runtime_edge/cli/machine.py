"""What machine this is, and what is installed on it."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path


def processor() -> str:
    """The processor's name, as the system gives it."""
    return cpu_field("model name") or platform.processor() or platform.machine()


def cpu_field(name: str) -> str:
    """A field of the first processor in /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return ""
    lines = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")


def version(distribution: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
