"""Perplexity of a language model over a long text, in windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Perplexity:
    """What was measured.

    Attributes:
        perplexity: exp of the mean negative log-likelihood of a scored token.
        nll: That mean, in nats a token.
        tokens: Tokens scored.
        windows: Windows run.
    """

    perplexity: float
    nll: float
    tokens: int
    windows: int


def windows(count: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yields (start, end, first) of each window: tokens start…end-1 are run, those from `first` on are scored.

    Each token but the very first and, where windows do not overlap, each window's first is scored once. A token that
    an earlier window scored is context only. The last window may be shorter.
    """
    scored = 1  # the first token has nothing before it
    for start in range(0, max(count - 1, 0), stride):
        end = min(start + window, count)
        yield start, end, max(scored, start + 1)
        scored = end
        if end == count:
            return


def perplexity(
    score: Callable[[Sequence[int]], npt.NDArray[np.float32]],
    token_ids: Sequence[int],
    *,
    window: int,
    stride: int,
    limit: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Perplexity:
    """Measures perplexity over windows of `window` tokens that start every `stride` tokens.

    Args:
        score: Gives log p(token i+1 | tokens 0…i) for each i, float32 [len - 1], of up to `window` tokens.
        token_ids: The text.
        window: Tokens that the model sees at once, at least 2.
        stride: Tokens from one window's start to the next, at most `window`. Smaller gives each token more context.
        limit: Windows to run at most.
        advance: Called with 1 after each window.
    """
    total, tokens, runs = 0.0, 0, 0
    for start, end, first in windows(len(token_ids), window, stride):
        if runs == limit:
            break
        scores = score(token_ids[start:end])[first - start - 1 :]
        total -= float(np.sum(scores, dtype=np.float64))
        tokens += len(scores)
        runs += 1
        advance(1)
    nll = total / tokens if tokens else math.nan
    # A model that gives a token no chance at all has no finite perplexity.
    return Perplexity(math.exp(nll) if nll < 700 else math.inf, nll, tokens, runs)
