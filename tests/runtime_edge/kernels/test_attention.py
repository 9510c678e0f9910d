"""Attention over a cache, against float64 and ONNX Runtime's own kernel."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from runtime_edge import kernels
from tests.runtime_edge.kernels import SANITIZED, here, with_tiles

Array = NDArray[np.float32]
FORMATS = [
    pytest.param("float32", marks=here),
    pytest.param("avx2", marks=here),  # float32, in the library for CPUs without AVX-512
    pytest.param("bfloat16", marks=with_tiles),
]


@dataclass(frozen=True)
class Form:
    """A GroupQueryAttention: `rotary` features of a head are rotated, `packed` has keys and values beside queries."""

    heads: int = 9
    kv_heads: int = 3
    dim: int = 64
    window: int = -1
    softcap: float = 0.0
    rotary: int = 64
    interleaved: bool = False
    sinks: bool = False
    packed: bool = True
    scale: float | None = None  # None is one over the root of `dim`

    def model(self) -> bytes:
        names = ["query", "key", "value", "past_key", "past_value", "last", "total", "cos", "sin", "", "", "sinks"]
        left_out = {"key", "value"} if self.packed else set()
        left_out |= {"sinks"} if not self.sinks else set()
        left_out |= {"cos", "sin"} if not self.rotary else set()
        node = helper.make_node(
            "GroupQueryAttention", ["" if name in left_out else name for name in names],
            ["output", "present_key", "present_value"], domain="com.microsoft", num_heads=self.heads,
            kv_num_heads=self.kv_heads, scale=self.scale, local_window_size=self.window, softcap=self.softcap,
            do_rotary=int(self.rotary > 0), rotary_interleaved=int(self.interleaved),
        )  # fmt: skip
        ranks = {"query": 3, "key": 3, "value": 3, "past_key": 4, "past_value": 4, "cos": 2, "sin": 2, "sinks": 1}
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)
            for name, rank in ranks.items()
            if name not in left_out
        ]
        inputs.append(helper.make_tensor_value_info("last", TensorProto.INT32, [None]))
        inputs.append(helper.make_tensor_value_info("total", TensorProto.INT32, []))
        outputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)
            for name, rank in (("output", 3), ("present_key", 4), ("present_value", 4))
        ]
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        graph = helper.make_graph([node], "attention", inputs, outputs)
        return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())

    def inputs(self, length: int, past: int, capacity: int) -> dict[str, NDArray[Any]]:
        """Standard normal numbers; rows of the cache beyond what is past are NaN, which no kernel may read."""
        random = np.random.default_rng(self.dim + length + past)

        def normal(*shape: int) -> Array:
            return random.standard_normal(shape).astype(np.float32)

        found: dict[str, NDArray[Any]] = {}
        found["query"] = normal(1, length, (self.heads + 2 * self.kv_heads * self.packed) * self.dim)
        if not self.packed:
            found |= {name: normal(1, length, self.kv_heads * self.dim) for name in ("key", "value")}
        for name in ("past_key", "past_value"):
            found[name] = normal(1, self.kv_heads, capacity, self.dim)
            found[name][:, :, past:] = np.nan
        found["last"] = np.array([past + length - 1], np.int32)
        found["total"] = np.array(past + length, np.int32)
        if self.rotary:
            half = self.rotary // 2
            angles = np.arange(capacity)[:, None] / 1e4 ** (np.arange(half) / half)
            found |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
        if self.sinks:
            found["sinks"] = normal(self.heads)
        return found


def session(form: Form, format: str | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    if format is not None:
        with pytest.MonkeyPatch.context() as patch:
            if format == "avx2":
                patch.setenv(kernels.VARIABLE, format)
            kernels.register(options, ["attention.bfloat16" if format == "bfloat16" else "attention.float32"])
    return onnxruntime.InferenceSession(form.model(), options, providers=["CPUExecutionProvider"])


def run(form: Form, format: str | None, inputs: Mapping[str, NDArray[Any]]) -> tuple[Array, Array, Array]:
    """Returns the output and the caches, which were written in place."""
    binding = (opened := session(form, format)).io_binding()
    caches = {name: inputs[f"past_{name}"].copy() for name in ("key", "value")}
    for name, array in inputs.items():
        if not name.startswith("past_"):
            binding.bind_cpu_input(name, array)
    for name, array in caches.items():
        binding.bind_input(f"past_{name}", "cpu", 0, np.float32, array.shape, array.ctypes.data)
    binding.bind_output("output", "cpu")
    for name, array in caches.items():
        binding.bind_output(f"present_{name}", "cpu", 0, np.float32, array.shape, array.ctypes.data)
    opened.run_with_iobinding(binding)
    output: Array = binding.copy_outputs_to_cpu()[0]
    return output, caches["key"], caches["value"]


def reference(form: Form, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """The output, row by row in float64."""
    x = {name: array.astype(np.float64) for name, array in inputs.items()}
    length, total = x["query"].shape[1], int(inputs["total"])
    past, queries, keys = total - length, form.heads * form.dim, form.kv_heads * form.dim
    packed = np.split(x["query"], [queries, queries + keys], axis=2)
    parts = packed if form.packed else [x[name] for name in ("query", "key", "value")]
    query, key, value = (part.reshape(length, -1, form.dim) for part in parts)

    def turned(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        if not form.rotary:
            return rows
        cos, sin = (x[name][past:total, None] for name in ("cos", "sin"))
        half, to = form.rotary // 2, rows.copy()
        first, second = slice(half), slice(half, form.rotary)
        if form.interleaved:
            first, second = slice(0, form.rotary, 2), slice(1, form.rotary, 2)
        to[..., first] = rows[..., first] * cos - rows[..., second] * sin
        to[..., second] = rows[..., first] * sin + rows[..., second] * cos
        return to

    query, key = turned(query), turned(key)
    output = np.zeros((length, form.heads, form.dim))
    for head in range(form.heads):
        own = head // (form.heads // form.kv_heads)
        all_keys = np.concatenate([x["past_key"][0, own, :past], key[:, own]])
        all_values = np.concatenate([x["past_value"][0, own, :past], value[:, own]])
        for token in range(length):
            position = past + token
            seen = slice(max(0, position - form.window + 1) if form.window > 0 else 0, position + 1)
            scores = (form.scale or form.dim**-0.5) * all_keys[seen] @ query[token, head]
            if form.softcap:
                scores = form.softcap * np.tanh(scores / form.softcap)
            if form.sinks:
                scores = np.append(scores, x["sinks"][head])
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            output[token, head] = weights[: seen.stop - seen.start] @ all_values[seen]
    return output.reshape(1, length, -1)


FORMS = {
    "llama": Form(),
    "gemma": Form(heads=4, kv_heads=1, dim=256, rotary=256, window=100, packed=False),
    "capped": Form(heads=4, kv_heads=4, dim=32, rotary=0, softcap=5.0, sinks=True),
    "partial": Form(heads=8, kv_heads=2, dim=96, rotary=48, scale=0.125),
    "interleaved": Form(heads=6, kv_heads=1, dim=128, rotary=64, interleaved=True, window=33, sinks=True),
}
LENGTHS = [(1, 0), (1, 5), (1, 700), (3, 100), (15, 300), (16, 0), (17, 40), (100, 0), (70, 600)]
if SANITIZED in os.environ:
    LENGTHS = LENGTHS[::2]


@pytest.mark.parametrize(("length", "past"), LENGTHS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("format", FORMATS)
def test_attention_is_float64s(format: str, form: Form, length: int, past: int) -> None:
    inputs = form.inputs(length, past, past + length + 30)
    output, keys, values = run(form, format, inputs)
    # Weights of a softmax and standard normal values: results are at most about 3. bfloat16 has 8 bits.
    tolerance = 2e-2 if format == "bfloat16" and length >= 16 else 3e-6
    np.testing.assert_allclose(output, reference(form, inputs), rtol=0, atol=tolerance)
    _, theirs, their_values = run(form, None, inputs)
    total = past + length
    np.testing.assert_allclose(keys[:, :, :total], theirs[:, :, :total], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(values, their_values)
    assert np.isnan(keys[:, :, total:]).all()  # nothing beyond is written


@here
@pytest.mark.parametrize("length", [1, 40])
def test_caches_that_are_not_written_in_place(length: int) -> None:
    form = FORMS["llama"]
    inputs = form.inputs(length, 100, 100)  # no room: the outputs are longer
    inputs |= {name: np.concatenate([inputs[name]] * 2) for name in ("cos", "sin")}
    ours, theirs = (session(form, format).run(None, inputs) for format in ("float32", None))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        np.testing.assert_allclose(mine, other, rtol=0, atol=3e-6)


@pytest.mark.parametrize("format", FORMATS)
def test_large_scores_do_not_overflow(format: str) -> None:
    form = replace(FORMS["llama"], rotary=0)
    inputs = form.inputs(40, 300, 400)
    inputs["query"][..., : form.heads * form.dim] *= 1000
    output, _, _ = run(form, format, inputs)
    expected = reference(form, inputs)
    assert np.isfinite(output).all()
    # One key has nearly all weight: rounding may choose another of equal score, seldom.
    assert np.mean(np.abs(output - expected) < 0.02) > (0.5 if format == "bfloat16" else 0.99)


def _changed(inputs: dict[str, NDArray[Any]], change: str) -> dict[str, NDArray[Any]]:
    if change == "batch":
        twice = ("query", "past_key", "past_value", "last")
        return inputs | {name: np.concatenate([inputs[name]] * 2) for name in twice}
    if change == "width":
        return inputs | {"query": inputs["query"][..., :-32]}
    if change == "caches":
        return inputs | {"past_value": inputs["past_value"][:, :1]}
    if change == "lengths":
        return inputs | {"last": np.array([3], np.int32)}
    if change == "past":
        return inputs | {"last": np.array([5000], np.int32)}
    assert change == "tables"
    return inputs | {"cos": inputs["cos"][:10], "sin": inputs["sin"][:10]}


@here
@pytest.mark.parametrize(
    ("change", "said"),
    {
        "batch": "one sequence", "width": "queries, keys and values side by side", "caches": "caches of equal shapes",
        "lengths": "as many tokens in all", "past": "caches of equal shapes that hold what is past",
        "tables": "tables of cosines and sines for all positions",
    }.items(),
)  # fmt: skip
def test_inputs_that_do_not_fit_are_refused(change: str, said: str) -> None:
    form = FORMS["llama"]
    opened = session(form, "float32")
    with pytest.raises(Exception, match=f"lepton kernels: expected {said}"):
        opened.run(None, _changed(form.inputs(20, 30, 80), change))


@here
def test_heads_of_another_width_are_refused() -> None:
    form = replace(FORMS["llama"], dim=48, rotary=48)
    with pytest.raises(Exception, match="lepton kernels: expected heads of 32, 64"):
        session(form, "float32").run(None, form.inputs(20, 30, 80))
