"""An emitted graph as the reference: what transformers computes, and what is seen of its linear layers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from leptonc.build.to_onnx import emit
from leptonc.evaluate import graph as module
from leptonc.evaluate.graph import GraphReference, emitted_graph
from leptonc.evaluate.noise import OutputNoise, Rounded
from leptonc.evaluate.reference import Reference
from leptonc.frontend.tasks import task_of
from leptonc.options import BuildOptions
from leptonc.passes.quantize.blocks import Codes, Format, round_to_nearest
from leptonc.sources import open_source
from tests.leptonc import models

FORM = Format(4, 32, True)


def codes(rows: np.ndarray, step: int) -> Codes:
    return round_to_nearest(rows, FORM)


@pytest.mark.parametrize("name", ["tiny-gemma2", "tiny-gpt2"])
def test_logits_and_noise(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of rows follow each other, soft caps are there (1e-4); noise is what transformers' modules show."""
    monkeypatch.setattr(module, "BLOCK_BYTES", 4 * 512 * 7)
    emit(BuildOptions(f"sample:{name}", out=tmp_path / "graph", check=False))
    ids = models.token_ids(40)
    with open_source(str(tmp_path / "graph")) as source, open_source(f"sample:{name}") as original:
        shapes = {
            path: (weight.shape if turned else weight.shape[::-1])
            for path, weight, turned in _layers(original.config["model_type"], original.weights)
        }
        layers = {path: Rounded((shape[0], shape[1]), FORM, codes) for path, shape in shapes.items()}
        seen = OutputNoise(layers)
        found = list(GraphReference(emitted_graph(source), tmp_path, seen).logits(ids))
        assert [start for start, _ in found] == list(range(0, 40, 7))
        wanted = models.reference_logits(models.reference(name), ids)
        assert np.abs(np.concatenate([block for _, block in found]) - wanted).max() <= 1e-4
        watched = OutputNoise(layers)
        list(Reference(original, task_of(original.config, None), watched).logits(ids))
        assert seen.decibels().keys() == set(layers)
        assert seen.decibels() == pytest.approx(watched.decibels(), abs=0.02)
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]


def _layers(family: str, weights: object) -> list[tuple[str, object, bool]]:
    names = ("transformer.h.1.mlp.c_proj",) if family == "gpt2" else ("model.layers.1.mlp.down_proj",)
    return [(name, weights[f"{name}.weight"], family != "gpt2") for name in names]  # type: ignore[index]


@pytest.mark.parametrize("name", ["tiny-sentence", "tiny-bert-classifier"])
def test_rows(name: str, tmp_path: Path) -> None:
    emit(BuildOptions(f"sample:{name}", out=tmp_path / "graph", check=False))
    texts = [models.token_ids(n, seed=i) for i, n in enumerate((19, 3, 1))]
    with open_source(str(tmp_path / "graph")) as source, open_source(f"sample:{name}") as original:
        found = GraphReference(emitted_graph(source), tmp_path).rows(texts)
        wanted = Reference(original, task_of(original.config, original.modules)).rows(texts)
    assert np.abs(found - wanted).max() <= 1e-5


def test_a_weight_is_read_only_where_it_is_looked_at() -> None:
    noise = OutputNoise({"a": Rounded((4, 32), FORM, codes)})
    read: list[str] = []

    def weight(name: str) -> np.ndarray:
        read.append(name)
        return np.ones((4, 32), np.float32)

    for name in ("a", "b", "a"):
        noise.see(name, np.random.default_rng(0).standard_normal((1, 40, 32)).astype(np.float32), partial(weight, name))
    assert read == ["a"]
