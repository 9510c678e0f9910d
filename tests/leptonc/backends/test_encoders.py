"""Lowered encoders against transformers: batches with padding, embeddings, probabilities."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tokenizers import Tokenizer

import runtime_edge
from leptonc.backends import onnxruntime as backend
from leptonc.ir.dialect import count_ops
from leptonc.passes.base import Manager
from leptonc.passes.quantize.weights import QuantizeWeights, QuantizeWeightsConfig
from sample_models import tiny_model
from tests.leptonc import models

Build = Callable[..., Path]
TEXTS = (
    "A model is a function.",
    "Two",
    "The river runs through the town, past the mill and under the old bridge, and on to the sea." * 2,
    "",
)


def given_of(path: Path, texts: tuple[str, ...], pad: int) -> dict[str, np.ndarray]:
    """Tokenizes as transformers would: one batch, padded on the right."""
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    encoded = [tokenizer.encode(text).ids for text in texts]
    shape = (len(encoded), max(map(len, encoded)))
    ids, mask = np.full(shape, pad, np.int64), np.zeros(shape, np.int64)
    for row, found in enumerate(encoded):
        ids[row, : len(found)], mask[row, : len(found)] = found, 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", models.ENCODERS)
def test_fp32(name: str, artifact: Build) -> None:
    path = artifact(f"sample:{name}", weights="fp32")
    with runtime_edge.load(path) as model:
        given = given_of(path, TEXTS, model.manifest.tokenizer.pad_token_id or 0)
        want = models.reference_embeddings(name, given)
        if model.manifest.task == "text-embedding":
            got = model.encode(TEXTS)
            cosine = (got * want).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)
            assert cosine.min() >= 0.99999
            assert np.abs(got - want).max() <= 1e-4
            assert np.abs(model.encode(TEXTS, batch_size=1) - want).max() <= 1e-4
        else:
            odds = np.exp(want.astype(np.float64))
            likely = odds / odds.sum(1, keepdims=True)
            found = model.classify(TEXTS)
            assert np.abs(np.array([list(c.scores.values()) for c in found]) - likely).max() <= 1e-5
            labels = list(tiny_model(name).config["id2label"].values())
            assert [c.label for c in found] == [labels[i] for i in likely.argmax(1)]


@pytest.mark.parametrize("name", models.ENCODERS)
def test_kernels(name: str, artifact: Build) -> None:
    path = artifact(f"sample:{name}", weights="fp32")
    ops = count_ops(ir.load(path / "cpu.onnx"))
    config = tiny_model(name).config
    layers = config.get("num_hidden_layers", config.get("n_layers"))
    assert ops["Attention"] == layers
    assert ops["Where"] == 1  # one mask of numbers for all
    assert ops["LayerNormalization"] >= 2 * layers  # with the sum before it one op would take longer
    assert not {"com.microsoft.MultiHeadAttention", "Softmax", "MatMul", "Transpose", "Split"} & set(ops)


def test_what_pads_a_batch_counts_for_nothing(artifact: Build) -> None:
    """The mask is numbers that are added: rows beside longer ones are those of each text alone."""
    with runtime_edge.load(artifact("sample:tiny-sentence", weights="fp32")) as model:
        alone = np.concatenate([model.encode([text]) for text in TEXTS])
        assert np.abs(model.encode(TEXTS) - alone).max() <= 1e-6


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True)])
def test_quantized(bits: int, symmetric: bool, tmp_path: Path) -> None:
    """Activations are rounded to int8 by the kernels: cosine similarity above 0.995 (measured: 0.999)."""
    model, manager = models.captured("tiny-sentence").model, Manager()
    manager.run(model, [QuantizeWeights(QuantizeWeightsConfig(bits, 32, symmetric))])
    graph = models.Graph(model, tmp_path)
    given = models.padded(graph.inputs)
    want = graph(**given)["embeddings"]
    plain = models.reference_embeddings("tiny-sentence", given)
    assert np.abs(want - plain).max() > 1e-4
    manager.run(model, backend.lowerings())
    backend.finish(model)
    assert count_ops(model)["com.microsoft.MatMulNBits"] == 18
    got = models.Graph(model, tmp_path)(**given)["embeddings"]
    assert (got * want).sum(1).min() >= 0.995
    assert (got * want).sum(1).max() <= 1.0001
