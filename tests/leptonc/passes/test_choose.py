"""Ways to cut blocks, and the choice among them."""

from __future__ import annotations

import numpy as np
import pytest

from leptonc.errors import InputError
from leptonc.ir.groups import Block, groups
from leptonc.ir.structure import weight_of
from leptonc.passes.prune.choose import WHOLE, Option, choose, options, reconstructed, reference
from leptonc.passes.prune.plan import BLOCK, by_block, removed_weights
from tests.leptonc import models

NAMES = ("tiny-llama", "tiny-gemma3", "tiny-gpt2")


def _ways(block: Block, seed: int = 0) -> tuple[list[Option], np.ndarray, np.ndarray]:
    linear = block.consumers[0]
    x = np.random.default_rng(seed).standard_normal((600, linear.shape[1]))
    x[:, ::2] += x[:, 1::2]
    return options(block, weight_of(linear), (x.T @ x / len(x)).astype(np.float32), multiple=8), weight_of(linear), x


@pytest.mark.parametrize("name", NAMES)
def test_options_remove_what_they_say_and_cost_what_least_squares_leaves(name: str) -> None:
    found = groups(models.captured(name).model)
    for block in found.blocks[:2]:
        ways, weight, x = _ways(block)
        assert ways[-1].cuts[0].space == BLOCK
        assert ways[-1].weights == block.weights()
        seen: set[int] = set()
        for each in ways[:-1]:
            stay = by_block(found, each.cuts)[block.name]
            assert stay is not None
            assert each.weights == removed_weights(block, stay)
            space = "channels" if block.kind == "mlp" else "heads"
            mask = np.repeat(stay[space], weight.shape[1] // len(stay[space]))
            assert each.inputs.tolist() == np.flatnonzero(~mask).tolist() or block.kind == "mlp"
            assert sorted(each.inputs.tolist()) == np.flatnonzero(~mask).tolist()
            y = x @ weight.T
            left = y - x[:, mask] @ np.linalg.lstsq(x[:, mask], y, rcond=None)[0]
            assert each.cost == pytest.approx(float(np.square(left).sum() / len(x)), rel=0.02)
            seen.add(each.weights)
        assert len(seen) >= 2


def test_channels_go_in_steps_that_leave_a_multiple() -> None:
    block = next(b for b in groups(models.captured("tiny-llama").model).blocks if b.kind == "mlp")
    ways, _, _ = _ways(block)
    counts = [len(each.inputs) for each in ways[:-1]]
    assert all((block.units - count) % 8 == 0 for count in counts)
    assert counts == sorted(counts)
    assert max(counts) <= 0.75 * block.units
    assert np.all(np.diff([each.cost for each in ways[:-1]]) >= 0)


def test_reconstructed_weight_is_least_squares_over_what_stays() -> None:
    block = next(b for b in groups(models.captured("tiny-llama").model).blocks if b.kind == "mlp")
    ways, weight, x = _ways(block)
    at = reference(block, ways)
    assert len(at.inputs) == pytest.approx(block.units / 4, abs=8)
    found = reconstructed(weight, (x.T @ x / len(x)).astype(np.float32), at.inputs)
    keep = np.delete(np.arange(weight.shape[1]), at.inputs)
    wanted = np.linalg.lstsq(x[:, keep], x @ weight.T, rcond=None)[0].T
    np.testing.assert_allclose(found[:, keep], wanted, atol=5e-3 * np.abs(wanted).max())
    assert not found[:, at.inputs].any()


def test_choice_takes_where_the_output_changes_least_until_the_share_is_gone() -> None:
    found = groups(models.captured("tiny-llama").model)
    ways = {block.name: _ways(block)[0] for block in found.blocks}
    measured = dict.fromkeys(ways, 1.0) | {name + WHOLE: 4.0 for name in ways}
    last = found.blocks[-1]
    measured[last.name] = measured[last.name + WHOLE] = 1e-4
    cuts, expected = choose(found, ways, measured, 0.1)
    assert {cut.block for cut in cuts} == {last.name}
    assert expected <= 1e-4
    before = 0
    for share in (0.05, 0.2, 0.4, 0.6):
        cuts, _ = choose(found, ways, measured, share)
        gone = sum(removed_weights(found.block(name), stay) for name, stay in by_block(found, cuts).items())
        assert gone >= share * found.total
        assert gone >= before
        before = gone


def test_a_share_that_would_leave_nothing_is_refused() -> None:
    found = groups(models.captured("tiny-llama").model)
    ways = {block.name: _ways(block)[0] for block in found.blocks}
    measured = dict.fromkeys(ways, 1.0) | {name + WHOLE: 4.0 for name in ways}
    with pytest.raises(InputError, match="share of at most"):
        choose(found, ways, measured, 0.9999)
