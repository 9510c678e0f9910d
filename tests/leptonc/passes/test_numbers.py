"""Numbers in the place of codes: the graph computes the same, smoothed, too, and the codes stay what they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from leptonc.ir.structure import Linear, layer_of, linears, weight_of
from leptonc.passes.base import Manager, Pass
from leptonc.passes.fuse_linears import FuseLinears
from leptonc.passes.quantize.numbers import CodesToNumbers, CodesToNumbersConfig
from leptonc.passes.quantize.smooth import SmoothLinears, SmoothLinearsConfig, places
from leptonc.passes.quantize.weights import QuantizeWeights, QuantizeWeightsConfig, quantized_of
from tests.leptonc import models

IDS = models.token_ids(40)


def quantized(name: str) -> ir.Model:
    model = models.captured(name).model
    Manager().run(model, [QuantizeWeights(QuantizeWeightsConfig(bits=4, symmetric=False))])
    return model


def inside(model: ir.Model) -> list[Linear]:
    return [each for each in linears(model) if layer_of(each.path)]


def scales_of(model: ir.Model) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        place.readers[0].path: place.shared(np.exp(random.uniform(-2, 2, place.width)).astype(np.float32))
        for place in places(model).values()
        if layer_of(place.readers[0].path)
    }


@pytest.mark.parametrize("name", ["tiny-gemma3", "tiny-qwen2", "tiny-phi3"])
def test_the_graph_computes_the_same(name: str, tmp_path: Path) -> None:
    scales, model = scales_of(models.captured(name).model), quantized(name)
    codes = {each.path: quantized_of(each.weight).parts().codes for each in inside(model)}  # type: ignore[union-attr]

    def run(*passes: Pass) -> np.ndarray:
        Manager().run(model, list(passes))
        return models.Graph(model, tmp_path).logits(IDS, [len(IDS)], 64)

    before = run()
    paths = tuple(each.path for each in inside(model))
    assert np.abs(run(CodesToNumbers(CodesToNumbersConfig(paths))) - before).max() <= 1e-5 * np.abs(before).max()
    assert all(each.dequantize is None for each in inside(model))
    assert np.abs(run(SmoothLinears(SmoothLinearsConfig(), scales)) - before).max() <= 1e-4 * np.abs(before).max()
    for each in inside(model):
        weight = quantized_of(each.weight)
        assert weight is not None
        np.testing.assert_array_equal(weight.parts().codes, codes[each.path])
    assert np.abs(run(FuseLinears()) - before).max() <= 1e-4 * np.abs(before).max()
    scaled = 0
    for each in inside(model):  # joined ones, too, know what they are made of
        weight = quantized_of(each.weight)
        assert weight is not None
        parts, size = weight.parts(), weight.form.size
        numbers = parts.codes.astype(np.float64) - np.repeat(parts.zeros, size, 1)[:, : weight.shape[1]]  # type: ignore[arg-type]
        numbers *= np.repeat(parts.scales.astype(np.float64), size, 1)[:, : weight.shape[1]]
        numbers *= 1 if weight.columns is None else weight.columns
        numbers *= 1 if weight.rows is None else weight.rows[:, None]
        np.testing.assert_allclose(weight_of(each), numbers, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(weight.exact(), weight_of(each))
        scaled += weight.columns is not None
    assert scaled >= len(scales) > 0


def test_what_another_graph_has_too_stays_as_it_is(tmp_path: Path) -> None:
    """Codes stay where none are asked for numbers; what they make is divided by a product of its own."""
    scales, model = scales_of(models.captured("tiny-llama").model), quantized("tiny-llama")
    before = models.Graph(model, tmp_path).logits(IDS, [len(IDS)], 64)
    wanted = {path: each for path, each in scales.items() if path.endswith(("down_proj", "o_proj"))}
    assert len(wanted) == 6
    Manager().run(
        model, [CodesToNumbers(CodesToNumbersConfig(tuple(wanted))), SmoothLinears(SmoothLinearsConfig(), wanted)]
    )
    for each in inside(model):
        weight = quantized_of(each.weight)
        assert weight is not None
        assert (each.dequantize is None) == (weight.columns is not None) == (each.path in wanted)
        assert weight.rows is None
        divided = each.x.producer()
        assert divided is not None
        made = [str(value.name) for value in divided.inputs if value is not None]
        assert any(name.endswith(".smooth") for name in made) == (each.path in wanted)
    found = models.Graph(model, tmp_path).logits(IDS, [len(IDS)], 64)
    assert np.abs(found - before).max() <= 1e-4 * np.abs(before).max()
