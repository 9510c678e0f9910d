"""Operators of opset 24 in primitives, against ONNX's own definition of them in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from leptonc.backends.tensorrt.operators import DOCUMENTED, require_operators, unsupported
from leptonc.backends.tensorrt.primitives import (
    AttentionToPrimitives,
    LowerOpset,
    NormToPrimitives,
    RotaryToPrimitives,
    ScatterToWhere,
    SoftCapToPrimitives,
    SwishToSigmoid,
    decompositions,
)
from leptonc.errors import InputError
from leptonc.ir.dialect import MODULE_KEY, module_of
from leptonc.passes.base import Pass

KINDS = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float16): TensorProto.FLOAT16,
         np.dtype(np.int64): TensorProto.INT64, np.dtype(np.bool_): TensorProto.BOOL}  # fmt: skip
TOLERANCE = {np.float32: 2e-6, np.float16: 4e-3}  # relative to the largest magnitude of what is expected


def one_node(op: str, inputs: dict[str, np.ndarray[Any, Any]], shape: tuple[int, ...], **attributes: Any) -> ir.Model:
    kind = KINDS[next(iter(inputs.values())).dtype]
    given = [helper.make_tensor_value_info(n, KINDS[a.dtype], a.shape) for n, a in inputs.items()]
    node = helper.make_node(op, list(inputs), ["y"], name="it", **attributes)
    node.metadata_props.add(key=MODULE_KEY, value="model.layers.3")
    graph = helper.make_graph([node], "g", given, [helper.make_tensor_value_info("y", kind, shape)])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    return ir.serde.deserialize_model(made)


def check(
    lower: Pass, op: str, inputs: dict[str, np.ndarray[Any, Any]], want: np.ndarray[Any, Any], **attributes: Any
) -> None:
    """Runs the lowered node with ONNX Runtime; compares with `want`, computed in float64."""
    model = one_node(op, inputs, want.shape, **attributes)
    assert lower(model).modified
    assert op not in {node.op_type for node in model.graph}
    assert {module_of(node) for node in model.graph} == {"model.layers.3"}
    assert unsupported(model, "tensorrt", "10.3") == []
    LowerOpset()(model)
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto)
    (found,) = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    ).run(None, inputs)  # fmt: skip
    kind = next(iter(inputs.values())).dtype
    assert found.dtype == kind
    assert found.shape == want.shape
    assert np.abs(found.astype(np.float64) - want).max() <= TOLERANCE[kind.type] * max(1, np.abs(want).max())


def normal(seed: int, *shape: int, kind: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=shape).astype(kind)


def softmax(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    e = np.exp(x - x.max(-1, keepdims=True))
    found: np.ndarray[Any, Any] = e / e.sum(-1, keepdims=True)
    return found


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (5, 1)])
@pytest.mark.parametrize(("length", "total"), [(1, 9), (7, 7), (3, 11)])
@pytest.mark.parametrize("cap", [0.0, 3.0])
@pytest.mark.parametrize("masked", ["bool", "float", "no"])
def test_attention(kind: Any, heads: int, kv_heads: int, length: int, total: int, cap: float, masked: str) -> None:
    q, k = normal(0, 1, heads, length, 16, kind=kind), normal(1, 1, kv_heads, total, 16, kind=kind)
    v = normal(2, 1, kv_heads, total, 8, kind=kind)
    inputs = {"q": q, "k": k, "v": v}
    keys, values = (np.repeat(a.astype(np.float64), heads // kv_heads, axis=1) for a in (k, v))
    scores = q.astype(np.float64) @ keys.swapaxes(2, 3) * 0.3
    scores = np.tanh(scores / cap) * cap if cap else scores
    allowed = np.random.default_rng(3).random((1, 1, length, total)) < 0.6
    allowed[..., 0] = True
    if masked == "bool":
        inputs["mask"] = allowed
        scores = np.where(allowed, scores, -np.inf)
    elif masked == "float":
        inputs["mask"] = np.where(allowed, 0, -1e4).astype(kind)
        scores = scores + inputs["mask"].astype(np.float64)
    attributes = {"scale": 0.3, **({"softcap": cap} if cap else {})}
    check(AttentionToPrimitives(), "Attention", inputs, softmax(scores) @ values, **attributes)


def test_attention_of_several_texts_with_a_mask_each() -> None:
    q, k, v = (normal(i, 3, 4 if i == 0 else 2, 5, 8) for i in range(3))
    mask = np.random.default_rng(3).random((3, 1, 5, 5)) < 0.7
    mask[..., 0] = True
    keys, values = (np.repeat(a.astype(np.float64), 2, axis=1) for a in (k, v))
    scores = np.where(mask, q.astype(np.float64) @ keys.swapaxes(2, 3) * 8**-0.5, -np.inf)
    check(AttentionToPrimitives(), "Attention", {"q": q, "k": k, "v": v, "mask": mask}, softmax(scores) @ values)


def test_only_attention_with_a_soft_cap() -> None:
    inputs = {name: normal(i, 1, 2, 3, 8) for i, name in enumerate("qkv")}
    assert not SoftCapToPrimitives()(one_node("Attention", inputs, (1, 2, 3, 8), scale=0.5)).modified
    assert SoftCapToPrimitives()(one_node("Attention", inputs, (1, 2, 3, 8), scale=0.5, softcap=2.0)).modified


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize(("past", "count"), [(0, 1), (0, 12), (5, 7), (11, 1), (3, 4)])
def test_scatter(kind: Any, past: int, count: int) -> None:
    cache, new = normal(0, 1, 2, 12, 4, kind=kind), normal(1, 1, 2, count, 4, kind=kind)
    want = cache.astype(np.float64)
    want[:, :, past : past + count] = new
    inputs = {"past": cache, "new": new, "at": np.array([past], np.int64)}
    check(ScatterToWhere(), "TensorScatter", inputs, want, axis=2)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("width", [16, 8])
@pytest.mark.parametrize("positions", [True, False])
def test_rotary(kind: Any, interleaved: int, width: int, positions: bool) -> None:
    x = normal(0, 2, 3, 5, 16, kind=kind)
    angles = np.random.default_rng(1).random((20, width // 2) if positions else (2, 5, width // 2)) * 6
    inputs = {"x": x, "cos": np.cos(angles).astype(kind), "sin": np.sin(angles).astype(kind)}
    at = np.random.default_rng(2).integers(0, 20, (2, 5))
    if positions:
        inputs["at"] = at
    cos, sin = (inputs[n].astype(np.float64)[at] if positions else inputs[n].astype(np.float64) for n in ("cos", "sin"))
    cos, sin = cos[:, None], sin[:, None]
    want = x.astype(np.float64)
    halves = (
        (slice(0, width, 2), slice(1, width, 2)) if interleaved else (slice(0, width // 2), slice(width // 2, width))
    )
    one, two = (x.astype(np.float64)[..., part] for part in halves)
    want[..., halves[0]], want[..., halves[1]] = one * cos - two * sin, one * sin + two * cos
    attributes = {"interleaved": interleaved, **({"rotary_embedding_dim": width} if width != 16 else {})}
    check(RotaryToPrimitives(), "RotaryEmbedding", inputs, want, **attributes)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("size", [1.0, 900.0])
def test_norm(kind: Any, size: float) -> None:
    """Squares of the larger ones are beyond what float16 holds."""
    x, scale = (normal(0, 2, 5, 64) * size).astype(kind), normal(1, 64, kind=kind)
    wide = x.astype(np.float64)
    want = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * scale.astype(np.float64)
    check(NormToPrimitives(), "RMSNormalization", {"x": x, "scale": scale}, want, epsilon=1e-6, axis=-1)


@pytest.mark.parametrize("alpha", [1.0, 1.702])
def test_swish(alpha: float) -> None:
    x = normal(0, 3, 17) * 4
    want = x.astype(np.float64) / (1 + np.exp(-alpha * x.astype(np.float64)))
    check(SwishToSigmoid(), "Swish", {"x": x}, want, alpha=alpha)


def test_the_definition_is_onnx_s() -> None:
    """The float64 written out above for a soft cap and a mask is what ONNX's reference evaluator computes."""
    inputs = {name: normal(i, 1, 2, 3, 8) for i, name in enumerate("qkv")}
    model = one_node("Attention", inputs, (1, 2, 3, 8), scale=0.5)
    (found,) = ReferenceEvaluator(ir.serde.serialize_model(model)).run(None, inputs)
    q, k, v = (inputs[n].astype(np.float64) for n in "qkv")
    assert np.abs(found - softmax(q @ k.swapaxes(2, 3) * 0.5) @ v).max() < 1e-6


@pytest.mark.parametrize(
    ("has", "names"),
    [
        (lambda op: True, ["tensorrt-soft-cap-primitives"]),
        (lambda op: op != "Swish", ["tensorrt-soft-cap-primitives", "tensorrt-swish-primitives"]),
        (lambda op: False, ["tensorrt-attention-primitives", "tensorrt-scatter-primitives",
                            "tensorrt-rotary-primitives", "tensorrt-norm-primitives", "tensorrt-swish-primitives",
                            "tensorrt-opset"]),
    ],
)  # fmt: skip
def test_a_version_gets_what_it_lacks(has: Callable[[str], bool], names: list[str]) -> None:
    assert [each.name for each in decompositions(has)] == names


def test_operators_that_a_version_lacks_are_named_with_their_modules() -> None:
    model = one_node("RMSNormalization", {"x": normal(0, 2, 8), "scale": normal(1, 8)}, (2, 8))
    assert unsupported(model, "tensorrt-rtx", "1.7.1") == []
    with pytest.raises(InputError) as caught:
        require_operators(model, "tensorrt", "10.3")
    assert caught.value.message == (
        "expected operators that TensorRT 10.3 parses, found RMSNormalization of model.layers.3"
    )
    assert "jetpack=7.2" in (caught.value.hint or "")
    assert "QLinearMatMul" not in DOCUMENTED
