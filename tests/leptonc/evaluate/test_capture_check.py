"""A captured graph that does not compute what the model does is told, with the first module that differs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from leptonc.errors import WrongCaptureError
from leptonc.evaluate.capture_check import check_capture
from leptonc.evaluate.measure import sample_of
from leptonc.evaluate.pieces import outputs_in_pieces
from leptonc.evaluate.text import load_text
from leptonc.frontend.capture import capture
from leptonc.ir import edit
from leptonc.sources import open_source

Fault = Callable[[ir.Graph], None]


def check(name: str, fault: Fault | None = None) -> None:
    with open_source(f"sample:{name}") as source:
        captured = capture(source, max_seq_len=128)
        if fault is not None:
            fault(captured.model.graph)
        check_capture(sample_of(source, captured, load_text(None), "built-in"))


def attention(graph: ir.Graph, layer: int) -> ir.Node:
    return [node for node in graph if node.op_type == "CachedAttention"][layer]


def another_scale(graph: ir.Graph) -> None:
    node = attention(graph, 1)
    node.attributes["scale"] = ir.AttrFloat32("scale", 1.3 * node.attributes["scale"].as_float())


def a_window(graph: ir.Graph) -> None:
    attention(graph, 0).attributes["window"] = ir.AttrInt64("window", 4)


def positions_from_zero(graph: ir.Graph) -> None:
    """Each run begins at position 0, whatever the cache holds: right for a whole text."""
    past = next(value for value in graph.inputs if value.name == "past_length")
    caches = {node for node in graph if node.op_type == "CachedAttention"}
    readers = [use.node for use in past.uses() if use.node not in caches]
    (zero,) = edit.insert(readers[0], "Sub", [past, past], name="zero")
    for node in readers:
        for at, value in enumerate(node.inputs):
            if value is past:
                node.replace_input_with(at, zero)


def padding_is_read(graph: ir.Graph) -> None:
    """All tokens of a batch are attended to: right for a text alone."""
    mask = next(value for value in graph.inputs if value.name == "attention_mask")
    readers = [use.node for use in mask.uses()]
    (ones,) = edit.insert(readers[0], "Equal", [mask, mask], name="ones")
    (whole,) = edit.insert(readers[0], "Cast", [ones], {"to": int(ir.DataType.INT64)}, name="whole")
    for node in readers:
        for at, value in enumerate(node.inputs):
            if value is mask:
                node.replace_input_with(at, whole)


@pytest.mark.parametrize(
    "name", ["tiny-llama", "tiny-gemma3", "tiny-gpt2", "tiny-bert", "tiny-sentence", "tiny-roberta"]
)
def test_right_captures_pass(name: str) -> None:
    check(name)


@pytest.mark.parametrize(
    ("name", "fault", "told"),
    [
        ("tiny-llama", another_scale, r"compute what .* first at the module model\.layers\.1\.self_attn\."),
        ("tiny-llama", a_window, r"compute what .* first at the module model\.layers\.0\.self_attn\."),
        ("tiny-llama", positions_from_zero, "compute in pieces, over the cache what"),
        ("tiny-bert", padding_is_read, "compute in a padded batch what"),
    ],
)
def test_a_fault_is_told_with_where_it_is(name: str, fault: Fault, told: str) -> None:
    with pytest.raises(WrongCaptureError, match=told) as caught:
        check(name, fault)
    assert caught.value.exit_code == 70


def test_pieces_are_the_whole() -> None:
    with open_source("sample:tiny-mistral") as source:  # with a window of 8
        model = capture(source, max_seq_len=64).model
    ids = np.random.default_rng(3).integers(8, 512, (2, 29))
    whole, pieces, single = outputs_in_pieces(model, ids, [[29], [7, 1, 1, 13, 7], [1] * 29])
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=1e-4)
    np.testing.assert_allclose(single, whole, rtol=0, atol=1e-4)
    assert whole.shape[:2] == (2, 29)
    assert whole.std() > 0.5
    with pytest.raises(ValueError, match="29 tokens together, found 28"):
        outputs_in_pieces(model, ids, [[28]])


def test_a_build_of_a_wrong_capture_ends_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leptonc.build.to_artifact import build
    from leptonc.evaluate import capture_check
    from leptonc.frontend import capture as frontend
    from leptonc.options import BuildOptions

    plain = frontend.capture

    def wrong(*args: Any, **more: Any) -> Any:
        captured = plain(*args, **more)
        another_scale(captured.model.graph)
        return captured

    monkeypatch.setattr(frontend, "capture", wrong)
    monkeypatch.setattr(capture_check, "check_capture", check_capture)  # without a memory of earlier builds
    out = tmp_path / "wrong.lepton"
    with pytest.raises(WrongCaptureError):
        build(BuildOptions("sample:tiny-llama", out=out, weights="int4", fast=True, check=False))
    assert list(tmp_path.iterdir()) == []
