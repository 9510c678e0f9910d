"""What this process holds in memory."""

from __future__ import annotations

import sys
from pathlib import Path


def resident() -> int | None:
    """Returns how many bytes are in memory now, or what `most_resident` does where the system says no more."""
    return _said("VmRSS")


def most_resident() -> int | None:
    """Returns how many bytes were in memory at most; None where the system does not say."""
    return _said("VmHWM")


def _said(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
    except (OSError, StopIteration):
        if sys.platform == "win32":
            return None
        import resource  # counts the process that started this one as well: only where there is no /proc

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
