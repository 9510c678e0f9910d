"""Text that a model writes: its distribution, its seed, and what it never draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from leptonc.build.to_artifact import build
from leptonc.calibrate.generate import draw, generate, rounds
from leptonc.options import BuildOptions
from tests.leptonc.models import captured, reference

PART = captured("tiny-llama").parts["decoder"]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("writes") / "a"
    build(BuildOptions("sample:tiny-llama", out=out, weights="fp32", check=False))
    return out / "cpu.onnx"


def test_tokens_are_drawn_as_the_logits_say() -> None:
    logits = np.tile(np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32)), (20_000, 1))
    found = np.bincount(draw(logits, [1], np.random.default_rng(0).random(20_000)), minlength=4) / 20_000
    assert found[1] == 0
    np.testing.assert_allclose(found, np.array([0.1, 0, 0.3, 0.4]) / 0.8, atol=0.015)


def test_a_seed_gives_the_same_texts_and_another_gives_others(graph: Path) -> None:
    first, again, other = (generate(graph, PART, 1, [2], 3, 20, seed=seed) for seed in (0, 0, 1))
    assert [len(each) for each in first] == [20, 20, 20]
    assert all(each[0] == 1 and 2 not in each for each in first)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    for fewer in (1, 2):
        few = generate(graph, PART, 1, [2], fewer, 20)
        assert all(np.array_equal(a, b) for a, b in zip(few, first, strict=False))


def test_each_token_is_drawn_from_what_the_model_says_of_those_before(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The likeliest is taken in place of a draw: then it is the likeliest of transformers' logits too."""
    import torch

    from leptonc.calibrate import generate as module

    monkeypatch.setattr(module, "draw", lambda logits, banned, chances: logits.argmax(-1))
    (text,) = generate(graph, PART, 1, [], 1, 24)
    with torch.no_grad():
        logits = reference("tiny-llama")(torch.from_numpy(text[None])).logits[0].numpy()
    assert logits[:-1].argmax(-1).tolist() == text[1:].tolist()


def test_little_memory_writes_one_text_after_the_other(graph: Path) -> None:
    steps: list[int] = []
    assert len(generate(graph, PART, 1, [], 3, 10, memory=1, advance=steps.append)) == 3
    assert len(steps) == 3 * 9
    assert (rounds(1), rounds(16), rounds(17)) == (1, 1, 2)
