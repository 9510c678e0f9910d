"""Random cuts of sample models, and models in which what is cut is zero: what the tests of pruning share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.ir.groups import Block, Groups
from leptonc.ir.spread import indices_of
from leptonc.passes.prune.plan import BLOCK, Cut, by_block, spell


def random_cuts(found: Groups, random: np.random.Generator, *, blocks: bool = True) -> tuple[Cut, ...]:
    """Returns cuts of about half of the blocks: channels, groups, heads of every group, and whole blocks."""
    cuts: list[Cut] = []
    for block in found.blocks:
        kind = int(random.integers(0, 4))
        first = next(b for b in found.blocks if b.kind == block.kind) is block
        if kind == 0:
            continue
        if kind == 1 and blocks and not first:  # one of each kind stays
            cuts.append(Cut(block.name, BLOCK))
        elif block.kind == "mlp":
            some = random.choice(block.units, int(random.integers(1, block.units)), replace=False)
            cuts.append(Cut(block.name, "channels", spell(int(u) for u in some)))
        elif kind == 2 and block.units > 1:
            some = random.choice(block.units, int(random.integers(1, block.units)), replace=False)
            cuts.append(Cut(block.name, "groups", spell(int(u) for u in some)))
        elif block.heads_per_group > 1:
            each = block.heads_per_group
            left = int(random.integers(1, each))
            some = [g * each + int(h) for g in range(block.units) for h in random.choice(each, left, replace=False)]
            cuts.append(Cut(block.name, "heads", spell(some)))
    return tuple(cuts)


def zeroed(found: Groups, cuts: tuple[Cut, ...]) -> Iterator[tuple[ir.Value, NDArray[np.float32]]]:
    """Yields each weight that the cuts touch with zeros where they cut; scales of norms are not among them."""
    for name, masks in by_block(found, cuts).items():
        block = found.block(name)
        yield from _whole(block) if masks is None else _part(block, masks)


def _whole(block: Block) -> Iterator[tuple[ir.Value, NDArray[np.float32]]]:
    for linear in block.consumers:
        for value in (linear.weight, linear.bias):
            if value is not None:
                yield value, np.zeros_like(value.const_value.numpy())  # type: ignore[union-attr]


def _part(block: Block, masks: Mapping[str, NDArray[np.bool_]]) -> Iterator[tuple[ir.Value, NDArray[np.float32]]]:
    scales = {scale for node in block.spread.norms for scale in node.inputs[1:]}
    for value, spans in block.spread.initializers().items():
        if value not in scales:
            array = np.array(value.const_value.numpy())  # type: ignore[union-attr]
            for span in spans:
                at = [slice(None)] * array.ndim
                at[span.axis] = indices_of(span, np.flatnonzero(~masks[span.space]))  # type: ignore[call-overload]
                array[tuple(at)] = 0
            yield value, array


def plan_of(cuts: tuple[Cut, ...]) -> dict[str, object]:
    """Returns cuts as a plan's file has them."""
    plan: dict[str, object] = {}
    for cut in cuts:
        plan[cut.block] = BLOCK if cut.space == BLOCK else {cut.space: cut.units}
    return plan
