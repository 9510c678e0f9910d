"""Scales that float16 holds: what they become, and how ONNX Runtime's graphs store them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from leptonc.build.to_artifact import build
from leptonc.errors import InputError
from leptonc.options import BuildOptions
from leptonc.passes.quantize.blocks import Format, dequantize, round_to_nearest, storable
from leptonc.passes.quantize.gptq import clip_search, gptq

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_scales_are_numbers_of_float16_and_codes_are_nearest_on_them(bits: int, symmetric: bool) -> None:
    weight = RNG.standard_normal((6, 70)).astype(np.float32) / 50
    form = Format(bits, 32, symmetric, half=True)
    x = RNG.standard_normal((200, 70)).astype(np.float32)
    for parts in (round_to_nearest(weight, form), clip_search(weight, form, np.ones(70)), gptq(weight, form, x.T @ x)):
        assert np.array_equal(parts.scales, parts.scales.astype(np.float16).astype(np.float32))
    parts = round_to_nearest(weight, form)
    scale = np.repeat(np.abs(parts.scales), 32, 1)[:, :70]
    # Half a step, and at the ends what the scale lost when it was rounded to 11 bits.
    assert (np.abs(dequantize(parts, form) - weight) <= scale * (0.5 + form.top * 2.0**-11 + 1 / 2)).all()
    inside = (parts.codes > 0) & (parts.codes < form.top)
    assert (np.abs(dequantize(parts, form) - weight) <= scale * 0.5001)[inside].all()


def test_a_small_scale_does_not_become_zero() -> None:
    found = storable(np.array([1e-12, -1e-12, 0, 0.5], np.float32), Format(4, 32, True, half=True))
    assert (found[:2] * [1, -1] > 0).all()
    assert found[2:].tolist() == [0, 0.5]


def test_a_scale_beyond_float16_is_refused() -> None:
    with pytest.raises(InputError, match="which float16 holds, found 1e"):
        round_to_nearest(np.full((2, 32), 8e6, np.float32), Format(4, 32, True, half=True))


def test_artifacts_store_scales_in_two_bytes_once(tmp_path: Path) -> None:
    """The tied table and head of the sample read one Cast."""
    out = build(BuildOptions("sample:tiny-llama", out=tmp_path / "a", weights="int4")).path
    graph = onnx.load(out / "cpu.onnx", load_external_data=False).graph
    scales = [each for each in graph.initializer if each.name.endswith(".nbits.scales")]
    assert scales
    assert {each.data_type for each in scales} == {onnx.TensorProto.FLOAT16}
    readers = {each.name: [node.op_type for node in graph.node if each.name in node.input] for each in scales}
    assert all(found == ["Cast"] for found in readers.values())
