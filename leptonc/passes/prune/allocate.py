"""How much to remove where, so that a share of the whole is gone at the least cost."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Choices = NDArray[np.float64]  # [choices, 2]: what a choice removes, and what it costs; the first is nothing, for 0


def allocate(blocks: Sequence[Choices], target: float) -> list[int]:
    """Chooses one way to cut each block: a Lagrange multiplier prices what is removed, the same everywhere.

    Args:
        blocks: Choices of each block, in any order but for the first, which removes nothing.
        target: What all together have to remove at least.

    Returns:
        The index of each block's choice. Where the price's next step would remove more than is asked for, choices are
        taken back, those that save most a unit first, as long as the target is met. All choices that remove most, if
        the target is beyond them.
    """
    hulls = [_hull(block) for block in blocks]
    steps = sorted(
        (
            (block[b, 1] - block[a, 1]) / (block[b, 0] - block[a, 0]), at, b
        )
        for at, (block, hull) in enumerate(zip(blocks, hulls, strict=True))
        for a, b in itertools.pairwise(hull)
    )  # fmt: skip
    chosen, removed = [0] * len(blocks), 0.0
    taken: list[tuple[int, int, int]] = []
    for _, at, choice in steps:
        if removed >= target:
            break
        removed += blocks[at][choice, 0] - blocks[at][chosen[at], 0]
        taken.append((at, chosen[at], choice))
        chosen[at] = choice
    for at, before, choice in reversed(taken):
        less = blocks[at][choice, 0] - blocks[at][before, 0]
        if chosen[at] == choice and removed - less >= target:
            chosen[at] = before
            removed -= less
    return chosen


def _hull(block: Choices) -> list[int]:
    """Indices of the lower convex hull from the choice that removes nothing: each step costs more than that before."""
    order = [0, *(int(i) for i in np.lexsort((block[:, 1], block[:, 0])) if block[i, 0] > block[0, 0])]
    hull: list[int] = []
    for i in order:
        if hull and block[i, 0] == block[hull[-1], 0]:
            continue
        while len(hull) > 1 and _slope(block, hull[-2], hull[-1]) >= _slope(block, hull[-2], i):
            hull.pop()
        hull.append(i)
    return hull


def _slope(block: Choices, a: int, b: int) -> float:
    return float((block[b, 1] - block[a, 1]) / (block[b, 0] - block[a, 0]))
