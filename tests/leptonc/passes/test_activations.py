"""The pass that puts QuantizeLinear and DequantizeLinear before linear layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from leptonc.calibrate.calibrators import Grid
from leptonc.errors import InputError
from leptonc.ir.dialect import DialectError, count_ops, verify
from leptonc.ir.structure import layer_of, linears, weight_of
from leptonc.passes.base import Manager
from leptonc.passes.quantize.activations import QuantizeActivations, QuantizeActivationsConfig
from leptonc.passes.quantize.blocks import dequantize
from leptonc.passes.quantize.weights import QuantizeWeights, QuantizeWeightsConfig, quantized_of
from tests.leptonc import models

PREFIX = "model.layers.0.self_attn."
IDS = models.token_ids(24)


@pytest.mark.parametrize("symmetric", [True, False])
def test_one_pair_for_all_that_read_a_value(symmetric: bool, tmp_path: Path) -> None:
    model = models.captured("tiny-llama").model
    grid = Grid.over(-2.0, 3.0, symmetric)
    layers = tuple((f"{PREFIX}{name}_proj", grid.scale, grid.zero) for name in "qkv")
    before = models.Graph(model, tmp_path).logits(IDS, [len(IDS)], 32)
    Manager().run(model, [QuantizeActivations(QuantizeActivationsConfig(symmetric, layers))])
    ops = count_ops(model)
    assert (ops["QuantizeLinear"], ops["DequantizeLinear"]) == (1, 1)
    got = models.Graph(model, tmp_path, optimize=False).logits(IDS, [len(IDS)], 32)
    # The same as rounding the norm's output by hand, in a graph that has it as an output.
    node = next(n for n in model.graph if n.op_type == "QuantizeLinear")
    rounded = next(n for n in model.graph if n.op_type == "DequantizeLinear").outputs[0]
    x = node.inputs[0]
    model.graph.outputs.extend([x, rounded])  # type: ignore[list-item]
    graph = models.Graph(model, tmp_path, optimize=False)
    out = graph(input_ids=np.array([IDS]), past_length=np.array([0]), **graph.caches(32))
    assert np.abs(out[str(rounded.name)] - grid.round(out[str(x.name)])).max() <= 1e-6  # type: ignore[union-attr]
    assert 0 < np.abs(got - before).max() < 0.5 * np.abs(before).max()


@pytest.mark.parametrize("bits", [32, 4])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2", "tiny-bert"])
def test_outliers_go_past_the_integers(name: str, bits: int, tmp_path: Path) -> None:
    """Features that stay float, against the same layer by hand: the others' rounded product and theirs."""
    model = models.captured(name).model
    if bits == 4:  # weights that are another graph's too, and stay what they are
        Manager().run(model, [QuantizeWeights(QuantizeWeightsConfig(symmetric=False))])
    linear = [each for each in linears(model) if layer_of(each.path)][-1]
    quantized, features = quantized_of(linear.weight), (2, 3, 31)
    weight = weight_of(linear) if quantized is None else dequantize(quantized.parts(), quantized.form)
    bias = 0 if linear.bias is None else linear.bias.const_value.numpy()  # type: ignore[union-attr]
    grid = Grid.over(-0.05, 0.05, False)  # so narrow that everything saturates
    config = QuantizeActivationsConfig(False, ((linear.path, grid.scale, grid.zero),), ((linear.path, features),))
    readers = [use.node for use in linear.y.uses()]
    Manager().run(model, [QuantizeActivations(config)])
    verify(model)
    total = next(node for node in readers[0].inputs if node is not None and str(node.name).endswith("outliers/Add"))
    model.graph.outputs.extend([linear.x, total])
    graph = models.Graph(model, tmp_path, optimize=False)
    given = {"input_ids": np.array([IDS])}
    if name == "tiny-bert":
        whole = np.ones_like(given["input_ids"])
        given |= {"attention_mask": whole, "token_type_ids": 0 * whole}
    else:
        given |= {"past_length": np.array([0]), **graph.caches(32)}
    out = graph(**given)
    x = out[str(linear.x.name)].astype(np.float64)
    others = np.ones(weight.shape[1])
    others[list(features)] = 0
    want = (grid.round(x.astype(np.float32)) * others + x * (1 - others)) @ weight.T.astype(np.float64) + bias
    assert np.abs(out[str(total.name)] - want).max() <= 1e-5 * np.abs(want).max()
    assert np.abs(x[..., features]).max() > 0.05


def test_a_layer_that_is_not_there() -> None:
    config = QuantizeActivationsConfig(layers=(("model.layers.9.mlp.up_proj", 1.0, 0),))
    with pytest.raises(InputError, match=r"found none: model\.layers\.9\.mlp\.up_proj"):
        Manager().run(models.captured("tiny-llama").model, [QuantizeActivations(config)])


@pytest.mark.parametrize(
    ("symmetric", "scale", "zero"), [(True, 1.0, 1), (False, 1.0, 256), (False, 0.0, 0), (False, np.nan, 0)]
)
def test_grids_that_there_are_not(symmetric: bool, scale: float, zero: int) -> None:
    with pytest.raises(InputError, match="expected a scale above zero and a zero point"):
        QuantizeActivationsConfig(symmetric, (("layer", scale, zero),))
    with pytest.raises(InputError, match="expected a scale above zero and a zero point from 32768 to 32768 for layer"):
        QuantizeActivationsConfig(False, (("layer", 1.0, 128),), wide=("layer",))


def test_the_dialect_wants_codes_to_be_read_by_dequantize_alone() -> None:
    model = models.captured("tiny-llama").model
    Manager().run(model, [QuantizeActivations(QuantizeActivationsConfig(layers=((f"{PREFIX}q_proj", 0.1, 3),)))])
    verify(model)
    codes = next(n for n in model.graph if n.op_type == "QuantizeLinear").outputs[0]
    reader = next(n for n in model.graph if n.op_type == "Swish")
    reader.replace_input_with(0, codes)
    with pytest.raises(DialectError, match="expected codes that DequantizeLinear alone reads"):
        verify(model)
