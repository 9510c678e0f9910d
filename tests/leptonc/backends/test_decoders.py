"""Lowered decoders of every family, as the runtime runs them, against transformers; and which kernels they use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import runtime_edge
from leptonc.backends import onnxruntime as backend
from leptonc.backends.onnxruntime import linear
from leptonc.backends.onnxruntime.attention import WholeScores, WholeScoresConfig
from leptonc.ir.dialect import count_ops
from leptonc.passes.base import Manager
from leptonc.passes.quantize.weights import QuantizeWeights, QuantizeWeightsConfig
from sample_models import tiny_model
from tests.leptonc import models

Build = Callable[..., Path]
TOLERANCE = 1e-4  # absolute, logits spread by two; the bound that users are promised is 1e-3
LENGTH = 203
# Past every window of 8 and two growths of a cache of 64 rows, single tokens between odd chunks.
CHUNKS = (61, 1, 1, 7, 1, 63, 1, 1, 59, 3, 5)


def graph_of(path: Path) -> ir.Model:
    with runtime_edge.load(path) as model:
        name = model.variant.main.file
    return ir.load(path / name)


@pytest.mark.parametrize("name", models.DECODERS)
def test_fp32(name: str, artifact: Build) -> None:
    ids = models.token_ids(LENGTH)
    want = models.reference_logits(models.reference(name), ids)
    assert np.ptp(want) > 1
    with runtime_edge.load(artifact(f"sample:{name}", weights="fp32")) as model:
        assert np.abs(model.logits(ids) - want).max() <= TOLERANCE
        assert np.abs(models.runtime_logits(model, ids, CHUNKS) - want).max() <= TOLERANCE


FUSED = {  # ops a layer, and ops a graph beyond them
    "tiny-llama": ({"GroupQueryAttention": 1, "FusedMatMul": 5, "QuickGelu": 1, "Split": 0}, {"FusedMatMul": 1}),
    "tiny-llama3": ({"GroupQueryAttention": 1, "FusedMatMul": 5, "QuickGelu": 1, "Split": 0}, {"FusedMatMul": 1}),
    "tiny-qwen2": ({"GroupQueryAttention": 1, "FusedMatMul": 5, "QuickGelu": 1, "Split": 0}, {"FusedMatMul": 1}),
    "tiny-qwen3": (
        {"GroupQueryAttention": 1, "FusedMatMul": 5, "QuickGelu": 1, "Split": 1, "Reshape": 4},
        {"FusedMatMul": 1},
    ),
    "tiny-phi3": ({"GroupQueryAttention": 1, "FusedMatMul": 4, "QuickGelu": 1, "Split": 1}, {"FusedMatMul": 1}),
    "tiny-gemma3": (  # one head of keys: no axis for it
        {"GroupQueryAttention": 1, "FusedMatMul": 5, "Gelu": 1, "Split": 1, "Reshape": 2},
        {"FusedMatMul": 1},
    ),
    "tiny-gpt2": ({"GroupQueryAttention": 1, "MatMul": 4, "Gelu": 1, "Split": 0}, {"FusedMatMul": 1}),
    "tiny-starcoder2": ({"GroupQueryAttention": 1, "FusedMatMul": 4, "Gelu": 1, "Split": 0}, {"FusedMatMul": 1}),
}


@pytest.mark.parametrize("name", FUSED)
def test_kernels(name: str, artifact: Build) -> None:
    found = graph_of(artifact(f"sample:{name}", weights="fp32"))
    ops = {op.rpartition(".")[2]: count for op, count in count_ops(found).items()}
    config = tiny_model(name).config
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    per_layer, per_graph = FUSED[name]
    for op, count in per_layer.items():
        assert ops.get(op, 0) == count * layers + per_graph.get(op, 0), op
    assert "RotaryEmbedding" not in ops  # it is inside the attention
    # A sum of the residual stream and its norm are one, but Gemma's own, where the norm has no mean to take away.
    norms = {"SkipSimplifiedLayerNormalization", "LayerNormalization"}
    assert sum(ops.get(op, 0) for op in norms) >= 2 * layers
    assert "SkipLayerNormalization" not in ops
    assert not found.functions


@pytest.mark.parametrize("name", [n for n in models.DECODERS if n != "tiny-mistral"])
def test_attention_is_one_kernel_a_layer(name: str, artifact: Build) -> None:
    found = graph_of(artifact(f"sample:{name}", weights="fp32"))
    config = tiny_model(name).config
    nodes = [n for n in found.graph if n.op_type == "GroupQueryAttention"]
    assert len(nodes) == config.get("num_hidden_layers", config.get("n_layer"))
    assert not any(n.domain == "lepton" for n in found.graph)
    packed = {"tiny-llama", "tiny-llama3", "tiny-qwen2", "tiny-phi3", "tiny-gpt2", "tiny-gemma2", "tiny-starcoder2"}
    if name in packed:
        assert all(n.inputs[1] is None and n.inputs[2] is None for n in nodes)
    windows = [n.attributes["local_window_size"].value for n in nodes]
    if name == "tiny-gemma3":
        assert windows == [8, 8, -1, 8]
    elif name == "tiny-llama":
        assert windows == [-1, -1, -1]


def test_heads_of_24_are_rotated_before_the_kernel(artifact: Build) -> None:
    """Its own rotation takes tables of a multiple of 8 columns, and a head of 24 has 12."""
    ops = count_ops(graph_of(artifact("sample:tiny-mistral", weights="fp32")))
    assert ops["com.microsoft.GroupQueryAttention"] == 3
    assert ops["RotaryEmbedding"] == 6
    assert "lepton.CachedAttention" not in ops


@pytest.mark.parametrize("name", models.DECODERS)
def test_scores_are_scaled_in_the_tables(name: str, artifact: Build) -> None:
    """Where all of a head is rotated inside the kernel; else the kernel scales."""
    found = graph_of(artifact(f"sample:{name}", weights="fp32"))
    nodes = [n for n in found.graph if n.op_type == "GroupQueryAttention"]
    scales = {n.attributes["scale"].value for n in nodes}
    rotary = tiny_model(name).config.get("rope_parameters") or tiny_model(name).config
    partial = rotary.get("partial_rotary_factor", 1.0) < 1
    if partial or name in ("tiny-gpt2", "tiny-mistral"):  # no rotation, and one that the kernel cannot do
        assert scales != {1.0}
        assert not any("times" in str(v) for v in found.graph.initializers)
    else:
        assert scales == {1.0}
        assert all(n.inputs[at] is not None and "times" in str(n.inputs[at].name) for n in nodes for at in (7, 8))  # type: ignore[union-attr]


@pytest.mark.parametrize("name", models.DECODERS)
def test_whole_scores(name: str, tmp_path: Path) -> None:
    """The kernel's other way computes the same, windows among them."""
    found, ids = models.captured(name).model, models.token_ids(61)
    Manager().run(found, [*backend.lowerings(), WholeScores(WholeScoresConfig(31, 70))])
    backend.finish(found)
    nodes = [n for n in found.graph if n.op_type == "GroupQueryAttention"]
    assert nodes
    assert all(len(n.inputs) == 12 for n in nodes)
    want = models.reference_logits(models.reference(name), ids)
    assert np.abs(models.Graph(found, tmp_path).logits(ids, (31, 1, 29), 70) - want).max() <= TOLERANCE
    assert not WholeScores(WholeScoresConfig(31, 70))(found).modified


def test_scores_that_would_take_much_memory_stay_in_tiles() -> None:
    found = models.captured("tiny-llama").model
    Manager().run(found, backend.lowerings())
    (heads,) = {n.attributes["num_heads"].as_int() for n in found.graph if n.op_type == "GroupQueryAttention"}
    most = WholeScores.BYTES // (4 * 512 * heads)
    assert not WholeScores(WholeScoresConfig(512, most + 1))(found).modified
    assert WholeScores(WholeScoresConfig(512, most))(found).modified


# Quantized weights


def quantized(name: str, bits: int, symmetric: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, exact: bool) -> Any:
    """Returns logits of the dialect's graph with dequantized weights, and of the lowered graph."""
    found, manager, ids = models.captured(name).model, Manager(), models.token_ids(61)
    manager.run(found, [QuantizeWeights(QuantizeWeightsConfig(bits, 32, symmetric))])
    want = models.Graph(found, folder).logits(ids, [61], 61)
    if exact:
        monkeypatch.setattr(linear, "INT8_ACCURACY", 0)  # the kernels then compute in float32
    manager.run(found, backend.lowerings())
    backend.finish(found)
    ops = count_ops(found)
    assert "DequantizeLinear" not in ops
    assert ops["com.microsoft.GatherBlockQuantized"] == 1
    return want, models.Graph(found, folder).logits(ids, (31, 1, 29), 70)


@pytest.mark.parametrize(("bits", "symmetric"), [(2, True), (2, False), (4, True), (4, False), (8, True), (8, False)])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2", "tiny-qwen2"])
def test_codes_mean_the_same_to_the_kernels(
    name: str, bits: int, symmetric: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packing, zero points, joined rows and biases: with float32 activations the result is that of the dialect."""
    want, got = quantized(name, bits, symmetric, tmp_path, monkeypatch, exact=True)
    assert np.abs(got - want).max() <= 1e-3


# Every family with 4 bits; with 2 and 8, one without biases, one with, and one of other norms.
ROUNDED = [(name, 4) for name in models.DECODERS]
ROUNDED += [(name, bits) for name in ("tiny-llama", "tiny-gpt2", "tiny-gemma3") for bits in (2, 8)]


@pytest.mark.parametrize(("name", "bits"), ROUNDED)
def test_activations_are_rounded_to_int8(name: str, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels' own loss: 5 % of the logits' standard deviation at most (measured: 3 %)."""
    want, got = quantized(name, bits, True, tmp_path, monkeypatch, exact=False)
    loss = np.sqrt(np.square(got - want).mean()) / want.std()
    assert loss <= 0.05
    assert loss > 1e-5  # that is what accuracy level 4 is


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_a_tied_matrix_is_stored_once(weights: str, artifact: Build) -> None:
    """Llama's embedding is its head, Qwen3's is not."""
    bits = int(weights[3:])
    for name, matrices in (("tiny-llama", 1), ("tiny-qwen3", 2)):
        path = artifact(f"sample:{name}", weights=weights)
        stored = sum(f.stat().st_size for f in (path / "blobs").iterdir())
        config = tiny_model(name).config
        width, heads = config["hidden_size"], config["head_dim"]
        attention = heads * (2 * config["num_attention_heads"] + 2 * config["num_key_value_heads"]) * width
        mlp = 3 * width * config["intermediate_size"]
        count = config["num_hidden_layers"] * (attention + mlp) + matrices * config["vocab_size"] * width
        codes_and_scales = count * bits // 8 + count // 32 * 2
        tables = 2 * 1024 * heads // 2 * 4  # rotary, cos and sin
        assert codes_and_scales + tables <= stored <= codes_and_scales + tables + 8192  # norms, alignment


@pytest.mark.parametrize("weights", ["fp32", "int4"])
def test_the_shared_bytes_are_the_ones_read(weights: str, artifact: Build) -> None:
    graph = graph_of(artifact("sample:tiny-llama", weights=weights)).graph
    lookup = next(n for n in graph if n.op_type in ("Gather", "GatherBlockQuantized"))
    head = [n for n in graph if n.op_type in ("FusedMatMul", "MatMulNBits")][-1]
    places = []
    for value in (lookup.inputs[0], head.inputs[1]):
        assert value is not None
        tensor = value.const_value
        assert isinstance(tensor, ir.ExternalTensor)
        places.append((tensor.location, tensor.offset, tensor.length))
    assert places[0] == places[1]
