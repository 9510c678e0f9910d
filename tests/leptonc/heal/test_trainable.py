"""How initializers are parametrised: where they begin, what is learned of them, and what is stored."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from leptonc.heal.trainable import Zeros, recoverable
from leptonc.passes.quantize.weights import QuantizeWeights, QuantizeWeightsConfig
from tests.leptonc import models

START = np.array([[0, 7], [15, 8]], np.float32)


def zeros() -> ir.Value:
    tensor = ir.tensor(START.astype(np.uint8), name="w.zeros")
    return ir.Value(name="w.zeros", const_value=tensor, shape=ir.Shape(START.shape))


def test_zero_points_move_by_whole_steps_within_the_codes() -> None:
    parameter = Zeros(15).of(zeros(), np.random.default_rng(0))
    assert not parameter.start[0].any()
    for learned, want in [
        ([[0.0, 0.0], [0.0, 0.0]], [[0, 7], [15, 8]]),
        ([[0.03, -0.03], [0.0, 0.03]], [[0, 7], [15, 8]]),  # less than half of a step, a sixteenth of the codes
        ([[0.04, -0.04], [0.04, 0.1]], [[1, 6], [15, 10]]),
        ([[-1.0, 1.0], [-2.0, 0.25]], [[0, 15], [0, 12]]),
    ]:
        part = (torch.tensor(learned),)
        np.testing.assert_array_equal(parameter.stored(part), want)
        (moved,) = parameter.variables(part).values()
        np.testing.assert_array_equal(moved.numpy() + START, want)  # it learns with what is stored


def test_what_is_learned_of_zero_points_passes_the_rounding_by() -> None:
    parameter = Zeros(15).of(zeros(), np.random.default_rng(0))
    learned = torch.tensor([[0.01, 0.04], [0.5, -0.02]], requires_grad=True)  # the third is past the top
    (moved,) = parameter.variables((learned,)).values()
    (moved * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    assert learned.grad is not None
    np.testing.assert_array_equal(learned.grad.numpy(), [[16, 32], [48, 64]])


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_points_are_learned_where_there_are_some(symmetric: bool) -> None:
    model = models.captured("tiny-llama", max_seq_len=64).model
    QuantizeWeights(QuantizeWeightsConfig(bits=4, symmetric=symmetric))(model)
    found = recoverable(model)
    scales = [name for name in found if name.endswith(".scales")]
    assert len(scales) > 10
    wanted = set() if symmetric else {name.replace(".scales", ".zeros") for name in scales}
    assert {name for name in found if name.endswith(".zeros")} == wanted
