"""The pass that puts QuantizeLinear and DequantizeLinear before linear layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from leptonc.calibrate.calibrators import Grid
from leptonc.errors import InputError
from leptonc.ir.dialect import DialectError, count_ops, verify
from leptonc.passes.base import Manager
from leptonc.passes.quantize.activations import QuantizeActivations, QuantizeActivationsConfig
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


def test_the_dialect_wants_codes_to_be_read_by_dequantize_alone() -> None:
    model = models.captured("tiny-llama").model
    Manager().run(model, [QuantizeActivations(QuantizeActivationsConfig(layers=((f"{PREFIX}q_proj", 0.1, 3),)))])
    verify(model)
    codes = next(n for n in model.graph if n.op_type == "QuantizeLinear").outputs[0]
    reader = next(n for n in model.graph if n.op_type == "Swish")
    reader.replace_input_with(0, codes)
    with pytest.raises(DialectError, match="expected codes that DequantizeLinear alone reads"):
        verify(model)
