"""Perplexity of a language model over a long text, in windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime_edge.errors import RequestError


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


def lead_of(token_ids: Sequence[int], empty: Sequence[int]) -> int:
    """Returns how many of a text's tokens the tokenizer puts before every text: those that begin `empty`, too."""
    pairs = list(zip(token_ids, empty, strict=False))
    return next((at for at, (mine, other) in enumerate(pairs) if mine != other), len(pairs))


def room_of(window: int, lead: int) -> int:
    """Returns the tokens of a text that a window has room for.

    Raises:
        RequestError: It has none.
    """
    if window <= lead:
        raise RequestError(
            f"expected windows of more than the {lead} tokens that come before every text, found {window}",
            hint="--window 512",
        )
    return window - lead


def windows(count: int, window: int, stride: int, lead: int = 0) -> Iterator[tuple[int, int, int]]:
    """Yields (start, end, first) of each window: tokens start…end-1 are run, those from `first` on are scored.

    The first `lead` tokens are run before those of each window, of whose length they are part: a model that knows them
    goes astray without. Then all others are scored once, else all but the very first and, where windows do not overlap,
    each window's first. A token that an earlier window scored is context only. The last window may be shorter.
    """
    alone = 0 if lead else 1  # a window's first token may have nothing before it
    scored = alone
    for start in range(lead, max(count - alone, 0), stride):
        end = min(start + window - lead, count)
        yield start, end, max(scored, start + alone)
        scored = end
        if end == count:
            return


def perplexity(
    score: Callable[[Sequence[int]], npt.NDArray[np.float32]],
    token_ids: Sequence[int],
    *,
    window: int,
    stride: int,
    lead: int = 0,
    limit: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Perplexity:
    """Measures perplexity over windows of `window` tokens that start every `stride` tokens.

    Args:
        score: Gives log p(token i+1 | tokens 0…i) for each i, float32 [len - 1], of up to `window` tokens.
        token_ids: The text.
        window: Tokens that the model sees at once, at least 2, and more than `lead`.
        stride: Tokens from one window's start to the next, at most `window` - `lead`. Smaller gives each more context.
        lead: How many of the first tokens every window begins with.
        limit: Windows to run at most.
        advance: Called with 1 after each window.
    """
    total, tokens, runs = 0.0, 0, 0
    for start, end, first in windows(len(token_ids), window, stride, lead):
        if runs == limit:
            break
        scores = score([*token_ids[:lead], *token_ids[start:end]])[lead + first - start - 1 :]
        total -= float(np.sum(scores, dtype=np.float64))
        tokens += len(scores)
        runs += 1
        advance(1)
    nll = total / tokens if tokens else math.nan
    # A model that gives a token no chance at all has no finite perplexity.
    return Perplexity(math.exp(nll) if nll < 700 else math.inf, nll, tokens, runs)
