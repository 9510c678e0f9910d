"""Layers of 8-bit activations and weights as ONNX Runtime runs them, against the graph of the dialect and integers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from leptonc.backends.onnxruntime import finish, lowerings
from leptonc.backends.onnxruntime.integer import DERIVED_KEY
from leptonc.calibrate.activations import choices, static_of
from leptonc.ir.dialect import count_ops
from leptonc.passes.base import Manager
from leptonc.passes.feature import Feature
from leptonc.passes.quantize.activations import WIDE_ZERO, QuantizeActivations, QuantizeActivationsConfig
from leptonc.passes.quantize.blocks import Format, Quantized, dequantize
from leptonc.passes.quantize.channels import codes_of
from leptonc.passes.quantize.weights import QuantizeWeights, QuantizeWeightsConfig
from tests.leptonc import models

IDS = models.token_ids(48)


def quantized(name: str, folder: Path) -> ir.Model:
    """A sample model with 8-bit weights and activations, in the dialect."""
    model = models.captured(name).model
    found = choices(model, [np.array(IDS)], "minmax", folder, symmetric=False)
    static = static_of(found, set(), symmetric=False)
    config = QuantizeWeightsConfig(bits=8, channels=static.layers)
    Manager().run(model, [*static.passes(), QuantizeWeights(config, importance=static.importance)])
    return model


@pytest.mark.parametrize(
    ("name", "integer", "values"), [("tiny-llama", 15, 12), ("tiny-gemma3", 20, 16), ("tiny-gpt2", 12, 12)]
)
def test_a_decoder_runs_as_the_dialect_says(name: str, integer: int, values: int, tmp_path: Path) -> None:
    model = quantized(name, tmp_path)
    want = models.Graph(model, tmp_path, optimize=False).logits(IDS, [len(IDS)], 64)
    Manager().run(model, lowerings())
    finish(model)
    ops = count_ops(model)
    assert ops["com.microsoft.MatMulIntegerToFloat"] == integer
    assert ops["com.microsoft.QuantizeLinear"] == values  # gate and up read one
    assert ops["com.microsoft.MatMulNBits"] == 1  # the head, which is the embedding
    got = models.Graph(model, tmp_path).logits(IDS, [len(IDS)], 64)
    # MatMulNBits rounds the head's inputs as it runs; one code of an activation may be on the other side of a half.
    assert np.sqrt(np.square(got - want).mean()) <= 0.02 * want.std()
    float_ = models.reference_logits(models.reference(name), IDS)
    assert np.sqrt(np.square(want - float_).mean()) <= 0.15 * float_.std()
    assert not np.array_equal(want, float_)


def test_an_encoder_runs_as_the_dialect_says(tmp_path: Path) -> None:
    model = quantized("tiny-bert", tmp_path)
    given = models.padded(("input_ids", "attention_mask", "token_type_ids"))
    want = models.Graph(model, tmp_path, optimize=False)(**given)["embeddings"]
    Manager().run(model, lowerings())
    finish(model)
    assert count_ops(model)["com.microsoft.MatMulIntegerToFloat"] == 18
    got = models.Graph(model, tmp_path)(**given)["embeddings"]
    assert np.abs(got - want).max() <= 0.02


def linear(
    weight: np.ndarray, scale: float, zero: int, form: QuantizeWeightsConfig | None = None,
    inputs: Mapping[str, Feature] | None = None, *, wide: bool = False,
) -> ir.Model:  # fmt: skip
    """A graph of one linear layer y = x W^T + b with 8-bit activations, and weights paired if nothing else is said."""
    rows, columns = weight.shape
    x = ir.Value(name="x", shape=ir.Shape(["n", columns]), type=ir.TensorType(ir.DataType.FLOAT))
    w = ir.Value(name="w", const_value=ir.tensor(weight), shape=ir.Shape(weight.shape), type=x.type)
    bias = ir.tensor(np.arange(rows, dtype=np.float32))
    b = ir.Value(name="b", const_value=bias, shape=ir.Shape([rows]), type=x.type)
    turn = ir.node("Transpose", [w], {"perm": [1, 0]})
    product = ir.node("MatMul", [x, turn.outputs[0]], metadata_props={"lepton.module": "layer"})
    add = ir.node("Add", [product.outputs[0], b])
    add.outputs[0].name, add.outputs[0].type = "y", x.type
    add.outputs[0].shape = ir.Shape(["n", rows])
    graph = ir.Graph([x], [add.outputs[0]], nodes=[turn, product, add], initializers=[w, b], opset_imports={"": 24})
    model = ir.Model(graph, ir_version=11)
    config = QuantizeActivationsConfig(layers=(("layer", scale, zero),), wide=("layer",) if wide else ())
    weights = QuantizeWeights(form or QuantizeWeightsConfig(bits=8, channels=("layer",)))
    Manager().run(model, [weights, QuantizeActivations(config, inputs)])
    return model


@pytest.mark.parametrize("form", [None, QuantizeWeightsConfig(4, 32, half_scales=True)], ids=["stored", "derived"])
def test_16_bits_are_two_products_of_8(form: QuantizeWeightsConfig | None, tmp_path: Path) -> None:
    """As exact as 16 bits are, and the weights are there once; what goes past the range is as far as it reaches."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((24, 96)).astype(np.float32)
    x = (random.standard_normal((40, 96)) * np.exp(2 * random.standard_normal(96))).astype(np.float32)
    scale = float(np.float32(np.abs(x).max() / 32_500))  # the top code of the upper half is 127
    Quantized.forget()
    model = linear(weight, scale, WIDE_ZERO, form, wide=True)
    codes = next(n for n in model.graph if n.op_type == "QuantizeLinear").outputs[0]
    assert codes.dtype == ir.DataType.UINT16
    want = models.Graph(model, tmp_path, optimize=False)(x=x)["y"].astype(np.float64)
    Manager().run(model, lowerings())
    counts = count_ops(model)
    assert (counts["com.microsoft.MatMulIntegerToFloat"], counts["QuantizeLinear"], counts["Add"]) == (2, 2, 1)
    products = [n for n in model.graph if n.op_type == "MatMulIntegerToFloat"]
    assert products[0].inputs[1] is products[1].inputs[1]
    assert [len(n.inputs) for n in products] == [7, 5]  # the bias is added once
    if form is not None:
        return  # the runtime makes these weights
    finish(model)
    got = models.Graph(model, tmp_path)(x=x)["y"]
    # A code of the lower half may be one step less, and sums are float32's.
    reach = np.abs(weight).sum(1).max() * scale
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max() + reach
    exact = x.astype(np.float64) @ weight.T.astype(np.float64) + np.arange(24)
    narrow = models.Graph(linear(weight, 256 * scale, 128), tmp_path, optimize=False)(x=x)["y"]
    assert np.abs(want - narrow).mean() > 0
    assert np.square(got - exact).mean() < np.square(narrow - exact).mean()


@pytest.mark.parametrize("bits", [4, 8])
def test_what_rounding_again_moves_goes_into_the_bias(bits: int) -> None:
    """Integers that the runtime makes of a weight in blocks: outputs keep their mean on inputs of the text's mean."""
    random = np.random.default_rng(bits)
    weight = (random.standard_normal((24, 96)) * np.exp(random.standard_normal((24, 1)))).astype(np.float32)
    x = (random.standard_normal((400, 96)) + 3 * random.standard_normal(96)).astype(np.float32)
    read = Feature(x.mean(0, dtype=np.float64), np.square(x, dtype=np.float64).mean(0))
    model = linear(weight, 0.5, 0, QuantizeWeightsConfig(bits, 32, half_scales=True), {"layer": read})
    Manager().run(model, lowerings())
    (node,) = [n for n in model.graph if n.op_type == "MatMulIntegerToFloat"]
    quantized = node.inputs[1].meta[DERIVED_KEY]  # type: ignore[union-attr]
    exact = dequantize(quantized.parts(), quantized.form).astype(np.float64)
    steps, bias = (np.asarray(node.inputs[at].const_value.numpy(), np.float64) for at in (3, 6))  # type: ignore[union-attr]
    form = Format(8, 96, True, positive=True, paired=True)
    integers = codes_of(exact.astype(np.float32), steps.astype(np.float32), form).astype(np.float64)
    off = exact - integers * steps[:, None]
    assert np.abs(bias - np.arange(24) - off @ read.mean).max() <= 1e-5 * np.abs(bias).max()
    moved = x.astype(np.float64) @ (integers * steps[:, None]).T + bias - (x @ exact.T + np.arange(24))
    plain = moved - (bias - np.arange(24))
    assert np.abs(moved.mean(0)).max() <= 1e-3 * np.abs(plain.mean(0)).max()
    assert np.square(moved).mean() < 0.7 * np.square(plain).mean()
    # The steps are those that cost least on these inputs.
    even = codes_of(exact.astype(np.float32), steps.astype(np.float32) * np.float32(1.1), form) * (1.1 * steps[:, None])
    assert (np.square(off) @ read.square).sum() <= (np.square(exact - even) @ read.square).sum()


@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("columns", [16, 37, 130])
def test_no_activations_can_saturate(rows: int, columns: int, tmp_path: Path) -> None:
    """Exact against integers for the largest activations there are, which plain 8-bit codes overflow 16 bits with."""
    random = np.random.default_rng(columns)
    # Large weights of one sign side by side, in runs: what vpmaddubsw cannot add. And one whose neighbour is small.
    weight = np.repeat(random.standard_normal((24, -(-columns // 4))), 4, axis=1)[:, :columns].astype(np.float32)
    weight = np.sign(weight) * np.maximum(np.abs(weight), 1)
    weight[:, :2] = [3, -0.1]
    Quantized.forget()
    model = linear(weight, 0.5, 0)
    codes = np.asarray(next(n for n in model.graph if n.name == "w/DequantizeLinear").inputs[0].const_value.numpy())  # type: ignore[union-attr]
    scales = model.graph.initializers["w.scales"].const_value.numpy()  # type: ignore[union-attr]
    assert codes.dtype == np.int8
    Manager().run(model, lowerings())
    finish(model)
    ir.save(model, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert count_ops(model) == {"com.microsoft.QuantizeLinear": 1, "com.microsoft.MatMulIntegerToFloat": 1}
    x = np.where(random.random((rows, columns)) < 0.9, 127.5, 0).astype(np.float32)
    (got,) = session.run(None, {"x": x})
    exact = (x.astype(np.float64) / 0.5) @ codes.T.astype(np.float64) * (0.5 * scales.astype(np.float64))
    exact += np.arange(24)
    assert np.abs(got - exact).max() <= 1e-5 * np.abs(exact).max()
    Quantized.forget()
    assert np.abs(codes).max() > 64  # more than 7 bits where the neighbour lets them
