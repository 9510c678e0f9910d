"""A plan: the units of blocks that are cut, as text that a manifest and a file can hold."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonc.errors import InputError
from leptonc.ir.groups import Block, Groups

BLOCK = "block"
_RANGES = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Cut:
    """Units that are cut out of one block.

    Attributes:
        block: Name of the block, "model.layers.3/mlp".
        space: "channels" of an MLP; "groups" (key/value heads with their query heads) or "heads" (query heads) of an
            attention; "block" for all of it.
        units: Units, counted from 0, as ranges: "0-3,7". It is "" for a whole block.
    """

    block: str
    space: str
    units: str = ""

    @property
    def indices(self) -> list[int]:
        """The units in order."""
        if not self.units:
            return []
        if not _RANGES.fullmatch(self.units):
            raise InputError(
                f"{self.block}: expected units such as 0-3,7, found {self.units!r}", hint="the first unit is 0"
            )
        ends = [tuple(int(n) for n in part.split("-")) for part in self.units.split(",")]
        if any(pair[-1] - pair[0] >= 2**24 for pair in ends):
            raise InputError(f"{self.block}: expected fewer than 16,777,216 units, found {self.units}")
        return sorted({unit for pair in ends for unit in range(pair[0], pair[-1] + 1)})


def spell(units: Iterable[int]) -> str:
    """Returns units as ranges: [0, 1, 2, 7] gives "0-2,7"."""
    runs: list[list[int]] = []
    for unit in sorted(units):
        if runs and unit == runs[-1][1] + 1:
            runs[-1][1] = unit
        else:
            runs.append([unit, unit])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def cuts_of(plan: Mapping[str, Any]) -> tuple[Cut, ...]:
    """Reads a plan from what a JSON file holds: {"model.layers.3/mlp": {"channels": "0-3,7"}, "…/attention": "block"}.

    Raises:
        InputError: The plan is of another form.
    """
    cuts: list[Cut] = []
    for name, cut in plan.items():
        if cut == BLOCK:
            cuts.append(Cut(name, BLOCK))
        elif isinstance(cut, dict) and cut and all(isinstance(u, str) and u for u in cut.values()):
            cuts += [Cut(name, space, units) for space, units in cut.items()]
        else:
            raise InputError(
                f'expected of {name} "block", or units such as {{"channels": "0-3,7"}}, found {cut!r}',
                hint="see docs/guides/prune.md",
            )
    return tuple(cuts)


def kept(block: Block, cuts: Sequence[Cut]) -> dict[str, NDArray[np.bool_]] | None:
    """Returns which units of each space stay after the cuts of one block; None where the whole block goes.

    Raises:
        InputError: The block has no such units, none would stay, or groups would have different numbers of heads.
    """
    counts = block.spread.counts
    stay = {space: np.ones(count, np.bool_) for space, count in counts.items()}
    if any(cut.space == BLOCK for cut in cuts):
        if block.add is None:
            raise InputError(f"expected a block that adds to the residual stream, found that {block.name} does not")
        return None
    for cut in cuts:
        if cut.space not in counts:
            raise InputError(
                f"expected of {block.name} {' or '.join(counts)}, found {cut.space!r}",
                hint="an MLP has channels, an attention groups and heads; block is all of it",
            )
        indices = cut.indices
        if indices and indices[-1] >= counts[cut.space]:
            raise InputError(
                f"expected {cut.space} of {block.name} below {counts[cut.space]}, found {indices[-1]}",
                hint="the first unit is 0",
            )
        stay[cut.space][indices] = False
    if block.kind == "attention":
        heads = stay["heads"].reshape(block.units, block.heads_per_group)
        heads &= stay["groups"][:, None]
        left = {int(n) for n in heads[stay["groups"]].sum(1)}
        if len(left) > 1 or left == {0}:
            raise InputError(
                f"expected as many query heads in each group of {block.name} that stays, found "
                f"{' and '.join(map(str, sorted(left)))}",
                hint="cut the same number of heads in each group, or whole groups",
            )
    if not all(mask.any() for mask in stay.values()):
        raise InputError(
            f"expected units to stay in {block.name}, found that all would go",
            hint="a smaller share, or the plan's word for the whole: block",
        )
    return stay


def by_block(groups: Groups, cuts: Sequence[Cut]) -> dict[str, dict[str, NDArray[np.bool_]] | None]:
    """Returns the units that stay in each block that is cut; see `kept`.

    Raises:
        InputError: No such block or units, or nothing of the model would stay.
    """
    named: dict[str, list[Cut]] = {}
    for cut in cuts:
        named.setdefault(cut.block, []).append(cut)
    stay = {name: kept(groups.block(name), own) for name, own in named.items()}
    for kind in ("attention", "mlp"):
        if all(name in stay and stay[name] is None for name in (b.name for b in groups.blocks if b.kind == kind)):
            raise InputError(f"expected a block with an {kind} to stay, found that all would go", hint="cut fewer")
    return stay


def removed_weights(block: Block, stay: Mapping[str, NDArray[np.bool_]] | None) -> int:
    """Returns the number of weights that go with the units that are cut from a block."""
    if stay is None:
        return block.weights()
    return sum(block.cost(space) * int((~mask).sum()) for space, mask in stay.items())
