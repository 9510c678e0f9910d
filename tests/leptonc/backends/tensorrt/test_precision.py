"""Half precision where the ranges allow it, float32 elsewhere; and ranges as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from leptonc.backends.tensorrt.precision import HalfPrecision, HalfPrecisionConfig
from leptonc.backends.tensorrt.ranges import activations, largest
from leptonc.errors import InputError
from leptonc.ir.dialect import count_ops

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def network(tiny: float = 0.5) -> ir.Model:
    """X [n, 8] -> relu -> linear -> clip -> logits."""
    weight = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    made = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["r"], name="relu"),
            helper.make_node("MatMul", ["r", "w"], ["m"], name="linear"),
            helper.make_node("Max", ["m", "least"], ["logits"], name="max"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.float32(tiny), "least")],
        value_info=[helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 8]) for n in ("r", "m")],
    )
    return ir.serde.deserialize_model(helper.make_model(made, opset_imports=[helper.make_opsetid("", 24)]))


def lowered(ranges: dict[str, float], **options: Any) -> tuple[ir.Model, HalfPrecision]:
    model = network(**options)
    done = HalfPrecision(HalfPrecisionConfig(), lambda _: ranges)
    done(model)
    return model, done


def run(model: ir.Model, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    given = x.astype(np.float16 if session.get_inputs()[0].type == "tensor(float16)" else np.float32)
    found: np.ndarray[Any, Any] = session.run(None, {"x": given})[0]
    return found


def types(model: ir.Model) -> dict[str, ir.DataType | None]:
    return {str(node.name): node.outputs[0].dtype for node in model.graph if node.op_type != "Cast"}


SMALL = {"r": 3.0, "m": 9.0, "logits": 9.0}
X = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)


def test_small_ranges_are_half_and_outputs_float32() -> None:
    model, done = lowered(SMALL)
    assert types(model) == {"relu": HALF, "linear": HALF, "max": HALF}
    assert (model.graph.inputs[0].dtype, model.graph.outputs[0].dtype, model.graph.outputs[0].name) == (
        HALF, FLOAT, "logits",
    )  # fmt: skip
    assert done.wide == []
    found = run(model, X)
    assert found.dtype == np.float32
    want = run(network(), X)
    assert 0 < np.abs(found - want).max() < 5e-3  # half precision, and not float32 by another name


def test_what_goes_beyond_the_limit_stays_float32() -> None:
    model, done = lowered({**SMALL, "logits": HalfPrecisionConfig().limit * 2})
    assert types(model) == {"relu": HALF, "linear": HALF, "max": FLOAT}
    assert done.wide == ["the graph (Max)"]


def test_what_was_not_measured_stays_float32() -> None:
    model, _ = lowered({"r": 3.0})
    assert types(model) == {"relu": HALF, "linear": FLOAT, "max": FLOAT}


def test_a_constant_that_half_rounds_to_zero_stays_float32() -> None:
    model, _ = lowered(SMALL, tiny=1e-12)
    assert types(model) == {"relu": HALF, "linear": HALF, "max": FLOAT}
    assert run(model, -np.ones((1, 8), np.float32)).min() > 0


def test_a_product_too_large_for_half_is_scaled_exactly() -> None:
    """The product stays one of halves; its result is right where float16 itself would be infinite."""
    model, _ = lowered({"r": 6e3, "m": 2e5, "logits": 2e5})
    products = [node for node in model.graph if node.op_type == "MatMul"]
    assert [node.outputs[0].dtype for node in products] == [HALF]
    x = np.abs(X) * 2e4
    want = run(network(), x)
    assert want.max() > 65504
    assert np.abs(run(model, x) - want).max() / want.max() < 2e-3


def test_norms_and_softmax_are_float32_whatever_their_range() -> None:
    made = helper.make_graph(
        [helper.make_node("Softmax", ["x"], ["y"], name="softmax")], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
    )  # fmt: skip
    model = ir.serde.deserialize_model(helper.make_model(made, opset_imports=[helper.make_opsetid("", 24)]))
    HalfPrecision(HalfPrecisionConfig(), lambda _: {"y": 1.0})(model)
    assert types(model) == {"softmax": FLOAT}
    assert count_ops(model) == {"Softmax": 1, "Cast": 1}  # of its input: no cast of a cast at the end


def test_a_weight_beyond_half_is_refused() -> None:
    model = network()
    model.graph.initializers["w"].const_value = ir.tensor(np.full((8, 8), 1e6, np.float32), name="w")
    HalfPrecision(HalfPrecisionConfig(), lambda _: SMALL)(model)
    stored = model.graph.initializers["w.float16"].const_value
    with pytest.raises(InputError, match="within the 65504 that FLOAT16 holds, found larger ones in `w`"):
        stored.numpy()  # type: ignore[union-attr]


def test_ranges_are_the_largest_magnitudes(tmp_path: Path) -> None:
    model = network()
    before = count_ops(model)
    found = largest(model, [{"x": X}, {"x": -X}], tmp_path)
    assert count_ops(model) == before
    weight = model.graph.initializers["w"].const_value.numpy()  # type: ignore[union-attr]
    relu = [np.maximum(x, 0) for x in (X, -X)]
    assert found["r"] == pytest.approx(max(r.max() for r in relu))
    assert found["m"] == pytest.approx(max(np.abs(r @ weight).max() for r in relu), rel=1e-5)
    assert set(found) == {"r", "m", "logits"}
    assert list(tmp_path.iterdir()) == []


def test_activations_that_are_no_numbers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found inf in r"):
        largest(network(), [{"x": np.full((1, 8), np.inf, np.float32)}], tmp_path)


def test_weights_are_no_activations() -> None:
    assert [str(value.name) for value in activations(network().graph)] == ["r", "m", "logits"]


def test_a_cache_is_half_up_to_what_it_holds() -> None:
    def scatter(largest_key: float) -> ir.Model:
        shapes = {"past": [1, 2, 12, 4], "new": [1, 2, "n", 4], "present": [1, 2, 12, 4]}
        info = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in shapes.items()}
        at = helper.make_tensor_value_info("at", TensorProto.INT64, [1])
        nodes = [
            helper.make_node("Relu", ["new"], ["key"], name="relu"),
            helper.make_node("TensorScatter", ["past", "key", "at"], ["present"], name="scatter", axis=2),
        ]
        made = helper.make_graph(nodes, "g", [info["past"], info["new"], at], [info["present"]])
        model = ir.serde.deserialize_model(helper.make_model(made, opset_imports=[helper.make_opsetid("", 24)]))
        model.graph.outputs[0].name = "present.0.key"
        ranges = {"key": largest_key, "present.0.key": largest_key}
        HalfPrecision(HalfPrecisionConfig(), lambda _: ranges)(model)
        return model

    assert types(scatter(5e4)) == {"relu": FLOAT, "scatter": HALF}
    with pytest.raises(InputError, match="within the 65504 that a float16 cache holds, found 70000"):
        scatter(7e4)
