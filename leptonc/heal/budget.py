"""How long healing may take: a time, or a number of steps."""

from __future__ import annotations

import re
from dataclasses import dataclass

from leptonc.errors import InputError

_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_TEXT = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|steps?)", re.ASCII)
LONGEST = 7 * 24 * 3600.0  # seconds
MOST = 10**6  # steps


@dataclass(frozen=True)
class Budget:
    """A budget of seconds or of steps; the other is zero."""

    seconds: float = 0.0
    steps: int = 0

    def progress(self, seconds: float, steps: int, since: float = 0.0) -> float:
        """Returns the part of the budget that is used up, from 0 on. The first `since` seconds do not count."""
        if self.steps:
            return steps / self.steps
        return (seconds - since) / (self.seconds - since) if self.seconds > since else 1.0

    def __str__(self) -> str:
        return f"{self.steps} steps" if self.steps else f"{self.seconds:g} s"


def parse_budget(text: str) -> Budget:
    """Reads `10min`, `30s`, `1h`, or `200steps`.

    Raises:
        InputError: The text is no time and no number of steps, or is zero, or above a week or a million steps.
    """
    match = _TEXT.fullmatch(text.strip())
    value = float(match[1]) if match else 0.0
    steps = bool(match and match[2].startswith("step"))
    limit = MOST if steps else LONGEST
    amount = value if steps or not match else value * _UNITS[match[2]]
    if not 0 < amount <= limit or (steps and value != int(value)):
        raise InputError(
            f"expected a time or a number of steps for healing, found {text!r}",
            hint="--heal 10min, 30s or 1h, at most a week; --heal 200steps, at most a million",
        )
    return Budget(steps=int(value)) if steps else Budget(seconds=amount)
