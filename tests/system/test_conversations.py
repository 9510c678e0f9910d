"""Conversations that take turns on a model with sliding windows: each goes on as a fresh sequence would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

import runtime_edge


def test_windows(artifact: Callable[..., Path]) -> None:
    """Branches begin before, within and behind a window, and in a run of tokens."""
    with runtime_edge.load(artifact("sample:tiny-gemma3", weights="int4", symmetric=False), threads=1) as model:
        decoder = model.manifest.decoder
        assert decoder is not None
        windows = {layer.window for layer in decoder.cache if layer.window is not None}
        assert windows
        window = min(windows)
        random = np.random.default_rng(0)
        longest = decoder.max_seq_len - 40
        said = [random.integers(20, decoder.vocab_size, min(3 * window + 5, longest // 2)).tolist() for _ in range(2)]
        branch = min(window + 3, len(said[0]) - 1)
        said.append([*said[0][:branch], *random.integers(20, decoder.vocab_size, 2 * branch).tolist()])
        read = []
        for _ in range(3):
            for index in (0, 1, 2, 1, 0):
                made = model.generate(said[index], max_new_tokens=4)
                alone = model.context().generate(said[index], max_new_tokens=4)
                assert made.token_ids == alone.token_ids
                read.append(made.stats.prompt_tokens - made.stats.cached_tokens)
                said[index] = [*said[index], *made.token_ids, 30 + index]
        assert read[2] == 2 * branch
        assert max(read[5:]) == 2  # the last token made, and the new one
