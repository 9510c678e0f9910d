"""Products of unsigned codes and signed weights, against integers and ONNX Runtime's own kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from runtime_edge import kernels
from tests.runtime_edge.kernels import with_tiles

pytestmark = with_tiles
STEP, ZERO = np.float32(0.013), 131
# Inputs and channels: those of models, those that tiles do not divide, weights of more than a core's cache.
SHAPES = [(576, 1536), (1536, 576), (640, 2048), (100, 70), (65, 31), (64, 16), (1, 1), (1024, 4096)]
ROWS = [0, 1, 5, 16, 17, 32, 33, 100, 300]


def model(
    inputs: int, channels: int, bias: bool = False, name: str = "weight", change: str = "", held: bool = True
) -> onnx.ModelProto:
    """MatMulIntegerToFloat of random weights."""
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
    names += ["zeros" if change == "zeros" else "", "bias" if bias else ""]
    node = helper.make_node("MatMulIntegerToFloat", names, ["y"], domain="com.microsoft")
    given = [helper.make_tensor_value_info("codes", TensorProto.UINT8, [None, None, None])]
    if not held:
        given.append(helper.make_tensor_value_info(name, TensorProto.INT8, arrays.pop(name).shape))
    graph = helper.make_graph(
        [node], "product", given, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
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
        # Up to 2^24 a float32 holds each integer, and these sums are below 1024 * 255 * 127.
        sums = (x.astype(np.int64) - ZERO) @ arrays["weight"].astype(np.int64)
        exact = sums * (arrays["scales"].astype(np.float64) * STEP) + arrays.get("bias", 0.0)
        np.testing.assert_allclose(y, exact, rtol=3e-7, atol=1e-6 * np.abs(exact).max(initial=1))
        np.testing.assert_array_equal(y, theirs.run(None, {"codes": x})[0])


def test_the_same_at_any_number_of_leading_dimensions() -> None:
    x = np.random.default_rng(0).integers(0, 256, (3, 20, 576)).astype(np.uint8)
    opened = session(model(576, 960))
    (y,) = opened.run(None, {"codes": x})
    assert y.shape == (3, 20, 960)
    np.testing.assert_array_equal(y.reshape(1, 60, 960), opened.run(None, {"codes": x.reshape(1, 60, 576)})[0])


@pytest.mark.parametrize(("inputs", "channels"), [(576, 960), (128, 32), (100, 64), (128, 40)])
def test_derived_weights_are_taken_as_they_were_packed(inputs: int, channels: int, tmp_path: Path) -> None:
    built = model(inputs, channels, name="layer.derived")
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
    opened = session(tmp_path / "graph.onnx", given={"layer.derived": packed})
    np.testing.assert_array_equal(opened.run(None, {"codes": x})[0], expected)


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
