"""Plots as inline SVG: no script, no request, colours of the page around them, equal bytes for equal figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 720, 56, 12, 10, 40
TICKS = 5
COLOURS = 8  # classes c0 … c7 of `STYLE`

# Of Okabe and Ito's palette, which people with any colour vision tell apart; the page chooses light or dark.
STYLE = """
svg{width:100%;height:auto;font:13px system-ui,sans-serif;fill:currentColor;margin:.3em 0}
svg .axis{stroke:currentColor;stroke-opacity:.25}svg .line{fill:none;stroke:currentColor;stroke-width:1.5;opacity:.6}
.c0{fill:#0072b2}.c1{fill:#e69f00}.c2{fill:#009e73}.c3{fill:#cc79a7}.c4{fill:#56b4e9}.c5{fill:#d55e00}
.c6{fill:#b8a800}.c7{fill:#888}
.key{display:flex;flex-wrap:wrap;gap:.2em 1em;font-size:.85em;padding:0;list-style:none}
.key svg{width:.8em;height:.8em;margin:0 .3em 0 0;display:inline}
"""


def number(value: float) -> str:
    """Writes a figure for people: four significant digits, thousands apart."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def key(names: Sequence[str]) -> str:
    """Returns the legend: names beside their colours, in order."""
    mark = '<svg viewBox="0 0 8 8" aria-hidden="true"><rect width="8" height="8" class="c{}"/></svg>'
    items = (f"<li>{mark.format(i % COLOURS)}{escape(name)}</li>" for i, name in enumerate(names))
    return f'<ul class="key">{"".join(items)}</ul>'


@dataclass(frozen=True)
class Axis:
    """An axis: its title, its bounds, and whether it is logarithmic. Default: it is linear."""

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
        pad = (high - low or abs(high) or 1.0) * 0.06
        return cls(title, 0.0 if zero else low - pad, high + pad)

    def at(self, value: float) -> float:
        """Returns a value's position, 0 to 1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Returns round values along the axis."""
        if self.log:
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            marks = [10.0**power for power in powers]
            return marks if len(marks) > 1 else [self.low * 1.3, *marks, self.high / 1.3]
        rough = (self.high - self.low) / TICKS
        unit = 10 ** math.floor(math.log10(rough))
        step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Dot:
    """A point: its position, its series (a colour), its title, and whether the title is written beside it."""

    x: float
    y: float
    series: int
    title: str
    shown: bool = False


def dots(title: str, points: Sequence[Dot], x: Axis, y: Axis, *, line: Sequence[int] = (), height: int = 260) -> str:
    """Plots points over two axes; `line` joins those with these indices, in order. Default: no line."""
    frame, place = _frame(title, x, y, height)
    parts = [frame]
    if line:
        joined = " ".join("{:.1f},{:.1f}".format(*place(points[i].x, points[i].y)) for i in line)
        parts.append(f'<polyline class="line" points="{joined}"/>')
    for point in points:
        cx, cy = place(point.x, point.y)
        name = escape(point.title)
        mark = f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="4" class="c{point.series % COLOURS}">'
        parts.append(f"{mark}<title>{name}</title></circle>")
        if point.shown:
            shift, anchor = (-7, "end") if cx > WIDTH * 0.75 else (7, "start")
            parts.append(f'<text x="{cx + shift:.1f}" y="{cy - 6:.1f}" text-anchor="{anchor}">{name}</text>')
    return _svg(parts, height)


def columns(title: str, stacks: Sequence[tuple[str, Sequence[float]]], y_title: str, *, height: int = 220) -> str:
    """Plots a column for each (name, parts), the parts on top of each other in the series' colours."""
    top = max(sum(parts) for _, parts in stacks) or 1.0
    x, y = Axis("", -0.5, len(stacks) - 0.5), Axis(y_title, 0.0, top * 1.05)
    frame, place = _frame(title, x, y, height, names=[name for name, _ in stacks])
    out = [frame]
    for i, (name, parts) in enumerate(stacks):
        left, right, base = place(i - 0.4, 0)[0], place(i + 0.4, 0)[0], 0.0
        shapes = []
        for series, part in enumerate(parts):
            if part <= 0:
                continue
            low, high = place(i, base)[1], place(i, base + part)[1]
            shapes.append(
                f'<rect x="{left:.1f}" y="{high:.1f}" width="{right - left:.1f}" height="{low - high:.1f}" '
                f'class="c{series % COLOURS}"/>'
            )
            base += part
        out.append(f"<g><title>{escape(name)}: {number(sum(parts))}</title>{''.join(shapes)}</g>")
    return _svg(out, height)


def grid(
    title: str, rows: Sequence[str], columns: Sequence[str], cells: Mapping[tuple[str, str], tuple[int, float, str]]
) -> str:
    """Plots cells by (row, column): (series, which is a colour; share that is filled, 0 to 1; title)."""
    left, cell_height = 130, 18
    wide = (WIDTH - left - RIGHT) / max(1, len(columns))
    height = cell_height * len(rows) + 34
    parts = [f"<title>{escape(title)}</title>"]
    for r, row in enumerate(rows):
        y = r * cell_height
        parts.append(f'<text x="{left - 6}" y="{y + 13}" text-anchor="end">{escape(row)}</text>')
        for c, column in enumerate(columns):
            if (row, column) not in cells:
                continue
            series, share, name = cells[row, column]
            tall = max(1.0, (cell_height - 2) * share)
            box = f'x="{left + c * wide:.1f}" width="{max(1.0, wide - 1):.1f}"'
            parts.append(
                f'<g><title>{escape(name)}</title><rect {box} y="{y}" height="{cell_height - 2}" class="c7" '
                f'opacity=".15"/><rect {box} y="{y + cell_height - 2 - tall:.1f}" height="{tall:.1f}" '
                f'class="c{series % COLOURS}"/></g>'
            )
    every = max(1, math.ceil(len(columns) / 15))
    for c in range(0, len(columns), every):
        at = f'x="{left + (c + 0.5) * wide:.1f}" y="{height - 20}" text-anchor="middle"'
        parts.append(f"<text {at}>{escape(columns[c])}</text>")
    parts.append(f'<text x="{(left + WIDTH) / 2:.0f}" y="{height - 4}" text-anchor="middle">layer</text>')
    return _svg(parts, height)


def _frame(
    title: str, x: Axis, y: Axis, height: int, names: Sequence[str] = ()
) -> tuple[str, Callable[[float, float], tuple[float, float]]]:
    """Returns axes with ticks (along x, names where there are some), and the function that places a point."""
    wide, tall = WIDTH - LEFT - RIGHT, height - TOP - BOTTOM

    def place(a: float, b: float) -> tuple[float, float]:
        return LEFT + x.at(a) * wide, TOP + (1 - y.at(b)) * tall

    parts = [f"<title>{escape(title)}</title>"]
    for tick in y.ticks():
        at = place(x.low, tick)[1]
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{at + 4:.1f}" text-anchor="end">{number(round(tick, 10))}</text>')
    every = max(1, math.ceil(len(names) / 15))
    marks = [(float(i), names[i]) for i in range(0, len(names), every)]
    for where, name in marks or [(tick, number(round(tick, 10))) for tick in x.ticks()]:
        at = place(where, y.low)[0]
        parts.append(f'<text x="{at:.1f}" y="{height - BOTTOM + 14}" text-anchor="middle">{escape(name)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{height - 6}" text-anchor="middle">{escape(x.title)}</text>')
    turn = f"rotate(-90 12 {height / 2:.0f})"
    parts.append(f'<text x="12" y="{height / 2:.0f}" text-anchor="middle" transform="{turn}">{escape(y.title)}</text>')
    return "".join(parts), place


def _svg(parts: Sequence[str], height: int) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'
