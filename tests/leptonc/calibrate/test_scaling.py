"""Activation-aware scaling: against a float64 reference, and what it must never do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from leptonc.calibrate.scaling import STRENGTHS, choose, scaled_by, scalings
from leptonc.ir.structure import weight_of
from leptonc.passes.base import Manager
from leptonc.passes.quantize.blocks import Format, dequantize, round_to_nearest
from leptonc.passes.quantize.smooth import Place, SmoothLinears, SmoothLinearsConfig, places
from tests.leptonc import models

FORM = Format(4, 16, False)
IDS = np.asarray(models.token_ids(40), np.int64)


def first_place(model: ir.Model, path: str) -> Place:
    return next(place for place in places(model).values() if place.readers[0].path.endswith(path))


def inputs(width: int) -> np.ndarray:
    """Inputs of which few channels carry most."""
    random = np.random.default_rng(0)
    reach = np.where(np.arange(width) % 9 == 0, 20.0, 0.5)
    return (random.standard_normal((300, width)) * reach).astype(np.float32)


def reference(place: Place, x: np.ndarray, strength: float) -> float:
    """Mean over the layers of |X Q(W s) / s - X W|^2 / |X W|^2, in float64, token by token."""
    x = x.astype(np.float64)
    scales = np.sqrt(np.square(x).mean(0)) ** strength
    scales = (scales / np.exp(np.log(scales).mean())).astype(np.float32)
    errors = []
    for reader in place.readers:
        weight = weight_of(reader).astype(np.float64)
        codes = round_to_nearest((weight * scales).astype(np.float32), FORM)
        off = x @ (dequantize(codes, FORM).astype(np.float64) / scales - weight).T
        errors.append(np.square(off).sum() / np.square(x @ weight.T).sum())
    return float(np.mean(errors))


@pytest.mark.parametrize("path", ["q_proj", "gate_proj"])
def test_the_strength_is_the_best_by_a_float64_reference(path: str) -> None:
    place = first_place(models.captured("tiny-llama").model, path)
    x = inputs(place.width)
    found = choose(place, [FORM] * len(place.readers), x.T @ x)
    errors = {strength: reference(place, x, strength) for strength in STRENGTHS}
    assert found.unscaled == pytest.approx(errors[0.0], rel=1e-3)
    assert found.error == pytest.approx(min(errors.values()), rel=1e-2)
    assert found.error < 0.5 * found.unscaled
    assert found.strength > 0


def test_even_inputs_are_left_alone_or_gain() -> None:
    place = first_place(models.captured("tiny-llama").model, "gate_proj")
    x = np.random.default_rng(0).standard_normal((300, place.width)).astype(np.float32)
    found = choose(place, [FORM] * 2, x.T @ x)
    assert found.error <= found.unscaled
    assert choose(place, [None, None], x.T @ x).strength == 0  # nothing is rounded


def test_scales_of_channels() -> None:
    moments = np.array([4.0, 1.0, 0.0, 0.25])
    np.testing.assert_allclose(scaled_by(moments, 1.0), [2, 1, 1, 0.5], rtol=1e-6)
    np.testing.assert_array_equal(scaled_by(moments, 0.0), np.ones(4))
    np.testing.assert_array_equal(scaled_by(np.zeros(3), 1.0), np.ones(3))


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-gemma3"])
def test_the_graph_computes_the_same(name: str, tmp_path: Path) -> None:
    model = models.captured(name).model
    found = scalings(model, [IDS], lambda linear: Format(4, 16, False), tmp_path)
    assert found
    assert all(0 < each.error < each.unscaled for each in found)
    before = models.Graph(model, tmp_path).logits(IDS.tolist(), [len(IDS)], len(IDS))
    config = SmoothLinearsConfig(tuple((each.path, each.strength) for each in found))
    Manager().run(model, [SmoothLinears(config, {each.path: each.scales for each in found})])
    after = models.Graph(model, tmp_path).logits(IDS.tolist(), [len(IDS)], len(IDS))
    assert np.abs(after - before).max() <= 1e-4
