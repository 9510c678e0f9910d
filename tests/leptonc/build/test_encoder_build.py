"""Whole builds of encoders, against sentence-transformers and transformers' pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

import runtime_edge
from leptonc.build.to_artifact import build
from leptonc.options import BuildOptions
from leptonc.report import as_plain
from leptonc.sources import open_source
from sample_models.export import write_directory

TEXTS = ["What is it?", "the WORKSHOP by the river turned out lamps, and one winter it turned out a machine", ""]
PROMPTS = {"query": "Query: ", "document": "A passage: "}
# SentenceTransformer(directory).encode(TEXTS)[:, :4] of sentence-transformers 6.2.0.
EMBEDDINGS = [
    [-0.11222, -0.04077, -0.12435, 0.29336],
    [-0.22732, -0.01708, -0.10313, 0.29644],
    [-0.08887, -0.10281, -0.13243, 0.25281],
]
QUERIES = [[-0.12802, 0.04013], [-0.14573, 0.08585], [0.09534, -0.12596]]  # encode_query(TEXTS)[:, :2]


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def embedding_model(path: Path) -> Path:
    """A model with all that sentence-transformers does: prompts, lower case, a limit, poolings, a linear layer."""
    with open_source("sample:tiny-sentence") as source:
        write_directory(source, path)
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Normalize", "3_Normalize")]
    listing = [{"path": folder, "type": f"sentence_transformers.models.{kind}"} for kind, folder in kinds]
    write_json(path / "modules.json", [{"idx": i, "name": str(i), **entry} for i, entry in enumerate(listing)])
    write_json(path / "sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": True})
    settings = {"prompts": PROMPTS, "default_prompt_name": "document", "truncate_dim": 20}
    write_json(path / "config_sentence_transformers.json", settings)
    modes = {"pooling_mode_weightedmean_tokens": True, "pooling_mode_max_tokens": True, "include_prompt": False}
    write_json(path / "1_Pooling" / "config.json", {"word_embedding_dimension": 64, **modes})
    tanh = "torch.nn.modules.activation.Tanh"
    write_json(path / "2_Dense" / "config.json", {"in_features": 128, "out_features": 24, "activation_function": tanh})
    rng = np.random.default_rng(5)
    weights = {"linear.weight": rng.normal(0, 0.1, (24, 128)), "linear.bias": rng.normal(0, 0.1, 24)}
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    safetensors.numpy.save_file(arrays, path / "2_Dense" / "model.safetensors")
    return path


@pytest.fixture(scope="module")
def embedding_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedding_model(tmp_path_factory.mktemp("sentence") / "model")


@pytest.fixture(scope="module")
def embedding(embedding_directory: Path) -> Iterator[runtime_edge.Model]:
    out = embedding_directory.parent / "model.lepton"
    result = build(BuildOptions(str(embedding_directory), weights="fp32", out=out))
    fidelity = as_plain(result.report)["variants"]["cpu"]["fidelity"]
    assert fidelity["max_abs_diff"] < 1e-5
    assert ("sentence_transformers" in fidelity) == (find_spec("sentence_transformers") is not None)
    with runtime_edge.load(out) as model:
        yield model


def test_embeddings_are_the_librarys(embedding: runtime_edge.Model) -> None:
    found = embedding.encode(TEXTS)
    assert found.shape == (3, 20)
    np.testing.assert_allclose(found[:, :4], EMBEDDINGS, rtol=0, atol=2e-5)
    np.testing.assert_allclose(embedding.encode_query(TEXTS)[:, :2], QUERIES, rtol=0, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(embedding.encode(TEXTS, truncate_dim=24), axis=1), 1, rtol=1e-6)


def test_prompts_and_lower_case(embedding: runtime_edge.Model) -> None:
    upper = [text.upper() for text in TEXTS]
    np.testing.assert_array_equal(embedding.encode(upper), embedding.encode(TEXTS))
    apart = embedding.encode(TEXTS, prompt="a PASSAGE: ")
    np.testing.assert_array_equal(apart, embedding.encode(TEXTS))
    # The prompt is left out of the pooling where it is given as one, and part of the text where it is not.
    within = embedding.encode(["A passage: What is it?"], prompt="")
    assert np.abs(within - apart[:1]).max() > 1e-3


@pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed")
def test_the_whole_model_against_the_library(embedding: runtime_edge.Model, embedding_directory: Path) -> None:
    import sentence_transformers

    theirs = sentence_transformers.SentenceTransformer(str(embedding_directory), device="cpu", local_files_only=True)
    requests: list[dict[str, Any]] = [{}, {"prompt_name": "query"}, {"prompt": "x y: "}, {"truncate_dim": 5}]
    for options in [*requests, {"truncate_dim": 7, "normalize_embeddings": True}]:
        np.testing.assert_allclose(embedding.encode(TEXTS, **options), theirs.encode(TEXTS, **options), atol=5e-6)
    np.testing.assert_allclose(embedding.encode_document(TEXTS), theirs.encode_document(TEXTS), atol=5e-6)


@pytest.fixture(scope="module")
def scoring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, runtime_edge.Model]]:
    """A classifier of one label, as rerankers are, whose `CrossEncoder` gives logits and reads 16 tokens."""
    path = tmp_path_factory.mktemp("scoring") / "model"
    with open_source("sample:tiny-bert-classifier") as source:
        labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": None}
        activation = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
        source.config = {**source.config, **labels, **activation}
        source.tokenizer_config = {**source.tokenizer_config, "model_max_length": 16}
        write_directory(source, path)
    arrays: dict[str, NDArray[Any]] = safetensors.numpy.load_file(path / "model.safetensors")
    arrays |= {name: array[:1].copy() for name, array in arrays.items() if name.startswith("classifier.")}
    safetensors.numpy.save_file(arrays, path / "model.safetensors", metadata={"format": "pt"})
    result = build(BuildOptions(str(path), weights="fp32", out=path.parent / "model.lepton"))
    fidelity = as_plain(result.report)["variants"]["cpu"]["fidelity"]
    assert "top1_agreement" not in fidelity  # with one label it says nothing
    assert fidelity["score_error"] < 1e-6
    with runtime_edge.load(result.path) as model:
        yield path, model


PAIRS = [("What is it?", "a river ran low that summer and people walked across it, one by one"), ("one", "two")]


def test_one_label_against_the_pipeline(scoring: tuple[Path, runtime_edge.Model]) -> None:
    import transformers

    path, model = scoring
    pipeline = transformers.pipeline("text-classification", str(path), device="cpu")
    found = model.classify([TEXTS[0], TEXTS[1], *PAIRS])
    wanted = pipeline([TEXTS[0], TEXTS[1], *({"text": a, "text_pair": b} for a, b in PAIRS)])
    assert [each.label for each in found] == [each["label"] for each in wanted] == ["LABEL_0"] * 4
    np.testing.assert_allclose([each.score for each in found], [each["score"] for each in wanted], atol=2e-6)
    assert len({round(each.score, 4) for each in found}) == 4  # no two alike, and none 1 as a softmax would have it


def test_rerank_against_the_models_own_logits(scoring: tuple[Path, runtime_edge.Model]) -> None:
    import torch
    import transformers

    path, model = scoring
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(path))
    original = transformers.AutoModelForSequenceClassification.from_pretrained(str(path))
    for query, text in PAIRS:
        given = tokenizer(query, text, return_tensors="pt", truncation="longest_first")
        assert given["input_ids"].shape[1] <= 16
        with torch.inference_mode():
            wanted = float(original(**given).logits)
        np.testing.assert_allclose(model.rerank(query, [text]), [wanted], atol=1e-5)


@pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed")
def test_rerank_against_the_library(scoring: tuple[Path, runtime_edge.Model]) -> None:
    import sentence_transformers

    path, model = scoring
    theirs = sentence_transformers.CrossEncoder(str(path), device="cpu", local_files_only=True)
    found = [float(model.rerank(query, [text])[0]) for query, text in PAIRS]
    np.testing.assert_allclose(found, theirs.predict(PAIRS), atol=1e-5)


def test_a_target_that_cuts_shorter_than_the_model_is_told_of(tmp_path: Path) -> None:
    def warnings(**options: Any) -> list[str]:
        out = tmp_path / "m.lepton"
        result = build(BuildOptions("sample:tiny-bert", weights="fp32", out=out, force=True, **options))
        found: list[str] = as_plain(result.report).get("warnings", [])
        return found

    assert warnings(target="cpu,max_seq_len=24") == [
        "texts are cut at 24 tokens, the target's length, where the model reads 512: --max-seq-len 512 reads as many"
    ]
    assert warnings(target="cpu,max_seq_len=24", max_seq_len=32) == []  # what was asked for
