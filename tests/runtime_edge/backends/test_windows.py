"""Attention windows are what the artifact has, in each version of ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import runtime_edge
from runtime_edge.backends.windows import rewritten
from runtime_edge.errors import ArtifactError
from tests.runtime_edge import tiny


def next_of(weights: tiny.Weights, tokens: list[int]) -> int:
    return int(tiny.reference_logits(weights, tokens, window=5)[-1].argmax())


@pytest.mark.parametrize("kernels", ["", "onnxruntime"])
def test_a_window_holds_the_tokens_own_position(
    kernels: str, tmp_path: Path, weights: tiny.Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompt and steps against float64, by whatever version is installed."""
    monkeypatch.setenv("LEPTON_KERNELS", kernels)
    tokens = [int(token) for token in np.random.default_rng(1).integers(0, 256, 24)]
    expected = tiny.reference_logits(weights, tokens, window=5)
    assert np.abs(expected - tiny.reference_logits(weights, tokens, window=6)).max() > 0.1  # what is one off
    with runtime_edge.load(tiny.write_decoder(tmp_path, weights=weights, window=5), threads=1) as model:
        whole = model.logits(tokens)
        steps = model.generate(tokens[:9], max_new_tokens=12).token_ids
    np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-4)
    for at in range(len(steps)):
        assert steps[at] == next_of(weights, [*tokens[:9], *steps[:at]])


def graph(path: Path, *windows: int, op: str = "GroupQueryAttention") -> Path:
    nodes = [
        helper.make_node(op, ["x"], [f"y{at}"], domain="com.microsoft", num_heads=8, local_window_size=window)
        for at, window in enumerate(windows)
    ]
    made = helper.make_model(helper.make_graph(nodes, "g", [], []))
    path.write_bytes(made.SerializeToString())
    return path


def windows_of(data: bytes) -> list[int]:
    nodes = onnx.load_from_string(data).graph.node
    return [each.i for node in nodes for each in node.attribute if each.name == "local_window_size"]


def test_an_older_version_counts_the_own_position_beside_the_window(tmp_path: Path) -> None:
    path = graph(tmp_path / "g.onnx", 2, 127, 128, 129, 16384, 2**20, -1)
    changed = rewritten(path, "1.23.2")
    assert changed is not None
    assert windows_of(changed) == [1, 126, 127, 128, 16383, 2**20 - 1, -1]
    before, after = onnx.load(path), onnx.load_from_string(changed)
    assert len(changed) == path.stat().st_size
    for old, new in zip(before.graph.node, after.graph.node, strict=True):  # nothing else is changed
        new.attribute[0].i = old.attribute[0].i
    assert before == after


@pytest.mark.parametrize("version", ["1.24.0", "1.32.0", "2.0.0"])
def test_later_versions_have_the_graph_as_it_is(version: str, tmp_path: Path) -> None:
    assert rewritten(graph(tmp_path / "g.onnx", 8), version) is None


def test_nothing_is_changed_where_there_is_no_window(tmp_path: Path) -> None:
    assert rewritten(graph(tmp_path / "g.onnx", -1), "1.23.2") is None
    assert rewritten(graph(tmp_path / "g.onnx", 8, op="Other"), "1.23.2") is None
    assert rewritten(graph(tmp_path / "g.onnx"), "1.23.2") is None


def test_a_window_that_an_older_version_cannot_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"windows of two positions or more for ONNX Runtime 1\.23, found 1"):
        rewritten(graph(tmp_path / "g.onnx", 1), "1.23.2")
