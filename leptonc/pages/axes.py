"""Axes of plots: round ticks, figures as people write them, and how wide a text may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_STEPS = (1, 2, 5, 10)
_CONTEXT = 12  # letters before and after which a long text is cut
# Widths in ems of DejaVu Sans, which is wider than what systems have otherwise.
_NARROW, _PLAIN, _LARGE, _FULL = 0.42, 0.65, 0.8, 1.0


def number(value: float) -> str:
    """Writes a figure for people: four significant digits, thousands apart."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def text_width(text: str, size: float) -> float:
    """Returns a width that a text of this font size does not exceed, whatever the page's font is."""
    return size * sum(_em(letter) for letter in text)


def _em(letter: str) -> float:
    if letter in " .,:;'|!()[]{}/\\ijlIftr-":
        return _NARROW
    if letter in "mwMW%@—…" or not letter.isascii():
        return _FULL
    return _LARGE if letter.isupper() else _PLAIN


def shortened(text: str, width: float, size: float) -> str:
    """Returns a text that is at most so wide, its middle left out where it is wider."""
    if text_width(text, size) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        short = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
        if text_width(short, size) <= width:
            return short
    return "…"


@dataclass(frozen=True)
class Axis:
    """An axis of figures.

    Attributes:
        title: What is shown along it, with its unit.
        low: Its least value.
        high: Its largest value.
        log: Whether it is logarithmic. Default: it is linear.
    """

    title: str
    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, title: str, values: Sequence[float], *, log: bool = False, zero: bool = False) -> Axis:
        """Returns an axis with room for all values. Default: it is linear and begins near the smallest one."""
        low, high = min(values), max(values)
        if log:
            return cls(title, low / 1.3, high * 1.3, True)
        if zero:
            low, high = min(0.0, low), max(0.0, high)
        pad = (high - low or abs(high) or 1.0) * 0.06
        return cls(title, 0.0 if zero and low >= 0 else low - pad, high + pad)

    def at(self, value: float) -> float:
        """Returns a value's position, 0 to 1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 6) -> list[float]:
        """Returns at most so many round values along the axis, two at least."""
        return self._powers(max(2, most)) if self.log else _even(self.low, self.high, max(2, most))

    def named(self, most: int = 6) -> list[tuple[float, str]]:
        """Returns ticks with their texts, which have as many digits as tell them apart."""
        ticks = self.ticks(most)
        for digits in range(1, 9):
            names = [_written(tick, digits) for tick in ticks]
            near = all(_near(name, tick, self) for name, tick in zip(names, ticks, strict=True))
            if near and len(set(names)) == len(names):
                break
        return list(zip(ticks, names, strict=True))

    def _powers(self, most: int) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for parts in ((1, 2, 5), (1, 3), (1,)):
            found = [m * 10.0**power for power in range(first, last + 1) for m in parts]
            inside = [tick for tick in found if self.low <= tick <= self.high]
            if len(inside) <= most:
                break
        else:
            inside = inside[:: math.ceil(len(inside) / most)]
        return inside if len(inside) > 1 else _even(self.low, self.high, most)


def _written(value: float, digits: int) -> str:
    rounded = float(f"{value:.{digits}g}")
    if rounded == int(rounded):
        return f"{rounded:,.0f}"
    return f"{rounded:,.{max(0, digits - 1 - math.floor(math.log10(abs(rounded))))}f}".rstrip("0")


def _near(name: str, tick: float, axis: Axis) -> bool:
    """Whether a text stands where it says, to a thousandth of a linear axis or of a logarithmic one's value."""
    off = abs(float(name.replace(",", "")) - tick)
    return off <= 1e-3 * (abs(tick) if axis.log else axis.high - axis.low)


def _even(low: float, high: float, most: int) -> list[float]:
    unit = 10.0 ** math.floor(math.log10((high - low) / most))
    steps = [unit * step * scale for scale in (0.1, 1.0, 10.0) for step in _STEPS[:3]]
    best: list[float] = []
    for step in steps:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            best = [round(i * step, 12) + 0.0 for i in range(first, last + 1)]
            break
    return best if len(best) > 1 else [low + (high - low) / 4, high - (high - low) / 4]
