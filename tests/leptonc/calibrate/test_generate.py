"""Text that a model writes: its distribution, its seed, its openings, and what follows where it ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from leptonc.build.to_artifact import build
from leptonc.calibrate.generate import Written, draw, generate, rounds
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
    drawn, likely = draw(logits, np.random.default_rng(0).random(20_000))
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 20_000, [0.1, 0.2, 0.3, 0.4], atol=0.015)
    np.testing.assert_allclose(likely, np.array([0.1, 0.2, 0.3, 0.4])[drawn], rtol=1e-6)


def test_a_seed_gives_the_same_texts_and_another_gives_others(graph: Path) -> None:
    first, again, other = (generate(graph, PART, [[1]], [2], 3, 20, seed=seed).texts for seed in (0, 0, 1))
    assert [len(text) for text in first] == [20, 20, 20]
    assert all(text[0] == 1 for text in first)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    for fewer in (1, 2):
        few = generate(graph, PART, [[1]], [2], fewer, 20).texts
        assert all(np.array_equal(a, b) for a, b in zip(few, first, strict=False))


def test_each_token_is_drawn_from_what_the_model_says_of_those_before(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The likeliest is taken in place of a draw: then it is the likeliest of transformers' logits too."""
    import torch

    from leptonc.calibrate import generate as module

    monkeypatch.setattr(module, "draw", lambda logits, chances: (logits.argmax(-1), np.ones(len(logits))))
    (text,) = generate(graph, PART, [[1, 7, 8]], [], 1, 24).texts
    assert text[:3].tolist() == [1, 7, 8]
    with torch.no_grad():
        logits = reference("tiny-llama")(torch.from_numpy(text[None])).logits[0].numpy()
    assert logits[2:-1].argmax(-1).tolist() == text[3:].tolist()


def test_the_next_opening_follows_where_a_text_ends(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that ends at once gives openings alone, and no text runs over its length."""
    from leptonc.calibrate import generate as module

    monkeypatch.setattr(
        module, "draw", lambda logits, chances: (np.full(len(logits), 2), np.full(len(logits), np.exp(-0.5)))
    )
    written = generate(graph, PART, [[1], [5, 6], [7]], [2], 2, 8)
    assert [text.tolist() for text in written.texts] == [[1, 2, 5, 6, 2, 7, 2, 1], [5, 6, 2, 7, 2, 1, 2, 5]]
    assert written.surprise == pytest.approx(0.5)


def test_what_was_written_goes_through_a_file_s_arrays(graph: Path) -> None:
    written = generate(graph, PART, [[1]], [2], 11, 6)
    again = Written.of(written.arrays())
    assert again.surprise == written.surprise
    assert all(np.array_equal(a, b) for a, b in zip(again.texts, written.texts, strict=True))


def test_little_memory_writes_one_text_after_the_other(graph: Path) -> None:
    steps: list[int] = []
    assert len(generate(graph, PART, [[1]], [], 3, 10, memory=1, advance=steps.append).texts) == 3
    assert len(steps) == 3 * 9
    assert (rounds(1), rounds(16), rounds(17)) == (1, 1, 2)
