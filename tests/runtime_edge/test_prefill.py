"""A second graph for prefill: long runs go through it, short ones and single tokens do not, and the cache is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import runtime_edge
from runtime_edge.backends.onnxruntime import PREFILL_LEAST
from runtime_edge.errors import ArtifactError
from tests.runtime_edge import tiny
from tests.runtime_edge.test_verify import edit

LONG = [int(token) for token in np.random.default_rng(7).integers(0, 200, 3 * PREFILL_LEAST)]
SHORT = LONG[: PREFILL_LEAST - 1]


@pytest.fixture(scope="module")
def others() -> tiny.Weights:
    return tiny.Weights.seeded(5)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, weights: tiny.Weights, others: tiny.Weights) -> Path:
    return tiny.write_decoder(tmp_path_factory.mktemp("both"), weights=weights, prefill=others)


def test_long_runs_take_the_graph_for_prefill(both: Path, built: Path, others: tiny.Weights, tmp_path: Path) -> None:
    alone = tiny.write_decoder(tmp_path / "others", weights=others)
    with runtime_edge.load(both) as two, runtime_edge.load(built) as first, runtime_edge.load(alone) as second:
        np.testing.assert_array_equal(two.score(LONG), second.score(LONG))
        np.testing.assert_array_equal(two.score(SHORT), first.score(SHORT))
        assert not np.allclose(first.score(LONG), second.score(LONG))


def test_both_graphs_share_the_cache(built: Path, weights: tiny.Weights, tmp_path: Path) -> None:
    """With the same weights twice, tokens and logits past the first growth of the buffers are those of one graph."""
    same = tiny.write_decoder(tmp_path / "same", weights=weights, prefill=weights)
    with runtime_edge.load(same) as two, runtime_edge.load(built) as one:
        found, expected = (each.generate(LONG, max_new_tokens=60, stop_token_ids=[]) for each in (two, one))
        assert found.token_ids == expected.token_ids
        more = [*LONG, *found.token_ids, *SHORT]  # a prefix from the cache, then a short run
        assert two.generate(more, max_new_tokens=5).token_ids == one.generate(more, max_new_tokens=5).token_ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "elsewhere.onnx"}, "expected a file listed in `files`, found 'elsewhere.onnx'"),
        ({"purpose": "speed"}, "expected a purpose among any, prompts, found 'speed'"),
        ({"part": "encoder"}, "expected a part among decoder, found 'encoder'"),
        ({"purpose": "any"}, "expected each name once, found 'decoder for any' twice"),
        ({"blobs": []}, "expected external data in the blobs"),
    ],
)
def test_what_is_refused(
    weights: tiny.Weights, others: tiny.Weights, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    artifact = tiny.write_decoder(tmp_path / "both", weights=weights, prefill=others)
    edit(artifact, lambda data: data["variants"][0]["graphs"][1].update(change))
    with pytest.raises(ArtifactError, match=message):
        runtime_edge.load(artifact)


def test_an_engine_has_no_graph_for_prompts(weights: tiny.Weights, others: tiny.Weights, tmp_path: Path) -> None:
    artifact = tiny.write_decoder(tmp_path / "both", weights=weights, prefill=others)
    edit(artifact, lambda data: data["variants"][0].update(backend="tensorrt"))
    with pytest.raises(ArtifactError, match="expected a graph for prompts of a part with states that onnxruntime runs"):
        runtime_edge.load(artifact)
