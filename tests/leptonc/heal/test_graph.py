"""Graphs on torch are graphs on ONNX Runtime: outputs, caches, quantized weights; and their gradients are right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from leptonc.errors import InputError
from leptonc.heal import graph as graph_module
from leptonc.heal.graph import Graph, writable
from leptonc.heal.trainable import put
from leptonc.ir import edit
from leptonc.passes.quantize.weights import QuantizeWeights, QuantizeWeightsConfig
from tests.leptonc import models

LENGTH, PAST, CAPACITY = 21, 5, 40


def given_to(model: ir.Model) -> dict[str, np.ndarray]:
    """Two rows of a decoder over caches that differ and hold something, or an encoder's padded texts."""
    random = np.random.default_rng(0)
    names = [str(value.name) for value in model.graph.inputs]
    if "past_length" not in names:
        return models.padded(names)
    ids = np.array([models.token_ids(LENGTH, seed) for seed in (1, 2)])
    caches = {
        str(v.name): random.standard_normal((2, v.shape[1], CAPACITY, v.shape[3])).astype(np.float32)  # type: ignore[index]
        for v in model.graph.inputs
        if str(v.name).startswith("past_key_values.")
    }
    return {"input_ids": ids, "past_length": np.array([PAST, 0]), **caches}


def on_torch(graph: Graph, given: dict[str, np.ndarray], variables: Any = None) -> list[np.ndarray]:
    with torch.no_grad():
        return [x.numpy() for x in graph({n: writable(x) for n, x in given.items()}, variables)]


def test_several_inputs_read_each_weight_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.captured("tiny-llama", max_seq_len=64).model
    graph = Graph(model, keep=False)
    texts = [{**given_to(model), "input_ids": np.array([models.token_ids(LENGTH, s) for s in pair])}
             for pair in ((1, 2), (3, 4), (5, 6))]  # fmt: skip
    alone = [on_torch(graph, text)[0] for text in texts]
    read: list[str] = []
    as_tensor = graph_module.as_tensor
    monkeypatch.setattr(graph_module, "as_tensor", lambda value: read.append(value.name) or as_tensor(value))
    with torch.no_grad():
        together = graph.many([{n: writable(x) for n, x in text.items()} for text in texts])
    for wanted, (found,) in zip(alone, together, strict=True):
        np.testing.assert_array_equal(found.numpy(), wanted)
    uses = {n: sum(1 for node in model.graph for v in node.inputs if v is not None and v.name == n) for n in read}
    assert all(read.count(name) <= uses[name] for name in read)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        *((name, 0) for name in (*models.DECODERS, *models.ENCODERS) if name not in models.FEW),
        *((name, 4) for name in ("tiny-llama", "tiny-gemma3", "tiny-gpt2", "tiny-bert")),
    ],
)
def test_outputs_are_onnx_runtimes(name: str, bits: int, tmp_path: Path) -> None:
    model = models.captured(name, max_seq_len=64).model
    if bits:
        QuantizeWeights(QuantizeWeightsConfig(bits=bits, symmetric=False, half_scales=True))(model)
    given = given_to(model)
    outputs = [str(value.name) for value in model.graph.outputs]
    found = on_torch(Graph(model, outputs), given)
    wanted = models.Graph(model, tmp_path)(**given)
    for output, each in zip(outputs, found, strict=True):
        scale = max(1.0, float(np.abs(wanted[output]).max()))
        np.testing.assert_allclose(each, wanted[output], atol=1e-4 * scale, rtol=0, err_msg=output)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma2"])
def test_an_empty_cache_that_is_just_filled_is_that_of_any_size(name: str) -> None:
    model = models.captured(name, max_seq_len=64).model
    graph = Graph(model)
    ids = np.array([models.token_ids(LENGTH, 3)])
    found = []
    for capacity in (LENGTH, LENGTH + 9):
        shapes = {str(v.name): v.shape for v in model.graph.inputs if str(v.name).startswith("past_key_values.")}
        caches = {n: np.zeros((1, s[1], capacity, s[3]), np.float32) for n, s in shapes.items()}  # type: ignore[index]
        found += on_torch(graph, {"input_ids": ids, "past_length": np.zeros(1, np.int64), **caches})
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma2", "tiny-bert", "tiny-gpt2"])
def test_gradients_are_finite_differences(name: str) -> None:
    """In float64, of scales and zero points of weights, a norm's gain and low-rank terms, along random directions."""
    model = models.captured(name, max_seq_len=64).model
    QuantizeWeights(QuantizeWeightsConfig(bits=4, symmetric=False, embeddings=False))(model)
    graph = Graph(model)
    given = {
        n: torch.from_numpy(x.astype(np.float64) if x.dtype == np.float32 else x) for n, x in given_to(model).items()
    }
    floats = [
        n for n, v in model.graph.initializers.items()
        if v.dtype == ir.DataType.FLOAT and v.const_value is not None and v.const_value.size > 1
    ]  # fmt: skip
    values = {n: torch.from_numpy(model.graph.initializers[n].const_value.numpy().astype(np.float64)) for n in floats}  # type: ignore[union-attr]
    codes = next(n for n in graph.weights if n.endswith(".codes"))
    rows, columns = (int(d) for d in model.graph.initializers[codes].shape or ())  # type: ignore[arg-type]
    torch.manual_seed(0)
    values[f"{codes}.low_rank.a"] = torch.randn(rows, 2, dtype=torch.float64) * 0.1
    values[f"{codes}.low_rank.b"] = torch.randn(2, columns, dtype=torch.float64) * 0.1
    for scales in [n for n in values if n.endswith(".scales")]:
        moved = torch.randn(values[scales].shape, dtype=torch.float64)
        values[f"{scales.removesuffix('.scales')}.zeros.moved"] = moved
    weigh = torch.randn(graph(given, values)[0].shape, dtype=torch.float64)

    def loss(at: dict[str, torch.Tensor]) -> torch.Tensor:
        return (graph(given, at)[0] * weigh).sum()

    kinds = {"scales": ".scales", "zeros": ".zeros.moved", "norm": "norm", "low rank": ".low_rank."}
    for kind, part in kinds.items():
        names = [n for n in values if part in n.lower() or (kind == "norm" and ".ln_" in n)]
        assert names, kind
        leaves = {n: values[n].clone().requires_grad_() for n in names}
        loss({**values, **leaves}).backward()
        way = {n: torch.randn_like(leaf) * leaf.detach().abs().mean() for n, leaf in leaves.items()}
        slope = sum(float((leaf.grad * way[n]).sum()) for n, leaf in leaves.items() if leaf.grad is not None)
        ends = [float(loss({**values, **{n: values[n] + s * way[n] for n in names}})) for s in (1e-6, -1e-6)]
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-6), kind


@pytest.mark.parametrize("embeddings", [False, True])
def test_zero_points_that_move_are_other_zero_points(embeddings: bool) -> None:
    """Of linear layers, and of an embedding whose rows are read: the graph whose weights have them stored (1e-5)."""
    model = models.captured("tiny-gpt2", max_seq_len=64).model
    QuantizeWeights(QuantizeWeightsConfig(bits=4, symmetric=False, embeddings=embeddings))(model)
    random, given = np.random.default_rng(0), given_to(model)
    stored = {n: v.const_value for n, v in model.graph.initializers.items() if n.endswith(".zeros")}
    old = {n: tensor.numpy().astype(np.float32) for n, tensor in stored.items() if tensor is not None}
    new = {n: random.integers(0, 16, x.shape).astype(np.float32) for n, x in old.items()}
    graph = Graph(model)
    variables = {f"{n}.moved": torch.from_numpy(new[n] - old[n]) for n in old}
    moved = graph({n: torch.from_numpy(x) for n, x in given.items()}, variables)[0].numpy()
    before = on_torch(Graph(model), given)[0]
    put(model, new)
    np.testing.assert_allclose(moved, on_torch(Graph(model), given)[0], atol=1e-5 * np.abs(moved).max())
    assert np.abs(moved - before).max() > 0.1 * np.abs(before).max()


def test_a_part_of_a_graph_runs_from_values_that_are_given() -> None:
    model = models.captured("tiny-llama", max_seq_len=64).model
    head = next(node for node in reversed(list(model.graph)) if node.op_type == "MatMul")
    inner = str(head.inputs[0].name)  # type: ignore[union-attr]
    given = given_to(model)
    hidden, logits = on_torch(Graph(model, [inner, "logits"]), given)
    upper = Graph(model, ["logits"], [inner])
    assert upper.inputs == (inner,)
    np.testing.assert_array_equal(on_torch(upper, {inner: hidden})[0], logits)


def test_an_operator_that_is_not_known_is_named_with_its_module() -> None:
    model = models.captured("tiny-llama", max_seq_len=64).model
    node = next(n for n in model.graph if n.op_type == "Swish")
    (strange,) = edit.insert(node, "Shrink", [node.inputs[0]], module="model.layers.0.mlp")
    edit.replace(node.outputs[0], strange)
    with pytest.raises(InputError, match=r"model\.layers\.0\.mlp: .* found Shrink"):
        Graph(model)
