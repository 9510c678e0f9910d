"""Times and numbers of steps, as they are typed."""

from __future__ import annotations

import pytest

from leptonc.errors import InputError
from leptonc.heal.budget import Budget, parse_budget


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("10min", Budget(seconds=600)), ("30s", Budget(seconds=30)), ("1.5h", Budget(seconds=5400)),
        ("200steps", Budget(steps=200)), ("1 step", Budget(steps=1)), (" 2 min ", Budget(seconds=120)),
    ],
)  # fmt: skip
def test_budgets(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize(
    "text",
    ["0", "0s", "0steps", "10", "min", "-5s", "1.5steps", "8760h", "2000000steps", "nan s", "1e3s", "", "10 minutes"],
)
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(InputError, match="expected a time or a number of steps"):
        parse_budget(text)


def test_progress() -> None:
    assert Budget(seconds=60).progress(30, 1000) == 0.5
    assert Budget(steps=10).progress(1e6, 5) == 0.5
