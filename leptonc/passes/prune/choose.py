"""Chooses what to cut so that the output changes least: reconstruction errors, measured divergences, one price."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leptonc.errors import InputError
from leptonc.ir.groups import Block, Groups
from leptonc.ir.structure import Linear
from leptonc.passes.prune.allocate import allocate
from leptonc.passes.prune.obs import DAMPING, Removal, curve, least_squares
from leptonc.passes.prune.plan import BLOCK, Cut, removed_weights, spell

MOST = 0.75  # largest part of an MLP's channels that may go; beyond it the error does not tell what is lost
REFERENCE = 0.25  # part of an MLP's channels that is cut where divergence is measured
WHOLE = "#block"
Weight = NDArray[np.float32]


@dataclass(frozen=True)
class Option:
    """One way to cut a block.

    Attributes:
        cuts: The cuts.
        weights: Number of weights that they remove.
        cost: Mean square error of the block's output when the units that stay are fitted anew.
        inputs: Inputs that the consuming layer loses, int64 [removed].
    """

    cuts: tuple[Cut, ...]
    weights: int
    cost: float
    inputs: NDArray[np.int64]


def options(block: Block, weight: Weight, moments: NDArray[np.float32], *, multiple: int = 16) -> list[Option]:
    """Returns ways to cut a block, the smallest first and the whole block last. A block needs a single consuming layer.

    Of an MLP the channels go first that the others replace best by least squares, a few at a time. Of an attention
    whole groups go, and as many query heads in each group that stays.

    Args:
        block: The block.
        weight: Weight of the consuming layer, [out, in].
        moments: Second moments of its inputs, [in, in].
        multiple: Number of channels that go together. Default: 16.
    """
    if len(block.consumers) != 1:
        return []
    if block.kind == "mlp":
        ways = list(_channels(block, weight, moments, multiple))
    else:
        ways = list(_heads(block, weight, moments))
    if block.add is not None:
        whole = float(np.vdot(weight @ moments, weight))
        ways.append(Option((Cut(block.name, BLOCK),), block.weights(), whole, np.arange(weight.shape[1])))
    return ways


def columns_of(block: Block, space: str, linear: Linear) -> NDArray[np.int64]:
    """Returns the inputs of a consuming layer that belong to each unit of a space, int64 [units, inputs of one]."""
    axis = 1 if linear.transposed else 0
    spans = [span for span in block.spread.spans[linear.weight] if span.axis == axis]
    count = block.spread.counts[space]
    own = sorted((span for span in spans if span.space == space), key=lambda span: span.start)
    units = np.arange(count)[:, None]
    return np.concatenate([span.start + units * span.width + np.arange(span.width) for span in own], 1)


def _channels(block: Block, weight: Weight, moments: NDArray[np.float32], multiple: int) -> Iterator[Option]:
    units = columns_of(block, "channels", block.consumers[0])
    step = multiple
    while step > 1 and (len(units) < 8 * step or len(units) % step):
        step //= 2
    removal = curve(weight, moments, units, step=step, most=MOST)
    weights = block.cost("channels")
    for count, cost in zip(removal.counts[1:], removal.costs[1:], strict=True):
        gone = np.sort(removal.order[:count])
        cut = Cut(block.name, "channels", spell(int(unit) for unit in gone))
        yield Option((cut,), int(count) * weights, float(cost), units[gone].reshape(-1))


def _heads(block: Block, weight: Weight, moments: NDArray[np.float32]) -> Iterator[Option]:
    heads, per_group = columns_of(block, "heads", block.consumers[0]), block.heads_per_group
    removal = Removal(weight, moments)

    def cost(gone: list[int]) -> float:
        return removal.cost(heads[np.sort(gone)].reshape(-1)) if gone else 0.0

    def grow(gone: list[int], candidates: list[list[int]]) -> list[int]:
        """Adds the candidate with the least cost."""
        return gone + min(candidates, key=lambda more: cost(gone + more))

    groups = [list(range(g * per_group, (g + 1) * per_group)) for g in range(block.units)]
    base: list[int] = []
    for dropped in range(block.units):
        if dropped:
            base = grow(base, [group for group in groups if group[0] not in base])
        gone = list(base)
        staying = [group for group in groups if group[0] not in base]
        for fewer in range(per_group):
            if fewer:
                for group in staying:
                    gone = grow(gone, [[head] for head in group if head not in gone])
            if gone:
                yield _option(block, base, gone, cost(gone), heads)


def _option(block: Block, base: list[int], gone: list[int], cost: float, heads: NDArray[np.int64]) -> Option:
    per_group = block.heads_per_group
    cuts = []
    if base:
        cuts.append(Cut(block.name, "groups", spell({head // per_group for head in base})))
    single = sorted(set(gone) - set(base))
    if single:
        cuts.append(Cut(block.name, "heads", spell(single)))
    masks = {space: np.ones(count, np.bool_) for space, count in block.spread.counts.items()}
    masks["heads"][gone] = False
    masks["groups"][[head // per_group for head in base]] = False
    return Option(tuple(cuts), removed_weights(block, masks), cost, heads[np.sort(gone)].reshape(-1))


def reference(block: Block, ways: list[Option]) -> Option:
    """Returns the way to cut a block for which its divergence is measured."""
    target = REFERENCE * block.weights() if block.kind == "mlp" else block.weights() / max(2, block.units)
    return min((way for way in ways if way.cuts[0].space != BLOCK), key=lambda way: abs(way.weights - target))


def reconstructed(
    weight: Weight, moments: NDArray[np.float32], gone: NDArray[np.int64], *, ridge: float = DAMPING
) -> Weight:  # fmt: skip
    """Returns a weight [out, in] with zeros for the inputs in `gone`; the others are fitted to make up for these."""
    keep = np.delete(np.arange(weight.shape[1]), gone)
    fitted = np.zeros_like(weight)
    if len(keep):
        cross = weight @ moments[:, keep]
        fitted[:, keep] = least_squares(weight[:, keep], moments[np.ix_(keep, keep)], cross, ridge=ridge)
    return fitted


def errors_of(
    weight: Weight, fitted: Weight, moments: NDArray[np.float32], gone: NDArray[np.int64]
) -> dict[str, float]:  # fmt: skip
    """Returns the errors of a layer's outputs without some inputs, as parts of the outputs' energy.

    "before" is the error of the bare cut, "after" that of the fitted weight.
    """
    bare = np.array(weight)
    bare[:, gone] = 0
    whole = max(float(np.vdot(weight @ moments, weight)), float(np.finfo(np.float32).tiny))
    before, after = (float(np.vdot((weight - w) @ moments, weight - w)) / whole for w in (bare, fitted))
    return {"before": round(before, 6), "after": round(after, 6)}


def choose(
    groups: Groups, ways: Mapping[str, list[Option]], divergences: Mapping[str, float], share: float
) -> tuple[tuple[Cut, ...], float]:
    """Cuts a share of all layers' weights where the model's output changes least.

    A block's divergence, which was measured at its `reference`, scales the costs of its options. Dropping a whole block
    has the cost that was measured. Costs of several blocks add up. The attention and the MLP whose loss would move the
    output most never go whole.

    Args:
        groups: What can be cut.
        ways: Options of each block, by the block's name.
        divergences: Divergence at each block's reference, by the block's name; without the block, by its name and
            `WHOLE`. A block without the latter does not go whole.
        share: Part of the weights of all layers that goes, above 0 and below 1.

    Returns:
        The cuts in graph order, and the divergence that is expected of them.

    Raises:
        InputError: So much cannot go.
    """
    names = [block.name for block in groups.blocks if ways.get(block.name)]
    tables, total, spared = [], 0, _spared(groups, divergences)
    for name in names:
        table = np.array([(0.0, 0.0), *((way.weights, way.cost) for way in ways[name])])
        at = reference(groups.block(name), ways[name])
        table[1:, 1] *= max(divergences[name], 0.0) / at.cost if at.cost > 0 else 0.0
        if ways[name][-1].cuts[0].space == BLOCK:
            if name in spared or name + WHOLE not in divergences:
                table = table[:-1]
            else:
                table[-1, 1] = max(divergences[name + WHOLE], 0.0)
        tables.append(table)
        total += int(table[:, 0].max())
    if share * groups.total > total:
        raise InputError(
            f"expected a share of at most {100 * total / max(1, groups.total):.0f} %, found {100 * share:g} %",
            hint="more than that leaves nothing to run",
        )
    chosen = allocate(tables, share * groups.total)
    picked = [ways[name][i - 1] for name, i in zip(names, chosen, strict=True) if i]
    expected = float(sum(table[i, 1] for table, i in zip(tables, chosen, strict=True)))
    return tuple(cut for way in picked for cut in way.cuts), expected


def _spared(groups: Groups, divergences: Mapping[str, float]) -> set[str]:
    """Returns the block of each kind whose loss would move the output most."""
    spared = set()
    for kind in ("attention", "mlp"):
        own = [block.name for block in groups.blocks if block.kind == kind and block.name + WHOLE in divergences]
        spared |= {max(own, key=lambda name: divergences[name + WHOLE])} if own else set()
    return spared
