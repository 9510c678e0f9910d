"""Where labels of points stand: inside the plot, over no other label or point, with a line where one is far away."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

GAP = 2.0  # between two labels
LEADER = 9.0  # a label that is farther from its point has a line to it
_RADII = (0.0, 8.0, 16.0, 26.0, 38.0, 52.0, 70.0, 90.0, 115.0, 145.0, 180.0, 220.0, 260.0)
_PARTS = 32  # of a full turn
# Directions in the order that they are tried in: right, left, above, below, then between them.
_FIRST = (0, 16, 24, 8, 28, 4, 20, 12)
_TURNS = (*_FIRST, *(turn for turn in range(_PARTS) if turn not in _FIRST))

Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A rectangle; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box, gap: float = 0.0) -> bool:
        """Returns whether the rectangles have a point in common, or are nearer than `gap`."""
        across = self.left < other.right + gap and other.left < self.right + gap
        return across and self.top < other.bottom + gap and other.top < self.bottom + gap

    def inside(self, other: Box) -> bool:
        """Returns whether this rectangle lies in the other one."""
        across = other.left <= self.left and self.right <= other.right
        return across and other.top <= self.top and self.bottom <= other.bottom

    def nearest(self, point: Point) -> Point:
        """Returns its point that is nearest to another one."""
        return min(max(point[0], self.left), self.right), min(max(point[1], self.top), self.bottom)

    def crosses(self, start: Point, end: Point) -> bool:
        """Returns whether a line from `start` to `end` goes through it."""
        low, high = 0.0, 1.0  # the part of the line that is inside, as shares of its length
        across, down = (start[0], end[0], self.left, self.right), (start[1], end[1], self.top, self.bottom)
        for at, to, least, most in (across, down):
            way = to - at
            if way == 0:
                if not least < at < most:
                    return False
                continue
            first, second = sorted(((least - at) / way, (most - at) / way))
            low, high = max(low, first), min(high, second)
        return low < high


@dataclass(frozen=True)
class Label:
    """A place of a label: its box, and the end of the line from its point. Default: it needs no line."""

    box: Box
    line: Point | None = None


def place(
    points: Sequence[Point], sizes: Sequence[Point], bounds: Box, joins: Sequence[tuple[Point, Point]] = (),
    radius: float = 6.0,
) -> list[Label | None]:  # fmt: skip
    """Places a label beside each point.

    Args:
        points: The points' centres.
        sizes: Width and height of each label.
        bounds: What all labels stay in.
        joins: Lines that no label covers. Default: there are none.
        radius: Of a point's mark, which no label covers.

    Returns:
        A place for each label, in the points' order; None where there is no room.
    """
    marks = [Box(x - radius, y - radius, x + radius, y + radius) for x, y in points]
    placed: list[Box] = []
    lines = list(joins)
    found: dict[int, Label | None] = {}
    for index in sorted(range(len(points)), key=lambda i: (-_crowd(points[i], points), points[i], i)):
        label = _free(points[index], sizes[index], bounds, marks, placed, lines, radius)
        found[index] = label
        if label is not None:
            placed.append(label.box)
            if label.line is not None:
                lines.append((points[index], label.line))
    return [found[index] for index in range(len(points))]


def together(points: Sequence[Point], near: float) -> list[list[int]]:
    """Returns the indices of points in groups: those that are so near to the first one of a group share a label."""
    groups: list[list[int]] = []
    for index, point in enumerate(points):
        for group in groups:
            if math.dist(points[group[0]], point) <= near:
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def ranges(numbers: Sequence[int]) -> str:
    """Writes rising numbers, runs of three and more as ranges: 1–4, 7, 8."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _crowd(point: Point, points: Sequence[Point]) -> int:
    """Returns how many points are near: those in a crowd have less choice, and come first."""
    return sum(math.dist(point, other) < 60 for other in points)


def _free(
    point: Point, size: Point, bounds: Box, marks: Sequence[Box], placed: Sequence[Box],
    lines: Sequence[tuple[Point, Point]], radius: float,
) -> Label | None:  # fmt: skip
    for away in _RADII:
        for turn in _TURNS:
            box = _beside(point, size, radius + 1 + away, turn * 2 * math.pi / _PARTS)
            if not box.inside(bounds) or any(map(box.overlaps, marks)):
                continue
            if any(box.overlaps(other, GAP) for other in placed) or any(box.crosses(*line) for line in lines):
                continue
            end = box.nearest(point)
            if math.dist(point, end) <= radius + LEADER:
                return Label(box)
            if not any(other.crosses(point, end) for other in placed):
                return Label(box, end)
    return None


def _beside(point: Point, size: Point, away: float, angle: float) -> Box:
    """Returns a box whose edge is so far from a point, in a direction."""
    across, down = math.cos(angle), math.sin(angle)
    x = point[0] + across * (away + size[0] / 2)
    y = point[1] + down * (away + size[1] / 2)
    return Box(x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2)


def spread(centres: Sequence[float], widths: Sequence[float], low: float, high: float, gap: float = 6.0) -> list[int]:
    """Chooses marks of an axis whose texts do not overlap.

    Args:
        centres: Where texts stand, in rising order.
        widths: Their widths.
        low: Where the first one may begin.
        high: Where the last one may end.
        gap: Least distance of two texts.

    Returns:
        Indices of every k-th text, for the least k with which all have room.
    """
    for every in range(1, len(centres) + 1):
        kept = range(0, len(centres), every)
        edges = [(centres[i] - widths[i] / 2, centres[i] + widths[i] / 2) for i in kept]
        apart = all(right + gap <= left for (_, right), (left, _) in itertools.pairwise(edges))
        if apart and edges[0][0] >= low and edges[-1][1] <= high:
            return list(kept)
    return []
