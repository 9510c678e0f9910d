"""Figures in words: how much smaller, how much worse, and whether that is much."""

from __future__ import annotations

import math

from leptonc.evaluate.bounds import loss
from leptonc.report.quality import Fidelity

# Bounds of the loss in percent, and what an artifact within one of them answers.
VERDICTS = (
    (1.0, "nearly those of the original"), (3.0, "close to those of the original"),
    (10.0, "somewhat worse than those of the original"), (math.inf, "much worse than those of the original"),
)  # fmt: skip
_SAME, _EQUAL = 0.05, 0.9995  # percent of loss, and part of equal choices, of what is the same as the original
_OTHER = 0.7  # part of equal choices below which answers are others, whatever a text's perplexity is
WISHES = (1.0, 3.0, 10.0)  # percent of loss that a reader may accept
SCALE = "A change below 1 % is small, one above 10 % is much."


def verdict(lost: float, agreed: float | None = None) -> str:
    """Returns what outputs are, by their loss in percent; a gain of the measure is no gain of the model.

    Args:
        lost: Percent of quality.
        agreed: Part of the choices that are the original's. Default: it is not known.
    """
    if lost < -1 or (agreed is not None and agreed < _OTHER and lost < VERDICTS[1][0]):
        return "other than those of the original, and not worse by this measure"
    return next((words for bound, words in VERDICTS if lost < bound), VERDICTS[-1][1])


def percent(value: float) -> str:
    """Writes a change in percent, with its sign."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 or round(value, 1) == round(value, 2) else 2
    written = f"{abs(value):,.{digits}f}"
    if float(written.replace(",", "")) == 0:
        return "±0\u00a0%"
    return f"{'+' if value > 0 else '−'}{written}\u00a0%"


def megabytes(size: float) -> str:
    """Writes a number of bytes in MB, with three digits."""
    amount = size / 1e6
    return f"{amount:,.0f}\u00a0MB" if amount >= 100 else f"{amount:.3g}\u00a0MB"


def smaller(before: float, after: float) -> str:
    """Returns how much smaller something became, in words."""
    times = before / after
    if times >= 1.05:
        return f"made {times:.1f} times smaller" if times < 20 else f"made {times:.0f} times smaller"
    return "in its full size" if times > 0.95 else f"made {1 / times:.1f} times larger"


def quality(fidelity: Fidelity | None, outputs: str = "answers") -> str:
    """Returns a sentence on what a variant's outputs are worth; one that says so where nothing was measured."""
    if fidelity is None:
        return "How close its answers are to those of the original was not measured."
    how, lost = loss(fidelity)
    agreed = fidelity.top1_agreement
    same = (agreed is None or agreed >= _EQUAL) and abs(lost) < _SAME
    told = "the same as those of the original" if same else verdict(lost, agreed)
    if fidelity.perplexity is not None:
        return f"Its {outputs} are {told}: perplexity {percent(lost)}."
    return f"Its {outputs} are {told}: {how} by {lost:.2g} %."
