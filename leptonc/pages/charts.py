"""Charts as inline SVG: no script, no request, colours of the page around them, equal bytes for equal figures.

Each chart is drawn twice, for a wide page and for a narrow one, so that its texts have the same size on both; the page
shows one of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from leptonc.pages.axes import Axis, number, shortened, text_width
from leptonc.pages.kinds import Scale, style
from leptonc.pages.labels import Box, Label, Point, place, ranges, spread, together

WIDE, NARROW = 720, 350
SIZE = 12.5  # of texts
TOP, BOTTOM, RIGHT = 26, 40, 14
RADIUS = 4.5
LONGEST = 190  # a label that is wider is shortened
NEAR = 3.0  # points that are so near share a label

# Light and dark colours of `kinds.KINDS`; all have a contrast of 3 with the page.
STYLE = """
figure{margin:.4rem 0 1rem;break-inside:avoid}
figure svg{display:block;width:100%;height:auto;font:12.5px system-ui,sans-serif;fill:var(--ink);margin:auto}
svg.wide{max-width:54rem}svg.narrow{max-width:27rem}figure svg.narrow{display:none}
@media screen and (max-width:640px){figure svg.narrow{display:block}figure svg.wide{display:none}}
svg .grid{stroke:var(--line)}svg .leader{stroke:var(--soft)}svg .mark{stroke:var(--page);stroke-width:.8}
svg .front{fill:none;stroke:var(--accent);stroke-width:1.5}svg .box{fill:var(--card);stroke:var(--line)}
svg .best{fill:var(--accent)}svg .other{fill:var(--page);stroke:var(--soft);stroke-width:1.6}svg .tone{fill:var(--soft)}
.k0{fill:var(--k0)}.k1{fill:var(--k1)}.k2{fill:var(--k2)}.k3{fill:var(--k3)}.k4{fill:var(--k4)}
.key{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;font-size:.85rem;padding:0;margin:.2rem 0 1rem;list-style:none}
.key svg{width:.85rem;height:.85rem;margin-right:.35rem;vertical-align:-.1rem}
"""

# Marks around the origin, of one size.
_SHAPES = (
    '<circle cx="{x}" cy="{y}" r="4"{a}>', '<path d="M{x} {y}m-3.6-3.6h7.2v7.2h-7.2z"{a}>',
    '<path d="M{x} {y}m0-4.8l4.6 8h-9.2z"{a}>', '<path d="M{x} {y}m0-5l5 5-5 5-5-5z"{a}>',
    '<path d="M{x} {y}m0 4.8l4.6-8h-9.2z"{a}>', '<path d="M{x} {y}m-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z"{a}>',
)  # fmt: skip


@dataclass(frozen=True)
class Mark:
    """A point of a chart over layers: its column, value, kind, shape, and what a pointer is told."""

    column: int
    value: float
    kind: str
    shape: int
    title: str


@dataclass(frozen=True)
class Dot:
    """A point of a chart of two axes: where it is, its name and number, and whether it is one of the best."""

    x: float
    y: float
    name: str
    number: int
    best: bool = False


def _figure(title: str, about: str, draw: Callable[[int], tuple[str, float]]) -> str:
    """Returns a chart in both widths. `draw` returns what is inside, and its height, for a width."""
    parts = []
    for name, width in (("wide", WIDE), ("narrow", NARROW)):
        inside, height = draw(width)
        told = f"<title>{escape(title)}</title><desc>{escape(about)}</desc>"
        parts.append(f'<svg class="{name}" viewBox="0 0 {width} {height:g}" role="img">{told}{inside}</svg>')
    return f"<figure>{''.join(parts)}</figure>"


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    at = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}"{at}>{escape(text)}</text>'


def _shape(index: int, x: float, y: float, attributes: str, inside: str = "") -> str:
    mark = _SHAPES[index % len(_SHAPES)].format(x=f"{x:.1f}", y=f"{y:.1f}", a=attributes)
    return f"{mark}{inside}</{'circle' if mark.startswith('<circle') else 'path'}>"


def key(scale: Scale) -> str:
    """Returns the legend of a scale: each part's shape in its kind's colour."""
    items = []
    for (kind, part), shape in scale.shapes.items():
        mark = _shape(shape, 0, 0, f' class="{style(kind)}"')
        name = kind if part in ("", kind) else f"{kind}: {part}"
        items.append(f'<li><svg viewBox="-6 -6 12 12" aria-hidden="true">{mark}</svg>{escape(name)}</li>')
    return f'<ul class="key">{"".join(items)}</ul>'


def kinds_key(kinds: Sequence[str]) -> str:
    """Returns the legend of kinds alone."""
    mark = '<svg viewBox="0 0 8 8" aria-hidden="true"><rect width="8" height="8" class="{}"/></svg>'
    return f'<ul class="key">{"".join(f"<li>{mark.format(style(kind))}{escape(kind)}</li>" for kind in kinds)}</ul>'


class _Frame:
    """The frame of a chart: where values are, its grid, and the names along its axes."""

    def __init__(self, width: int, height: int, y: Axis) -> None:
        self.width, self.height, self.y = width, height, y
        self.bottom = height - BOTTOM
        ticks = y.named(max(3, int((self.bottom - TOP) / 32)))
        self.left = max(text_width(name, SIZE) for _, name in ticks) + 10
        self.right = width - RIGHT
        self.parts = [_text(2, 14, f"↑ {y.title}", "start")]
        for tick, name in ticks:
            at = self.down(tick)
            self.parts.append(f'<path class="grid" d="M{self.left:.1f} {at:.1f}H{self.right}"/>')
            self.parts.append(_text(self.left - 6, at + 4, name, "end"))

    def down(self, value: float) -> float:
        return TOP + (1 - self.y.at(value)) * (self.bottom - TOP)

    def across(self, share: float) -> float:
        return self.left + share * (self.right - self.left)

    def below(self, title: str) -> None:
        """Names the axis below."""
        self.parts.append(_text((self.left + self.right) / 2, self.height - 6, title))

    def values(self, x: Axis) -> None:
        """Writes the figures of an axis below: as many as have room."""
        for most in range(8, 1, -1):
            known = [(self.across(x.at(tick)), text_width(name, SIZE), name) for tick, name in x.named(most)]
            inside = [one for one in known if one[0] - one[1] / 2 >= 0 and one[0] + one[1] / 2 <= self.width]
            if len(spread([at for at, _, _ in inside], [wide for _, wide, _ in inside], 0, self.width)) == len(inside):
                self.parts += [_text(at, self.bottom + 16, name) for at, _, name in inside]
                break
        self.below(f"{x.title} →")

    def columns(self, names: Sequence[str]) -> None:
        """Writes the names of columns below: those that are no numbers first, of numbers as many as have room."""
        taken: list[Box] = []
        y = self.bottom + 16

        def write(index: int) -> None:
            half = text_width(names[index], SIZE) / 2
            centre = min(max(self.across((index + 0.5) / len(names)), half), self.width - half)
            box = Box(centre - half, y - SIZE, centre + half, y)
            if not any(box.overlaps(other, 6) for other in taken):
                taken.append(box)
                self.parts.append(_text(centre, y, names[index]))

        numbers = [i for i, name in enumerate(names) if name.isdigit()]
        for index in sorted(set(range(len(names))) - set(numbers)):
            write(index)
        centres = [self.across((i + 0.5) / len(names)) for i in numbers]
        for index in spread(centres, [text_width(names[i], SIZE) for i in numbers], 0, self.width):
            write(numbers[index])
        self.below("layer →")


def over_layers(title: str, about: str, marks: Sequence[Mark], columns: Sequence[str], y: Axis) -> str:
    """Plots values of layers: a mark for each, in its column.

    Args:
        title: Names the chart.
        about: Says what it shows, for those who do not see it.
        marks: The points.
        columns: Names of the columns.
        y: The axis of values.
    """

    def draw(width: int) -> tuple[str, float]:
        frame = _Frame(width, 260, y)
        frame.columns(columns)
        for mark in marks:
            x, down = frame.across((mark.column + 0.5) / len(columns)), frame.down(mark.value)
            told = f"<title>{escape(mark.title)}</title>" if width == WIDE else ""
            frame.parts.append(_shape(mark.shape, x, down, f' class="mark {style(mark.kind)}"', told))
        return "".join(frame.parts), frame.height

    return _figure(title, about, draw)


def stacks(title: str, about: str, columns: Mapping[str, Mapping[str, float]], y_title: str) -> str:
    """Plots a column for each name, its parts by kind on top of each other."""

    def draw(width: int) -> tuple[str, float]:
        top = max((sum(parts.values()) for parts in columns.values()), default=0.0) or 1.0
        frame = _Frame(width, 230, Axis(y_title, 0.0, top * 1.05))
        frame.columns(list(columns))
        wide = frame.across(1 / len(columns)) - frame.left
        for index, (name, parts) in enumerate(columns.items()):
            base, shapes = 0.0, []
            for kind, part in parts.items():
                low, high = frame.down(base), frame.down(base + part)
                box = f'x="{frame.left + (index + 0.1) * wide:.1f}" width="{wide * 0.8:.1f}"'
                shapes.append(f'<rect {box} y="{high:.1f}" height="{low - high:.1f}" class="{style(kind)}"/>')
                base += part
            listed = ", ".join(f"{kind} {number(float(f'{part:.3g}'))}" for kind, part in parts.items())
            told = f"<title>{escape(f'{name}: {listed} {y_title}')}</title>" if width == WIDE else ""
            frame.parts.append(f"<g>{told}{''.join(shapes)}</g>")
        return "".join(frame.parts), frame.height

    return _figure(title, about, draw)


@dataclass(frozen=True)
class Cell:
    """A box of a grid: its kind, the share of it that is filled, and what a pointer is told."""

    kind: str
    share: float
    title: str


def grid(title: str, about: str, rows: Mapping[str, Mapping[str, Cell]], columns: Sequence[str]) -> str:
    """Plots a box for each row and column, filled from below; a row with one box without a column has a wide one.

    Args:
        title: Names the chart.
        about: Says what it shows, for those who do not see it.
        rows: Boxes by row and column.
        columns: Names of the columns.
    """
    tall = 20

    def draw(width: int) -> tuple[str, float]:
        names = {row: shortened(row, width * 0.36, SIZE) for row in rows}
        frame = _Frame(width, TOP + tall * len(rows) + BOTTOM, Axis("", 0.0, 1.0))
        frame.left = max((text_width(name, SIZE) for name in names.values()), default=0.0) + 8
        frame.parts = []
        step = (frame.right - frame.left) / max(1, len(columns))
        for at, (row, cells) in enumerate(rows.items()):
            y = TOP + at * tall
            frame.parts.append(_text(frame.left - 6, y + 14, names[row], "end"))
            for column, cell in cells.items():
                x, wide = frame.left, frame.right - frame.left
                if column in columns:
                    x, wide = frame.left + columns.index(column) * step, step
                part = (tall - 3) * cell.share
                box = f'x="{x + 0.5:.1f}" width="{max(1.0, wide - 1):.1f}"'
                told = f"<title>{escape(cell.title)}</title>" if width == WIDE else ""
                frame.parts.append(
                    f'<g>{told}<rect {box} y="{y}" height="{tall - 3}" class="box"/>'
                    f'<rect {box} y="{y + tall - 3 - part:.1f}" height="{part:.1f}" class="{style(cell.kind)}"/></g>'
                )
        if columns:
            frame.columns(columns)
        return "".join(frame.parts), frame.height

    return _figure(title, about, draw)


def fill_key(shares: Mapping[str, float]) -> str:
    """Returns the legend of how full a box is."""
    items = []
    for name, share in shares.items():
        box = '<rect width="10" height="10" class="box"/>'
        full = f'<rect width="10" y="{10 - 10 * share:g}" height="{10 * share:g}" class="tone"/>'
        items.append(f'<li><svg viewBox="0 0 10 10" aria-hidden="true">{box}{full}</svg>{escape(name)}</li>')
    return f'<ul class="key">{"".join(items)}</ul>'


def scatter(title: str, about: str, dots: Sequence[Dot], x: Axis, y: Axis, line: Sequence[int] = ()) -> str:
    """Plots points over two axes, each with its number, and its name where there is room for all.

    Args:
        title: Names the chart.
        about: Says what it shows, for those who do not see it.
        dots: The points.
        x: The axis across.
        y: The axis upwards.
        line: Indices of points that a line joins, in order. Default: no line.
    """

    def draw(width: int) -> tuple[str, float]:
        frame = _Frame(width, 340 if width == WIDE else 300, y)
        frame.values(x)
        at = [(frame.across(x.at(dot.x)), frame.down(dot.y)) for dot in dots]
        if line:
            joined = " ".join(f"{at[i][0]:.1f},{at[i][1]:.1f}" for i in line)
            frame.parts.append(f'<polyline class="front" points="{joined}"/>')
        joins = [(at[a], at[b]) for a, b in itertools.pairwise(line)]
        bounds = Box(frame.left, TOP, frame.right, frame.bottom)
        groups = together(at, NEAR)
        spots = [at[group[0]] for group in groups]
        names, labels = _labelled([[dots[i] for i in group] for group in groups], spots, bounds, joins, width == WIDE)
        for label, point in zip(labels, spots, strict=True):
            if label is not None and label.line is not None:
                ends = f'd="M{point[0]:.1f} {point[1]:.1f}L{label.line[0]:.1f} {label.line[1]:.1f}"'
                frame.parts.append(f'<path class="leader" {ends}/>')
        for dot, point in zip(dots, at, strict=True):
            kind = "best" if dot.best else "other"
            mark = f'<circle cx="{point[0]:.1f}" cy="{point[1]:.1f}" r="{RADIUS}" class="{kind}">'
            told = f"<title>{escape(f'{dot.number}: {dot.name}')}</title>" if width == WIDE else ""
            frame.parts.append(f"{mark}{told}</circle>")
        for name, label in zip(names, labels, strict=True):
            if label is not None:
                middle = (label.box.left + label.box.right) / 2
                frame.parts.append(_text(middle, label.box.bottom - 3.5, name))
        return "".join(frame.parts), frame.height

    return _figure(title, about, draw)


def _labelled(
    groups: Sequence[Sequence[Dot]], at: Sequence[Point], bounds: Box, joins: Sequence[tuple[Point, Point]], named: bool
) -> tuple[list[str], list[Label | None]]:
    """Returns the labels of groups of points and their places: with names where all have room, else with numbers."""
    numbers = [ranges([dot.number for dot in group]) for group in groups]
    if named:
        listed = [", ".join(f"{dot.number} {dot.name}" for dot in group) for group in groups]
        names = [shortened(name, LONGEST, SIZE) for name in listed]
        labels = place(at, [_size(name) for name in names], bounds, joins)
        if None not in labels:
            return names, labels
    numbers = [shortened(text, LONGEST, SIZE) for text in numbers]
    return numbers, place(at, [_size(text) for text in numbers], bounds, joins)


def _size(text: str) -> tuple[float, float]:
    return text_width(text, SIZE), SIZE + 3
