"""Products of unsigned codes and signed weights, against integers and ONNX Runtime's own kernel."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from runtime_edge import kernels
from tests.runtime_edge.kernels import SANITIZED, with_tiles

pytestmark = with_tiles
STEP, ZERO = np.float32(0.013), 131
# 1.23's own product is wrong on AMX for 32 rows and more of inputs that 64 does not divide.
VERSION = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
# Inputs and channels: those of models, those that tiles do not divide, weights of more than a core's cache.
SHAPES = [(576, 1536), (1536, 576), (640, 2048), (100, 70), (65, 31), (64, 16), (1, 1), (1024, 4096)]
ROWS = [0, 1, 5, 16, 17, 32, 33, 100, 300]
if SANITIZED in os.environ:  # tiles are in software
    SHAPES = [shape for shape in SHAPES if shape[0] * shape[1] < 10_000]


def model(
    inputs: int, channels: int, bias: bool = False, name: str = "weight", change: str = "", held: bool = True,
    rank: int = 3,
) -> onnx.ModelProto:  # fmt: skip
    """MatMulIntegerToFloat of random weights; `change` "twice" has it two times, the outputs added."""
    random = np.random.default_rng(inputs)
    arrays = {
        name: random.integers(-127, 128, (inputs, channels)).astype(np.int8),
        "step": STEP,
        "scales": random.uniform(0.001, 0.02, channels + (change == "scales")).astype(np.float32),
        "zero": np.full((2,) if change == "zero" else (), ZERO, np.uint8),
    }
    names = ["codes", name, "step", "scales", "zero"]
    if change == "zeros":
        arrays["zeros"] = np.zeros(channels, np.int8)
    if bias:
        arrays["bias"] = random.standard_normal(channels).astype(np.float32)
    if change == "no zero":
        names[4] = ""
        arrays.pop("zero")
    names += ["zeros" if change == "zeros" else "", "bias" if bias else ""]
    nodes = [helper.make_node("MatMulIntegerToFloat", names, ["y"], domain="com.microsoft")]
    if change == "twice":
        nodes[0].output[0] = "one"
        nodes.append(helper.make_node("MatMulIntegerToFloat", names, ["two"], domain="com.microsoft", name="again"))
        nodes.append(helper.make_node("Add", ["one", "two"], ["y"]))
    given = [helper.make_tensor_value_info("codes", TensorProto.UINT8, [None] * rank)]
    if not held:
        given.append(helper.make_tensor_value_info(name, TensorProto.INT8, arrays.pop(name).shape))
    graph = helper.make_graph(
        nodes, "product", given, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def session(
    model: onnx.ModelProto | Path, ours: bool = True, given: dict[str, NDArray[Any]] | None = None
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    kernels.register(options, [kernels.PRODUCT] if ours else [])
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in (given or {}).items()}
    options.add_external_initializers(list(values), list(values.values()))
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def codes(rows: int, inputs: int) -> NDArray[np.uint8]:
    return np.random.default_rng(rows).integers(0, 256, (1, rows, inputs)).astype(np.uint8)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inputs", "channels"), SHAPES)
def test_integers_are_exact_and_the_rest_is_onnxruntimes(inputs: int, channels: int, bias: bool) -> None:
    built = model(inputs, channels, bias)
    ours, theirs = session(built), session(built, ours=False)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in built.graph.initializer}
    for rows in ROWS:
        x = codes(rows, inputs)
        (y,) = ours.run(None, {"codes": x})
        # Above 2^24 a sum is rounded as it becomes a float32.
        sums = (x.astype(np.int64) - ZERO) @ arrays["weight"].astype(np.int64)
        exact = sums * (arrays["scales"].astype(np.float64) * STEP) + arrays.get("bias", 0.0)
        np.testing.assert_allclose(y, exact, rtol=3e-7, atol=1e-6 * np.abs(exact).max(initial=1))
        if inputs % 64 == 0 or VERSION >= (1, 32):
            np.testing.assert_array_equal(y, theirs.run(None, {"codes": x})[0])


def test_the_same_at_any_number_of_leading_dimensions() -> None:
    x = np.random.default_rng(0).integers(0, 256, (3, 20, 576)).astype(np.uint8)
    (y,) = session(model(576, 960)).run(None, {"codes": x})
    assert y.shape == (3, 20, 960)
    for shape in [(576,), (60, 576), (1, 60, 576), (1, 3, 1, 20, 576)]:
        opened, given = session(model(576, 960, rank=len(shape))), x.reshape(-1)[: np.prod(shape)].reshape(shape)
        (found,) = opened.run(None, {"codes": given})
        assert found.shape == (*shape[:-1], 960)
        np.testing.assert_array_equal(found.reshape(-1), y.reshape(-1)[: found.size])


def test_a_zero_point_that_is_left_out_is_zero() -> None:
    built, x = model(100, 70, bias=True, change="no zero"), codes(20, 100)
    (expected,) = session(built, ours=False).run(None, {"codes": x})
    np.testing.assert_array_equal(session(built).run(None, {"codes": x})[0], expected)


@pytest.mark.parametrize("of_file", [False, True])
def test_two_products_of_one_weight(of_file: bool, tmp_path: Path) -> None:
    built, x = model(576, 1536, change="twice"), codes(40, 576)
    (expected,) = session(built, ours=False).run(None, {"codes": x})
    if of_file:
        onnx.save(built, tmp_path / "graph.onnx", save_as_external_data=True, location="weights")
    opened = session(tmp_path / "graph.onnx" if of_file else built)
    np.testing.assert_array_equal(opened.run(None, {"codes": x})[0], expected)


def test_runs_beside_each_other_and_beside_onnxruntimes_products() -> None:
    built = model(576, 960)
    ours, theirs = session(built), session(built, ours=False)
    inputs = [codes(rows, 576) for rows in (1, 40, 256)]
    expected = [theirs.run(None, {"codes": x})[0] for x in inputs]

    def agree(opened: onnxruntime.InferenceSession) -> bool:
        pairs = list(zip(inputs, expected, strict=True)) * 30
        return all(np.array_equal(opened.run(None, {"codes": x})[0], y) for x, y in pairs)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(agree, [ours, theirs, ours, theirs]))


@pytest.mark.parametrize(("inputs", "channels"), [(576, 960), (128, 32), (100, 64), (128, 40)])
@pytest.mark.parametrize("layer", ["layer", "layer" * 300])
def test_derived_weights_are_taken_as_they_were_packed(inputs: int, channels: int, layer: str, tmp_path: Path) -> None:
    name = f"{layer}.derived"
    built = model(inputs, channels, name=name)
    weight = numpy_helper.to_array(built.graph.initializer[0])
    x = codes(40, inputs)
    (expected,) = session(built, ours=False).run(None, {"codes": x})
    tensor = built.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="absent")
    (tmp_path / "graph.onnx").write_bytes(built.SerializeToString())
    packed = kernels.packed(weight)
    assert packed.shape == weight.shape
    assert np.array_equal(packed, weight) == (inputs % 64 != 0 or channels % 32 != 0)
    assert np.array_equal(np.sort(packed, axis=None), np.sort(weight, axis=None))
    opened = session(tmp_path / "graph.onnx", given={name: packed})
    np.testing.assert_array_equal(opened.run(None, {"codes": x})[0], expected)


@pytest.mark.skipif(not os.access("/proc/self/pagemap", os.R_OK), reason="this system does not tell of pages")
def test_weights_of_a_file_are_not_held_twice(tmp_path: Path) -> None:
    inputs, channels = 1024, 32 * 1024
    onnx.save(model(inputs, channels), tmp_path / "graph.onnx", save_as_external_data=True, location="weights")

    def of_files() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("RssFile"))) * 1024

    before = of_files()
    opened = session(tmp_path / "graph.onnx")
    assert of_files() - before < inputs * channels / 4
    x = codes(3, inputs)
    (expected,) = session(tmp_path / "graph.onnx", ours=False).run(None, {"codes": x})
    np.testing.assert_array_equal(opened.run(None, {"codes": x})[0], expected)


@pytest.mark.parametrize(
    ("change", "said"),
    {
        "zeros": "weights whose zero point is zero, found another set of inputs",
        "scales": "one step and zero point, and a scale for each channel",
        "zero": "one step and zero point, and a scale for each channel",
        "inputs": "as many inputs as the weights have",
    }.items(),
)  # fmt: skip
def test_inputs_that_do_not_fit_are_refused(change: str, said: str) -> None:
    opened = session(model(128, 64, change=change))
    with pytest.raises(Exception, match=f"lepton kernels: expected {said}"):
        opened.run(None, {"codes": codes(3, 127 if change == "inputs" else 128)})


def test_weights_that_are_no_constant_are_refused() -> None:
    with pytest.raises(Exception, match="lepton kernels: expected constant weights"):
        session(model(128, 64, held=False))
