"""Small parts of the lowering: packing, the layout of quantized weights, norms, and what is left as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from leptonc.backends.onnxruntime import finish, lowerings
from leptonc.backends.onnxruntime.fusions import SkipNorms, SwishToQuickGelu
from leptonc.backends.onnxruntime.linear import NBits, pack
from leptonc.ir import edit
from leptonc.ir.dialect import count_ops
from leptonc.passes.base import Manager
from leptonc.passes.quantize.blocks import Codes, Format, Quantized
from leptonc.passes.quantize.weights import QuantizeWeights, QuantizeWeightsConfig
from tests.leptonc import models


def test_nibbles_go_low_first() -> None:
    codes = np.array([[1, 2, 3, 15], [0, 8, 9, 0]], np.uint8)
    assert pack(codes, 4).tolist() == [[0x21, 0xF3], [0x80, 0x09]]
    assert pack(codes, 8) is codes
    assert pack(np.array([[1, 2, 3, 0, 3]], np.uint8), 2).tolist() == [[0b00111001, 0b11]]


def test_an_odd_count_is_filled_with_zero() -> None:
    assert pack(np.array([[1, 2, 3]], np.uint8), 4).tolist() == [[0x21, 0x03]]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_layout_of_a_weight_whose_last_block_is_short(bits: int, symmetric: bool) -> None:
    form = Format(bits, 16, symmetric)
    random = np.random.default_rng(0)
    codes = random.integers(0, form.top + 1, (3, 40)).astype(np.uint8)
    zeros = None if symmetric else random.integers(0, form.top + 1, (3, 3)).astype(np.uint8)
    parts = Codes(codes, random.random((3, 3), np.float32), zeros)
    graph = ir.Graph([], [], nodes=[], name="empty")
    nbits = NBits(graph, Quantized((3, 40), form, f"w{bits}{symmetric}", lambda: parts))
    stored = data_of(nbits.codes)
    assert stored.shape == (3, 3, 16 * bits // 8)
    flat = stored.reshape(3, -1)
    unpacked = np.stack([flat >> at & form.top for at in range(0, 8, bits)], -1).reshape(3, -1)
    assert np.array_equal(unpacked[:, :40], codes)
    assert (unpacked[:, 40:] == form.middle).all()
    assert np.array_equal(data_of(nbits.rows()), flat)
    assert (nbits.zeros is None) == symmetric
    if nbits.zeros is not None and zeros is not None:
        packed = data_of(nbits.zeros)
        assert packed.shape == (3, {2: 1, 4: 2, 8: 3}[bits])
        if bits == 4:
            assert packed[:, 0].tolist() == (zeros[:, 0] | zeros[:, 1] << 4).tolist()
            assert packed[:, 1].tolist() == zeros[:, 2].tolist()
    Quantized.forget()


def data_of(value: ir.Value) -> np.ndarray:
    tensor = value.const_value
    assert tensor is not None
    array = tensor.numpy()
    assert array.shape == tuple(value.shape)  # type: ignore[arg-type]
    return array


def run(model: ir.Model, folder: Path, **given: np.ndarray) -> list[np.ndarray]:
    model = model.clone()  # passes that come after need the types that finishing leaves out
    finish(model)
    ir.save(model, folder / "m.onnx")
    session = onnxruntime.InferenceSession(folder / "m.onnx", providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, given)
    return found


NORMS = """<ir_version: 11, opset_import: ["": 24]>
agraph (float[1, 3, 4] a, float[1, 3, 4] b) => (float[1, 3, 4] y, float[1, 3, 4] after)
<float[4] w = {1, 2, 3, 4}, float[1, 3, 4] total> {
    total = Add (a, b)
    y = RMSNormalization <axis = -1, epsilon = 0.01> (total, w)
    after = Neg (total)
}"""


@pytest.mark.parametrize("others", [True, False])
def test_sums_and_norms_are_one(others: bool, tmp_path: Path) -> None:
    model = ir.from_onnx_text(NORMS)
    if not others:
        model.graph.outputs.pop()
        edit.cleanup(model)
    given = {n: np.random.default_rng(i).standard_normal((1, 3, 4)).astype(np.float32) for i, n in enumerate("ab")}
    want = run(model, tmp_path, **given)
    Manager().run(model, [SkipNorms()])
    ops = count_ops(model)
    assert ops == {"com.microsoft.SkipSimplifiedLayerNormalization": 1} | ({"Neg": 1} if others else {})
    node = next(n for n in model.graph if n.op_type.startswith("Skip"))
    assert len(node.outputs) == (4 if others else 1)
    got = run(model, tmp_path, **given)
    assert len(got) == (2 if others else 1)
    for one, other in zip(got, want, strict=True):
        assert np.abs(one - other).max() <= 1e-6


def test_a_sum_that_broadcasts_stays() -> None:
    model = ir.from_onnx_text(NORMS.replace("float[1, 3, 4] b", "float[4] b"))
    before = count_ops(model)
    assert not SkipNorms()(model).modified
    assert count_ops(model) == before


def test_a_norm_over_another_axis_stays() -> None:
    model = ir.from_onnx_text(NORMS.replace("axis = -1", "axis = 1"))
    assert not SkipNorms()(model).modified
    assert "RMSNormalization" in count_ops(model)


def test_silu_has_a_kernel(tmp_path: Path) -> None:
    text = """<ir_version: 11, opset_import: ["": 24]>
    agraph (float[7] x) => (float[7] y) { y = Swish <alpha = 1.5> (x) }"""
    model, x = ir.from_onnx_text(text), np.linspace(-5, 5, 7, dtype=np.float32)
    Manager().run(model, [SwishToQuickGelu()])
    assert count_ops(model) == {"com.microsoft.QuickGelu": 1}
    (got,) = run(model, tmp_path, x=x)
    assert np.abs(got - x / (1 + np.exp(-1.5 * x.astype(np.float64)))).max() <= 1e-6


def test_a_width_that_is_no_multiple_of_the_block(tmp_path: Path) -> None:
    """Blocks of 256 over 64 and 160 columns: the embedding has smaller ones, two a row, so that all is fused."""
    ids = models.token_ids(20)
    model, manager = models.captured("tiny-llama").model, Manager()
    manager.run(model, [QuantizeWeights(QuantizeWeightsConfig(4, 256, False))])
    want = models.Graph(model, tmp_path).logits(ids, [20], 20)
    manager.run(model, lowerings())
    finish(model)
    ops = count_ops(model)
    assert (ops["com.microsoft.GatherBlockQuantized"], ops["com.microsoft.MatMulNBits"]) == (1, 16)
    assert "DequantizeLinear" not in ops
    got = models.Graph(model, tmp_path).logits(ids, [20], 20)
    assert np.sqrt(np.square(got - want).mean()) <= 0.05 * want.std()
