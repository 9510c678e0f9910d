"""Cutting zeros changes nothing, in any family; what is cut of weights that are not zero is what was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from leptonc.errors import InputError
from leptonc.ir.groups import groups
from leptonc.passes.base import Manager
from leptonc.passes.prune.importance import cheapest, scores, step_of
from leptonc.passes.prune.plan import BLOCK, Cut, by_block, cuts_of, removed_weights, spell
from leptonc.passes.prune.remove import Prune, PruneConfig
from sample_models import tiny_names
from tests.leptonc import models, pruned


def output(model: ir.Model, folder: Path) -> Any:
    """Logits over the cache in chunks, or an encoder's output."""
    graph = models.Graph(model, folder)
    if any(name.startswith("past_length") for name in graph.inputs):
        return graph.logits(models.token_ids(sum(models.CHUNKS)), models.CHUNKS, 64)
    return graph(**models.padded(graph.inputs))[graph.outputs[0]]


def lazily(value: ir.Value, array: Any) -> ir.LazyTensor:
    return ir.LazyTensor(
        lambda: ir.tensor(array), dtype=ir.DataType.FLOAT, shape=value.shape, name=value.name, cache=False
    )


@pytest.mark.parametrize("name", models.others_apart(tiny_names(), (*models.FEW, "tiny-qwen3", "tiny-olmo2")))
def test_cutting_zeros_changes_nothing(name: str, tmp_path: Path) -> None:
    """Three random sets of cuts; the tolerance is 1e-5 of the largest output."""
    captured = models.captured(name, 64).model
    for seed in range(3):
        model = captured.clone()
        found, random = groups(model), np.random.default_rng(seed)
        cuts = pruned.random_cuts(found, random)
        before = found.total
        weights = sum(removed_weights(found.block(block), stay) for block, stay in by_block(found, cuts).items())
        for value, array in pruned.zeroed(found, cuts):
            value.const_value = lazily(value, array)
        wanted = output(model, tmp_path)
        Manager().run(model, [Prune(PruneConfig(cuts))])
        got = output(model, tmp_path)
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max(), (seed, cuts)
        left = groups(model).total
        assert before - left >= weights > 0  # norms before a block that goes are not counted with it


def test_what_is_left_of_weights(tmp_path: Path) -> None:
    model = models.captured("tiny-gpt2", 64).model
    name = "transformer.h.1.attn.c_attn.weight"
    whole = np.array(model.graph.initializers[name].const_value.numpy())  # type: ignore[union-attr]
    cuts = (Cut("transformer.h.1/attention", "groups", "1"), Cut("transformer.h.1/mlp", "channels", "0-9,255"))
    Manager().run(model, [Prune(PruneConfig(cuts))])
    stays = np.r_[0:16, 32:64, 64:80, 96:128, 128:144, 160:192]
    np.testing.assert_array_equal(model.graph.initializers[name].const_value.numpy(), whole[:, stays])  # type: ignore[union-attr]
    assert model.graph.initializers["transformer.h.1.mlp.c_fc.bias"].const_value.shape == [245]  # type: ignore[union-attr]
    shapes = {v.name: list(v.shape) for v in model.graph.inputs if v.name.endswith(".key")}  # type: ignore[arg-type, union-attr]
    assert [shapes[f"past_key_values.{i}.key"][1] for i in range(3)] == [4, 3, 4]


def test_a_layer_that_goes_takes_its_cache_along() -> None:
    model = models.captured("tiny-gemma3", 64).model
    windows = [n.attributes["window"].value for n in model.graph if n.op_type == "CachedAttention"]
    Manager().run(model, [Prune(PruneConfig((Cut("model.layers.1/attention", BLOCK),)))])
    assert [n.attributes["window"].value for n in model.graph if n.op_type == "CachedAttention"] == [
        w for i, w in enumerate(windows) if i != 1
    ]
    names = [v.name for v in (*model.graph.inputs, *model.graph.outputs) if ".key" in str(v.name)]
    assert names == [f"past_key_values.{i}.key" for i in range(3)] + [f"present.{i}.key" for i in range(3)]
    assert not any("layers.1.self_attn" in n for n in model.graph.initializers)


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        ((Cut("model.layers.0/mlp", "channels", "0-159"),), "expected units to stay in model.layers.0/mlp"),
        ((Cut("model.layers.0/mlp", "channels", "160"),), "channels of model.layers.0/mlp below 160, found 160"),
        ((Cut("model.layers.0/mlp", "groups", "0"),), "expected of model.layers.0/mlp channels, found 'groups'"),
        ((Cut("model.layers.7/mlp", BLOCK),), "expected a block of the model, found 'model.layers.7/mlp'"),
        ((Cut("model.layers.0/attention", "groups", "0-1"),), "found that all would go"),
        ((Cut("model.layers.0/attention", "heads", "0"),), "found 1 and 2"),
        ((Cut("model.layers.0/attention", "heads", "0,1"),), "found 0 and 2"),
        ((Cut("model.layers.0/mlp", "channels", "1-"),), "expected units such as 0-3,7, found '1-'"),
        ((Cut("model.layers.0/mlp", "channels", "0-99999999999"),), "fewer than 16,777,216 units"),
        (tuple(Cut(f"model.layers.{i}/mlp", BLOCK) for i in range(3)), "expected a block with an mlp to stay"),
    ],
)
def test_cuts_that_cannot_be_made(cuts: tuple[Cut, ...], message: str) -> None:
    found = groups(models.captured("tiny-llama", 64).model)
    with pytest.raises(InputError) as caught:
        by_block(found, cuts)
    assert message in caught.value.message


def test_plans_are_read_and_spelled() -> None:
    assert spell([7, 0, 1, 2]) == "0-2,7"
    assert Cut("x", "channels", "0-2,7,9-9").indices == [0, 1, 2, 7, 9]
    cuts = (Cut("a/mlp", "channels", "0-2"), Cut("a/attention", BLOCK))
    assert cuts_of(pruned.plan_of(cuts)) == cuts
    for bad in ({"a/mlp": 3}, {"a/mlp": {}}, {"a/mlp": {"channels": [0]}}, {"a/mlp": "all"}):
        with pytest.raises(InputError, match="expected of a/mlp"):
            cuts_of(bad)


def test_magnitude_is_the_sum_of_squares() -> None:
    model = models.captured("tiny-llama", 64).model
    found, weights = groups(model), model.graph.initializers

    def squares(name: str) -> Any:
        return np.square(weights[f"model.layers.2.{name}.weight"].const_value.numpy().astype(np.float64))  # type: ignore[union-attr]

    mlp = squares("mlp.gate_proj").sum(1) + squares("mlp.up_proj").sum(1) + squares("mlp.down_proj").sum(0)
    np.testing.assert_allclose(scores(found.block("model.layers.2/mlp"), "magnitude", {}), mlp, rtol=1e-6)
    heads = (squares("self_attn.q_proj").sum(1) + squares("self_attn.o_proj").sum(0)).reshape(2, -1).sum(1)
    groups_ = (squares("self_attn.k_proj") + squares("self_attn.v_proj")).sum(1).reshape(2, -1).sum(1)
    found_ = scores(found.block("model.layers.2/attention"), "magnitude", {})
    np.testing.assert_allclose(found_, heads + groups_, rtol=1e-6)


@pytest.mark.parametrize("uniform", [False, True])
def test_the_cheapest_go_until_the_share_is_gone(uniform: bool) -> None:
    found = groups(models.captured("tiny-llama", 64).model)
    importance = {block.name: np.arange(block.units, dtype=np.float64) for block in found.blocks if block.kind == "mlp"}
    cuts = cheapest(found, importance, 0.3, multiple=32, uniform=uniform)
    stay = by_block(found, cuts)
    gone = sum(removed_weights(found.block(name), masks) for name, masks in stay.items())
    assert abs(gone / found.total - 0.3) <= 0.5 * 16 * 192 / found.total
    assert step_of(found.blocks[1], 32) == 16  # 160 channels: steps of 32 would be few
    for name, masks in stay.items():
        assert masks is not None
        left = int(masks["channels"].sum())
        assert left % 16 == 0
        assert not masks["channels"][: 160 - left].any()  # the least important
        assert name.endswith("/mlp")


def test_a_share_that_would_empty_a_block() -> None:
    found = groups(models.captured("tiny-llama", 64).model)
    importance = {block.name: scores(block, "magnitude", {}) for block in found.blocks}
    with pytest.raises(InputError, match="expected a share that leaves something of every block, found 95 %"):
        cheapest(found, importance, 0.95)
