"""Graphs and inputs that are made to break kernels: an error that says what was expected, and no byte out of place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper

import runtime_edge
from runtime_edge import kernels
from runtime_edge.errors import ArtifactError
from tests.runtime_edge import tiny
from tests.runtime_edge.kernels import here, test_attention, test_product, with_tiles
from tests.runtime_edge.test_verify import relist

FORM = test_attention.Form(heads=4, kv_heads=2, dim=32, rotary=32)
Inputs = dict[str, NDArray[Any]]


def opened(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session whose tensors are blocks of memory of their own: a sanitizer sees where they end."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    kernels.register(options, ["attention.float32"])
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def attention(**attributes: int | float) -> onnx.ModelProto:
    """The graph of `FORM` with other attributes."""
    model = onnx.load_from_string(FORM.model())
    (node,) = model.graph.node
    kept = [each for each in node.attribute if each.name not in attributes]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in attributes.items())])
    return model


WIDE = 2**59 + 4  # times 32 it is 128 in 64 bits: as wide as 4 heads
EXTREMES = [WIDE, 2**63 - 1, -(2**63), -1, 0, 65537, 2**32 + 4]


@here
@pytest.mark.parametrize("name", ["num_heads", "kv_num_heads"])
@pytest.mark.parametrize("value", EXTREMES)
def test_heads_that_no_model_has(name: str, value: int) -> None:
    both = {"num_heads": value, "kv_num_heads": value} if name == "kv_num_heads" else {name: value}
    with pytest.raises(Exception, match="lepton kernels: expected between 1 and 65536 heads"):
        opened(attention(**both))


@here
@pytest.mark.parametrize(("heads", "keys"), [(4, 3), (4, 8), (4, 0), (4, -2), (4, 2**59 + 2)])
def test_heads_that_do_not_share_keys(heads: int, keys: int) -> None:
    with pytest.raises(Exception, match="lepton kernels: expected heads that share keys evenly"):
        opened(attention(num_heads=heads, kv_num_heads=keys))


@here
@pytest.mark.parametrize(("heads", "keys"), [(65536, 1), (65536, 65536), (8, 2), (4, 4), (2, 2), (1, 1)])
@pytest.mark.parametrize("length", [1, 20])
def test_heads_that_the_inputs_have_not(heads: int, keys: int, length: int) -> None:
    session = opened(attention(num_heads=heads, kv_num_heads=keys))
    with pytest.raises(Exception, match="lepton kernels: expected"):
        session.run(None, FORM.inputs(length, 5, 40))


@here
@pytest.mark.parametrize("length", [1, 20])
@pytest.mark.parametrize(
    "attributes",
    [
        {"local_window_size": 2**63 - 1}, {"local_window_size": -(2**63)}, {"local_window_size": 1},
        {"scale": float("nan")}, {"scale": float("inf")}, {"softcap": float("nan")}, {"softcap": 1e-45},
        {"rotary_interleaved": 2**63 - 1}, {"do_rotary": -(2**63)}, {"local_window_size": 1.5}, {"scale": 2},
    ],
    ids=str,
)  # fmt: skip
def test_other_attributes_at_their_extremes_stay_in_bounds(attributes: dict[str, Any], length: int) -> None:
    inputs = FORM.inputs(length, 5, 40)
    output, keys, _ = opened(attention(**attributes)).run(None, inputs)
    assert output.shape == (1, length, FORM.heads * FORM.dim)
    assert keys.shape == inputs["past_key"].shape


@here
def test_smoothing_is_refused_as_it_is_not_computed() -> None:
    with pytest.raises(Exception, match="lepton kernels: expected a softmax without smoothing"):
        opened(attention(smooth_softmax=1))


@here
@pytest.mark.parametrize("left_out", [0, 1, 2])
def test_outputs_without_a_name(left_out: int) -> None:
    model = attention()
    model.graph.node[0].output[left_out] = ""
    del model.graph.output[left_out]
    # ONNX Runtime refuses it before the kernel does.
    with pytest.raises(Exception, match=r"output \d is marked single|lepton kernels: expected a name for each output"):
        opened(model).run(None, FORM.inputs(3, 5, 40))


def zeros(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)


CHANGES: dict[str, tuple[Callable[[Inputs], Mapping[str, NDArray[Any]]], str]] = {
    "no tokens": (lambda x: {"query": x["query"][:, :0]}, "inputs that have elements"),
    "no features": (lambda x: {"query": x["query"][:, :, :0]}, "inputs that have elements"),
    "no sequence": (lambda x: {"query": x["query"][:0]}, "inputs that have elements"),
    "two sequences": (lambda x: {"query": zeros(2, *x["query"].shape[1:])}, "one sequence"),
    "a feature more": (lambda x: {"query": zeros(1, 3, x["query"].shape[2] + 1)}, "queries, keys and values side by"),
    "caches of no width": (
        lambda x: {name: zeros(1, 2, 40, 0) for name in ("past_key", "past_value")}, "queries, caches and lengths",
    ),
    "caches of no heads": (
        lambda x: {name: zeros(1, 0, 40, 32) for name in ("past_key", "past_value")}, "caches of equal shapes",
    ),
    "caches of another width": (
        lambda x: {name: zeros(1, 2, 40, 64) for name in ("past_key", "past_value")}, "queries, keys and values",
    ),
    "caches too wide": (
        lambda x: {name: zeros(1, 2, 40, 288) for name in ("past_key", "past_value")}, "heads of 32, 64",
    ),
    "caches of two sequences": (
        lambda x: {name: zeros(2, 2, 40, 32) for name in ("past_key", "past_value")}, "one sequence",
    ),
    "a cache shorter than the other": (lambda x: {"past_value": zeros(1, 2, 39, 32)}, "caches of equal shapes"),
    "a cache narrower than the other": (lambda x: {"past_value": zeros(1, 2, 40, 64)}, "caches of equal shapes"),
    "caches that are empty": (
        lambda x: {name: zeros(1, 2, 0, 32) for name in ("past_key", "past_value")}, "caches of equal shapes that hold",
    ),
    "caches of one row too few": (
        lambda x: {name: zeros(1, 2, 4, 32) for name in ("past_key", "past_value")}, "caches of equal shapes that hold",
    ),
    "no length": (lambda x: {"last": np.zeros(0, np.int32)}, "one sequence"),
    "two lengths": (lambda x: {"last": np.full(2, 7, np.int32)}, "one sequence"),
    "a length below zero": (lambda x: {"last": np.full(1, -1, np.int32)}, "as many tokens in all"),
    "the least length": (lambda x: {"last": np.full(1, -(2**31), np.int32)}, "as many tokens in all"),
    "the greatest length": (lambda x: {"last": np.full(1, 2**31 - 1, np.int32)}, "caches of equal shapes that hold"),
    "fewer tokens than new ones": (lambda x: {"last": np.full(1, 1, np.int32)}, "as many tokens in all"),
    "tables of no width": (lambda x: {name: zeros(40, 0) for name in ("cos", "sin")}, "inputs that have elements"),
    "tables of no rows": (lambda x: {name: zeros(0, 16) for name in ("cos", "sin")}, "inputs that have elements"),
    "tables of too few rows": (lambda x: {name: zeros(7, 16) for name in ("cos", "sin")}, "tables of cosines"),
    "tables that are too wide": (lambda x: {name: zeros(40, 17) for name in ("cos", "sin")}, "tables of cosines"),
    "tables that differ": (lambda x: {"sin": zeros(40, 8)}, "tables of cosines"),
}  # fmt: skip


@here
@pytest.mark.parametrize("change", CHANGES)
def test_inputs_of_a_run_that_do_not_fit(change: str) -> None:
    made, message = CHANGES[change]
    inputs = FORM.inputs(3, 5, 40)
    with pytest.raises(Exception, match=f"lepton kernels: expected {message}"):
        opened(attention()).run(None, inputs | made(inputs))


@here
@pytest.mark.parametrize("length", [1, 20])
def test_a_cache_may_begin_with_no_rows(length: int) -> None:
    output, keys, _ = opened(attention()).run(None, FORM.inputs(length, 0, 0) | tables(length))
    assert keys.shape == (1, FORM.kv_heads, length, FORM.dim)
    expected = test_attention.reference(FORM, FORM.inputs(length, 0, 0) | tables(length))
    np.testing.assert_allclose(output, expected, rtol=0, atol=3e-6)


def tables(length: int) -> Inputs:
    return {name: FORM.inputs(length, 0, length)[name] for name in ("cos", "sin")}


@here
@pytest.mark.parametrize("name", ["query", "past_key", "last", "cos"])
def test_ranks_that_differ(name: str) -> None:
    model = attention()
    (given,) = (one for one in model.graph.input if one.name == name)
    given.type.tensor_type.ClearField("shape")
    inputs = FORM.inputs(3, 5, 40)
    session = opened(model)
    for changed in (inputs[name][None], inputs[name].reshape(-1)[0], inputs[name].reshape([1] * 9 + [-1])):
        with pytest.raises(Exception, match="lepton kernels: expected"):
            session.run(None, inputs | {name: np.asarray(changed)})


@here
def test_keys_and_values_apart_have_the_queries_tokens() -> None:
    form = replace(FORM, packed=False)
    inputs = form.inputs(3, 5, 40)
    options = onnx.load_from_string(form.model())
    for change in (
        {"key": inputs["key"][:, :2]}, {"value": inputs["value"][:, :2]}, {"key": zeros(1, 3, 32)},
        {name: inputs[name][:, :2] for name in ("key", "value")}, {name: zeros(1, 3, 96) for name in ("key", "value")},
        {name: zeros(2, 3, 64) for name in ("key", "value")},
    ):  # fmt: skip
        with pytest.raises(Exception, match="lepton kernels: expected keys and values of as many tokens as queries"):
            opened(options).run(None, inputs | change)


@here
def test_a_sink_for_each_head() -> None:
    form = replace(FORM, sinks=True)
    inputs = form.inputs(3, 5, 40)
    for count in (1, 3, 5):
        with pytest.raises(Exception, match="lepton kernels: expected a sink for each head"):
            opened(onnx.load_from_string(form.model())).run(None, inputs | {"sinks": zeros(count)})


@with_tiles
@pytest.mark.parametrize("name", ["scales", "step", "zero"])
@pytest.mark.parametrize("shape", [(0,), (3,), (1, 1), (2, 32)])
def test_numbers_of_a_product_have_its_shape(name: str, shape: tuple[int, ...]) -> None:
    model = test_product.model(64, 64)
    (tensor,) = (one for one in model.graph.initializer if one.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(shape, np.uint8 if name == "zero" else np.float32), name))
    with pytest.raises(Exception, match="lepton kernels: expected one step and zero point, and a scale for each"):
        test_product.session(model).run(None, {"codes": test_product.codes(3, 64)})


@with_tiles
@pytest.mark.parametrize("shape", [(0, 64), (64, 0), (64,), (1, 64, 64)])
def test_weights_of_another_shape(shape: tuple[int, ...]) -> None:
    model = test_product.model(64, 64)
    (tensor,) = (one for one in model.graph.initializer if one.name == "weight")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(shape, np.int8), "weight"))
    with pytest.raises(Exception, match="lepton kernels: expected constant weights"):
        test_product.session(model)


@with_tiles
@pytest.mark.parametrize("shape", [(), (0,), (63,), (3, 65), (1, 3, 0)])
def test_codes_of_another_width(shape: tuple[int, ...]) -> None:
    session = test_product.session(test_product.model(64, 64, rank=len(shape)))
    with pytest.raises(Exception, match="lepton kernels: expected as many inputs as the weights have"):
        session.run(None, {"codes": np.zeros(shape, np.uint8)})


@here
def test_an_artifact_with_such_heads_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "HEAD_DIM", 32)
    root = tiny.write_decoder(tmp_path / "wide", weights=tiny.Weights.seeded(3))
    graph = onnx.load(root / "cpu.onnx", load_external_data=False)
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name == "num_heads":
                attribute.i = 2**59 + attribute.i
    (root / "cpu.onnx").write_bytes(graph.SerializeToString())
    relist(root, "cpu.onnx")
    with pytest.raises(ArtifactError, match="expected between 1 and 65536 heads"), runtime_edge.load(root) as model:
        model.generate([1, 2, 3], max_new_tokens=2)
