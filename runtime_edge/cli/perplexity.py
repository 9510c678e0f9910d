"""Perplexity of a language model over a long text, in windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
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


@dataclass(frozen=True)
class Windows:
    """A text's tokens in windows that start every `stride` tokens, each run behind what comes before every text.

    A model that knows those goes astray without. Then all other tokens are scored once, else all but the very first
    and, where windows do not overlap, each window's first. A token that an earlier window scored is context only. The
    last window may be shorter.

    Attributes:
        token_ids: The text.
        lead: How many of them every window begins with, of whose length they are part.
        window: Tokens that the model sees at once, at least 2, and more than `lead`.
        stride: Tokens from one window's start to the next, at most `room`. Smaller gives each more context.
    """

    token_ids: Sequence[int]
    lead: int
    window: int
    stride: int

    @classmethod
    def of(cls, token_ids: Sequence[int], empty: Sequence[int], window: int, stride: int | None = None) -> Windows:
        """Cuts a text; `empty` is what the tokenizer makes of none. Without a stride windows do not overlap.

        Raises:
            RequestError: A window has no room for the text.
        """
        pairs = list(zip(token_ids, empty, strict=False))
        lead = next((at for at, (mine, other) in enumerate(pairs) if mine != other), len(pairs))
        if window <= lead:
            raise RequestError(
                f"expected windows of more than the {lead} tokens that come before every text, found {window}",
                hint="--window 512",
            )
        return cls(token_ids, lead, window, window - lead if stride is None else stride)

    @property
    def room(self) -> int:
        """Tokens of the text that a window has room for."""
        return self.window - self.lead

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """Yields (start, end, first): tokens start…end-1 are run behind the lead, those from `first` on are scored."""
        count, alone = len(self.token_ids), 0 if self.lead else 1  # a first token may have nothing before it
        scored = alone
        for start in range(self.lead, max(count - alone, 0), self.stride):
            end = min(start + self.room, count)
            yield start, end, max(scored, start + alone)
            scored = end
            if end == count:
                return

    def __len__(self) -> int:
        return sum(1 for _ in self.spans())

    def __iter__(self) -> Iterator[tuple[list[int], int]]:
        """Yields the tokens of each window's run, and how many of the last of them are scored."""
        for start, end, first in self.spans():
            yield [*self.token_ids[: self.lead], *self.token_ids[start:end]], end - first


def perplexity(
    score: Callable[[Sequence[int]], npt.NDArray[np.float32]],
    windows: Iterable[tuple[Sequence[int], int]],
    advance: Callable[[int], None] = lambda count: None,
) -> Perplexity:
    """Measures perplexity over windows.

    Args:
        score: Gives log p(token i+1 | tokens 0…i) for each i, float32 [len - 1], of one window.
        windows: The tokens of each, and how many of the last are scored: `Windows`, or some of them.
        advance: Called with 1 after each window.
    """
    total, tokens, runs = 0.0, 0, 0
    for token_ids, count in windows:
        scores = score(token_ids)
        total -= float(np.sum(scores[len(scores) - count :], dtype=np.float64))
        tokens += count
        runs += 1
        advance(1)
    nll = total / tokens if tokens else math.nan
    # A model that gives a token no chance at all has no finite perplexity.
    return Perplexity(math.exp(nll) if nll < 700 else math.inf, nll, tokens, runs)
