"""SmoothQuant's scales in a graph: what it computes stays, what linear layers read is divided."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from leptonc.calibrate.choice import smooth_scales
from leptonc.passes.base import Manager
from leptonc.passes.quantize.smooth import SmoothLinears, SmoothLinearsConfig, places
from tests.leptonc import models

IDS = models.token_ids(40)
ENCODER = ("input_ids", "attention_mask", "token_type_ids")


# Of each layer: what q, k and v read, and gate and up, behind norms; what down_proj reads, behind up_proj; o_proj.
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("tiny-llama", {"q_proj": "norm", "gate_proj": "norm", "down_proj": "linear", "o_proj": "linear"}),
        ("tiny-gemma3", {"q_proj": "norm", "gate_proj": "norm", "down_proj": "linear", "o_proj": "linear"}),
        ("tiny-qwen2", {"q_proj": "norm", "gate_proj": "norm", "down_proj": "linear", "o_proj": "linear"}),
        ("tiny-phi3", {"qkv_proj": "norm", "gate_up_proj": "norm", "down_proj": "linear"}),
        ("tiny-gpt2", {"c_attn": "norm", "c_fc": "norm", "attn.c_proj": "linear"}),
        ("tiny-bert", {"output.dense": "linear"}),  # what its norms make goes on beside the layers too
    ],
)
def test_the_graph_computes_the_same(name: str, wanted: dict[str, str], tmp_path: Path) -> None:
    model = models.captured(name).model
    found = {key: place for key, place in places(model).items() if not place.readers[0].path.endswith("lm_head")}
    kinds = {place.readers[0].path: "norm" if place.norm is not None else "linear" for place in found.values()}
    for ending, kind in wanted.items():
        at = [path for path in kinds if path.endswith(ending)]
        assert len(at) >= 2, ending
        assert {kinds[path] for path in at} == {kind}
    assert all(any(path.endswith(ending) for ending in wanted) for path in kinds), kinds
    random = np.random.default_rng(0)
    scales = {
        place.readers[0].path: place.shared(np.exp(random.uniform(-2, 2, place.width)).astype(np.float32))
        for place in found.values()
    }

    def run() -> np.ndarray:
        graph = models.Graph(model, tmp_path)
        if any(each.startswith("past_key_values") for each in graph.inputs):
            return graph.logits(IDS, [len(IDS)], 64)
        return graph(**models.padded(ENCODER))["embeddings"]

    values = {key: place.readers[0].weight.const_value.numpy().copy() for key, place in found.items()}  # type: ignore[union-attr]
    before = run()
    Manager().run(model, [SmoothLinears(SmoothLinearsConfig(), scales)])
    assert np.abs(run() - before).max() <= 1e-4 * np.abs(before).max()
    for key, place in found.items():
        weight = place.readers[0].weight.const_value.numpy()  # type: ignore[union-attr]
        factor = scales[place.readers[0].path]
        makers = [other.linear.weight for other in found.values() if other.linear is not None]
        if place.readers[0].weight not in makers:  # else its rows are divided too
            want = values[key] * (factor if place.readers[0].transposed else factor[:, None])
            assert np.abs(weight - want).max() <= 1e-6 * np.abs(want).max()
        assert not np.array_equal(weight, values[key])


def test_heads_that_share_values_share_scales() -> None:
    model = models.captured("tiny-llama").model
    place = next(each for each in places(model).values() if each.readers[0].path.endswith("layers.0.self_attn.o_proj"))
    assert place.heads == (4, 2)
    scales = np.exp(np.random.default_rng(0).standard_normal(64)).astype(np.float32)
    shared = place.shared(scales)
    split = shared.reshape(2, 2, 16)
    assert np.array_equal(split[:, 0], split[:, 1])
    assert np.allclose(split[:, 0], np.sqrt(np.prod(scales.astype(np.float64).reshape(2, 2, 16), axis=1)), rtol=1e-5)
    assert np.array_equal(place.source(shared), split[:, 0].reshape(-1))


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_scales_are_those_of_the_paper(strength: float) -> None:
    random = np.random.default_rng(0)
    inputs, weights = random.random(6) + 0.1, random.standard_normal((5, 6))
    found = smooth_scales(inputs.astype(np.float32), weights.astype(np.float32), strength)
    want = inputs**strength / np.abs(weights).max(0) ** (1 - strength)
    assert np.allclose(found, want / np.exp(np.log(want).mean()), rtol=1e-5)


def test_features_that_are_always_zero() -> None:
    inputs, weights = np.array([0, 2, 3], np.float32), np.array([[1, 0, 2]], np.float32)
    assert np.isfinite(smooth_scales(inputs, weights, 0.5)).all()
    assert smooth_scales(inputs, weights, 0.5).tolist()[:2] == [1, 1]


def test_what_is_read_by_others_stays() -> None:
    model = models.captured("tiny-bert").model
    paths = {place.readers[0].path for place in places(model).values()}
    assert not any(path.endswith(("query", "intermediate.dense")) for path in paths)
