"""Greedy generation: 200 tokens that are transformers', which is given the runtime's choices and asked for its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import runtime_edge
from tests.leptonc import models

Build = Callable[..., Path]
COUNT = 200


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma3", "tiny-gpt2", "tiny-qwen3"])
def test_greedy_tokens_are_transformers(name: str, artifact: Build) -> None:
    """Each token is the reference's best after those before it; another one only where the two best are a tie."""
    prompt = models.token_ids(37, seed=1)
    with runtime_edge.load(artifact(f"sample:{name}", weights="fp32")) as model:
        object.__setattr__(model._decoding().codec, "eos_ids", frozenset())  # 200 tokens, whatever they are
        answer = model.generate(prompt, max_new_tokens=COUNT).token_ids
    assert len(answer) == COUNT
    models.assert_greedy(models.reference(name), prompt, answer)


def test_a_wrong_token_is_noticed(artifact: Build) -> None:
    prompt = models.token_ids(37, seed=1)
    with runtime_edge.load(artifact("sample:tiny-llama", weights="fp32")) as model:
        answer = model.generate(prompt, max_new_tokens=5).token_ids
    answer[3] = (answer[3] + 1) % 512
    with pytest.raises(AssertionError):
        models.assert_greedy(models.reference("tiny-llama"), prompt, answer)


def test_answers_vary() -> None:
    """A model that repeats one token would hide a wrong cache."""
    for name in ("tiny-llama", "tiny-gemma3", "tiny-gpt2", "tiny-qwen3"):
        ids = models.token_ids(60, seed=2)
        best = models.reference_logits(models.reference(name), ids).argmax(1)
        assert len(np.unique(best)) > 20
