"""What goes together when a part is cut, in every family: followed through graphs."""

from __future__ import annotations

import functools
import math

import onnx_ir as ir
import pytest

from leptonc.errors import InputError
from leptonc.ir.groups import Groups, groups, weights_of
from sample_models import tiny_model, tiny_names
from tests.leptonc import models


@functools.lru_cache(maxsize=32)
def model_of(name: str) -> ir.Model:
    """Returns a sample's graph, which is only read."""
    return models.captured(name, 64).model


@functools.lru_cache(maxsize=32)
def found_in(name: str) -> Groups:
    return groups(model_of(name))


@pytest.mark.parametrize("name", tiny_names())
def test_every_family_is_understood_whole(name: str) -> None:
    """Every linear layer of every layer goes with a block, and the counts are those of the config."""
    found, config = found_in(name), tiny_model(name).config
    found.require()
    layers = config.get("num_hidden_layers", config.get("n_layer", config.get("n_layers")))
    heads = config.get("num_attention_heads", config.get("n_head", config.get("n_heads")))
    channels = config.get("intermediate_size", config.get("hidden_dim", 4 * config.get("n_embd", 0)))
    assert len(found.layers) == layers
    assert [block.kind for block in found.blocks] == ["attention", "mlp"] * layers
    assert {b.units for b in found.blocks if b.kind == "mlp"} == {channels}
    attention = [b for b in found.blocks if b.kind == "attention"]
    assert {b.spread.counts["heads"] for b in attention} == {heads}
    assert {b.units for b in attention} == {config.get("num_key_value_heads", heads)}
    assert all(block.add is not None for block in found.blocks)
    names = {weight for block in found.blocks for weight, _, _ in weights_of(block)}
    model = model_of(name)
    wide = {
        n for n, v in model.graph.initializers.items()
        if any(n.startswith(f"{layer}.") for layer in found.layers) and len(v.shape or ()) == 2
    }  # fmt: skip
    assert wide <= names  # every matrix
    norms = sum(math.prod(v.shape) for n, v in model.graph.initializers.items() if n not in names and "layer" in n)  # type: ignore[arg-type]
    assert found.total >= sum(block.weights() for block in found.blocks) >= found.total - norms - found.total // 50


def spelled(found: Groups, name: str) -> dict[str, list[tuple[int, int, int, int, str]]]:
    made: dict[str, list[tuple[int, int, int, int, str]]] = {}
    for weight, size, span in weights_of(found.block(name)):
        made.setdefault(weight.split(".", 3)[-1], []).append((span.axis, size, span.start, span.width, span.space))
    return made


def test_a_gated_mlp_and_grouped_queries() -> None:
    found = found_in("tiny-llama")
    assert spelled(found, "model.layers.1/mlp") == {
        "mlp.gate_proj.weight": [(0, 160, 0, 1, "channels")], "mlp.up_proj.weight": [(0, 160, 0, 1, "channels")],
        "mlp.down_proj.weight": [(1, 160, 0, 1, "channels")],
    }  # fmt: skip
    assert spelled(found, "model.layers.1/attention") == {
        "self_attn.q_proj.weight": [(0, 64, 0, 16, "heads")], "self_attn.k_proj.weight": [(0, 32, 0, 16, "groups")],
        "self_attn.v_proj.weight": [(0, 32, 0, 16, "groups")], "self_attn.o_proj.weight": [(1, 64, 0, 16, "heads")],
    }  # fmt: skip
    attention, mlp = found.block("model.layers.1/attention"), found.block("model.layers.1/mlp")
    assert (attention.heads_per_group, attention.cost("heads"), attention.cost("groups")) == (2, 2048, 2048)
    assert (mlp.cost("channels"), mlp.weights()) == (192, 160 * 192)
    assert found.total == 3 * (160 * 192 + 2 * 64 * 64 + 2 * 32 * 64 + 2 * 64)


def test_fused_weights_that_lie_the_other_way() -> None:
    """GPT-2: queries, keys and values are columns of one matrix, with one bias."""
    found = found_in("tiny-gpt2")
    spans = [(1, 192, 0, 16, "heads"), (1, 192, 64, 16, "groups"), (1, 192, 128, 16, "groups")]
    made = {name.split(".", 1)[-1]: each for name, each in spelled(found, "transformer.h.0/attention").items()}
    assert made["c_attn.weight"] == spans
    assert made["c_attn.bias"] == [(0, *each[1:]) for each in spans]
    assert made["c_proj.weight"] == [(0, 64, 0, 16, "heads")]
    assert "c_proj.bias" not in made


def test_fused_gates_and_norms_over_all_heads() -> None:
    assert spelled(found_in("tiny-phi3"), "model.layers.0/mlp")["mlp.gate_up_proj.weight"] == [
        (0, 320, 0, 1, "channels"), (0, 320, 160, 1, "channels"),
    ]  # fmt: skip
    olmo = found_in("tiny-olmo2").block("model.layers.0/attention")
    assert len(olmo.spread.norms) == 2
    assert len(found_in("tiny-qwen3").block("model.layers.0/attention").spread.norms) == 0  # over each head alone


def test_the_width_of_the_residual_stream() -> None:
    llama, bert = found_in("tiny-llama").width, found_in("tiny-bert").width
    names = {str(v.name) for v in llama.initializers()}
    assert llama.counts == {"width": 64}
    assert llama.unknown == []
    assert {"lm_head.weight", "model.norm.weight", "model.layers.2.mlp.down_proj.weight"} <= names
    assert not llama.centred
    assert len(bert.centred) == 2 * len(found_in("tiny-bert").layers) + 1  # the mean of each is over it


def test_what_is_not_understood_is_said() -> None:
    model = model_of("tiny-llama").clone()
    swish = next(n for n in model.graph if n.op_type == "Swish" and "layers.1" in n.metadata_props["lepton.module"])
    swish.op_type = "Softmax"
    found = groups(model)
    assert list(found.missing) == ["model.layers.1"]
    with pytest.raises(InputError) as caught:
        found.require()
    assert caught.value.message == (
        "expected an attention and an MLP to cut in every layer, found 3 attention blocks and 2 mlp blocks in 3 "
        "layers; 1 are not understood, first model.layers.1: no mlp; mlp: it runs through Softmax of "
        "model.layers.1.mlp.act_fn"
    )


def test_channels_that_are_an_output_are_not_cut() -> None:
    model = model_of("tiny-llama").clone()
    down = next(n for n in model.graph if n.metadata_props.get("lepton.module") == "model.layers.2.mlp.down_proj")
    mul = next(n for n in model.graph if n.op_type == "Mul" and n.outputs[0] in _read_after(model, down))
    model.graph.outputs.append(mul.outputs[0])
    assert groups(model).missing == {"model.layers.2": ["no mlp", f"mlp: it reaches the output {mul.outputs[0].name}"]}


def _read_after(model: ir.Model, node: ir.Node) -> set[ir.Value | None]:
    nodes = list(model.graph)
    return {value for each in nodes[nodes.index(node) :] for value in each.inputs}


def test_a_block_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"expected a block of the model, found 'model\.layers\.9/mlp'"):
        found_in("tiny-llama").block("model.layers.9/mlp")
