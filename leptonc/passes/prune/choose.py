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

MOST = 0.75  # of an MLP's channels may go; beyond that its error is no measure of what is lost
REFERENCE = 0.25  # of an MLP's channels are cut where divergence is measured
WHOLE = "#block"
Weight = NDArray[np.float32]


@dataclass(frozen=True)
class Option:
    """One way to cut a block.

    Attributes:
        cuts: The cuts.
        weights: How many weights they remove.
        cost: Mean square error of the block's output when what stays makes up for what goes; later, a divergence.
        inputs: What the consuming layer loses, int64 [removed].
    """

    cuts: tuple[Cut, ...]
    weights: int
    cost: float
    inputs: NDArray[np.int64]


def options(block: Block, weight: Weight, moments: NDArray[np.float32], *, multiple: int = 16) -> list[Option]:
    """Returns ways to cut a block, the smallest first and the whole block last; none where it is not one layer's sum.

    Channels go where least squares over the others replaces them best, a few at a time; of an attention, whole groups,
    and as many query heads of each group that stays.

    Args:
        block: The block.
        weight: Of the layer that sums over the units, [out, in].
        moments: Second moments of what it reads, [in, in].
        multiple: Channels that go together.
    """
    if len(block.consumers) != 1:
        return []
    if block.kind == "mlp":
        found = list(_channels(block, weight, moments, multiple))
    else:
        found = list(_heads(block, weight, moments))
    if block.add is not None:
        whole = float(np.vdot(weight @ moments, weight))
        found.append(Option((Cut(block.name, BLOCK),), block.weights(), whole, np.arange(weight.shape[1])))
    return found


def columns_of(block: Block, space: str, linear: Linear) -> NDArray[np.int64]:
    """Returns which inputs of a consuming layer each unit of a space has, int64 [units, inputs of one]."""
    axis = 1 if linear.transposed else 0
    spans = [each for each in block.spread.spans[linear.weight] if each.axis == axis]
    count = block.spread.counts[space]
    own = sorted((each for each in spans if each.space == space), key=lambda each: each.start)
    units = np.arange(count)[:, None]
    return np.concatenate([each.start + units * each.width + np.arange(each.width) for each in own], 1)


def _channels(block: Block, weight: Weight, moments: NDArray[np.float32], multiple: int) -> Iterator[Option]:
    units = columns_of(block, "channels", block.consumers[0])
    step = multiple
    while step > 1 and (len(units) < 8 * step or len(units) % step):
        step //= 2
    found = curve(weight, moments, units, step=step, most=MOST)
    each = block.cost("channels")
    for count, cost in zip(found.counts[1:], found.costs[1:], strict=True):
        gone = np.sort(found.order[:count])
        cut = Cut(block.name, "channels", spell(int(unit) for unit in gone))
        yield Option((cut,), int(count) * each, float(cost), units[gone].reshape(-1))


def _heads(block: Block, weight: Weight, moments: NDArray[np.float32]) -> Iterator[Option]:
    heads, per_group = columns_of(block, "heads", block.consumers[0]), block.heads_per_group
    removal = Removal(weight, moments)

    def cost(gone: list[int]) -> float:
        return removal.cost(heads[np.sort(gone)].reshape(-1)) if gone else 0.0

    def grow(gone: list[int], candidates: list[list[int]]) -> list[int]:
        """Adds the candidate that costs least."""
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


def reference(block: Block, found: list[Option]) -> Option:
    """Returns the way to cut a block that its divergence is measured with."""
    target = REFERENCE * block.weights() if block.kind == "mlp" else block.weights() / max(2, block.units)
    return min((each for each in found if each.cuts[0].space != BLOCK), key=lambda each: abs(each.weights - target))


def reconstructed(
    weight: Weight, moments: NDArray[np.float32], gone: NDArray[np.int64], *, ridge: float = DAMPING
) -> Weight:  # fmt: skip
    """Returns a weight [out, in] without some inputs, zero there, others making up for them as moments say."""
    keep = np.delete(np.arange(weight.shape[1]), gone)
    found = np.zeros_like(weight)
    if len(keep):
        cross = weight @ moments[:, keep]
        found[:, keep] = least_squares(weight[:, keep], moments[np.ix_(keep, keep)], cross, ridge=ridge)
    return found


def errors_of(
    weight: Weight, fitted: Weight, moments: NDArray[np.float32], gone: NDArray[np.int64]
) -> dict[str, float]:  # fmt: skip
    """Returns the errors of a layer's outputs without some inputs, bare and fitted, as parts of the outputs."""
    bare = np.array(weight)
    bare[:, gone] = 0
    whole = max(float(np.vdot(weight @ moments, weight)), float(np.finfo(np.float32).tiny))
    before, after = (float(np.vdot((weight - w) @ moments, weight - w)) / whole for w in (bare, fitted))
    return {"before": round(before, 6), "after": round(after, 6)}


def choose(
    found: Groups, ways: Mapping[str, list[Option]], divergences: Mapping[str, float], share: float
) -> tuple[tuple[Cut, ...], float]:
    """Cuts a share of all layers' weights where the model's output changes least.

    The divergence that was measured where a block is cut at its `reference` sets what its errors cost, in proportion;
    dropping a whole block costs what was measured. Costs of several blocks are taken to add up. The attention and the
    MLP that are missed most never go whole.

    Args:
        found: What can be cut.
        ways: Options of each block, by its name.
        divergences: Measured at each block's reference, by its name, and without the block, by its name and `WHOLE`;
            one whose `WHOLE` is not among them does not go whole.
        share: Of the weights of all layers, above 0 and below 1.

    Returns:
        The cuts in graph order, and the divergence that they should make.

    Raises:
        InputError: So much cannot go.
    """
    names = [block.name for block in found.blocks if ways.get(block.name)]
    tables, total, spared = [], 0, _spared(found, divergences)
    for name in names:
        table = np.array([(0.0, 0.0), *((each.weights, each.cost) for each in ways[name])])
        at = reference(found.block(name), ways[name])
        table[1:, 1] *= max(divergences[name], 0.0) / at.cost if at.cost > 0 else 0.0
        if ways[name][-1].cuts[0].space == BLOCK:
            if name in spared or name + WHOLE not in divergences:
                table = table[:-1]
            else:
                table[-1, 1] = max(divergences[name + WHOLE], 0.0)
        tables.append(table)
        total += int(table[:, 0].max())
    if share * found.total > total:
        raise InputError(
            f"expected a share of at most {100 * total / max(1, found.total):.0f} %, found {100 * share:g} %",
            hint="more than that leaves nothing to run",
        )
    chosen = allocate(tables, share * found.total)
    picked = [ways[name][i - 1] for name, i in zip(names, chosen, strict=True) if i]
    expected = float(sum(table[i, 1] for table, i in zip(tables, chosen, strict=True)))
    return tuple(cut for each in picked for cut in each.cuts), expected


def _spared(found: Groups, divergences: Mapping[str, float]) -> set[str]:
    """The block of each kind that is missed most."""
    spared = set()
    for kind in ("attention", "mlp"):
        own = [block.name for block in found.blocks if block.kind == kind and block.name + WHOLE in divergences]
        spared |= {max(own, key=lambda name: divergences[name + WHOLE])} if own else set()
    return spared
