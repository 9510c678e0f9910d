"""Distributes cuts over blocks, so that a share of the whole goes at the least cost."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Choices = NDArray[np.float64]  # [choices, 2]: weights that a choice removes, and its cost; the first is (0, 0)


def allocate(blocks: Sequence[Choices], target: float) -> list[int]:
    """Chooses one way to cut each block. A Lagrange multiplier is the price of a removed weight in all blocks.

    Args:
        blocks: Choices of each block. The first one removes nothing; the others have any order.
        target: Weights that all choices together have to remove at least.

    Returns:
        The index of each block's choice. Where the last step removes more than the target, steps are taken back, the
        most expensive first, as long as the target is met. Where the target cannot be met, each block has the choice
        that removes most.
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
    """Returns the indices of the lower convex hull, on which each step has a higher price than the one before."""
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
