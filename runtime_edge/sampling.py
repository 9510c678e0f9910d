"""Chooses the next token from logits; the filters are those of `transformers`' generate, in its order.

Repetition penalty (Keskar et al., 2019, arXiv:1909.05858), temperature, top-k, top-p (nucleus; Holtzman et al., 2020,
arXiv:1904.09751), min-p (Nguyen et al., 2024, arXiv:2407.01082). All work on candidates, not on the whole vocabulary,
as soon as a filter allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime_edge.errors import ArtifactError

Floats = NDArray[np.float32]
MOST_PENALTY = 1e9  # of repetitions, and its inverse the least: logits times this stay far below float32's largest
_FLOAT32_LEAST, _FLOAT32_MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_FIRST_CANDIDATES = 512  # top-p sorts so many of the likeliest first, and all where they fall short


@dataclass(frozen=True)
class SamplingOptions:
    """How a token is chosen; `temperature` 0 takes the likeliest. The defaults filter nothing."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None


class Sampler:
    """The choice of tokens for one generation: its options, its random stream, and the tokens seen.

    Args:
        options: Checked options.
        vocab_size: Length of the logits.
        token_ids: The prompt, which the repetition penalty counts.
    """

    def __init__(self, options: SamplingOptions, vocab_size: int, token_ids: Sequence[int]) -> None:
        self._options = options
        self._random = np.random.Generator(np.random.PCG64(options.seed))
        self._penalized = options.repetition_penalty != 1.0
        if self._penalized:
            unique = np.unique(np.asarray(token_ids, np.int64))
            self._is_seen = np.zeros(vocab_size, np.bool_)
            self._is_seen[unique] = True
            self._seen = np.empty(vocab_size, np.int64)
            self._seen[: len(unique)] = unique
            self._count = len(unique)

    def __call__(self, logits: Floats) -> int:
        """Returns the next token's id; `logits` [vocab] may be overwritten.

        Raises:
            ArtifactError: The logits are not numbers.
        """
        if self._penalized:
            self._penalize(logits)
        token = int(logits.argmax())  # the position of a NaN, where there is one
        if not np.isfinite(logits[token]):
            raise ArtifactError(
                f"the model: expected finite logits, found {logits[token]}",
                hint="its weights are damaged, or a scheme with too few bits broke it: build it again with another",
            )
        if self._options.temperature > 0:
            ids, probabilities = distribution(logits, self._options)
            cumulative = probabilities.cumsum()
            drawn = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
            last = int(np.searchsorted(cumulative, cumulative[-1]))  # behind it are tokens of probability 0
            token = int(ids[min(drawn, last)])
        if self._penalized and not self._is_seen[token]:
            self._is_seen[token] = True
            self._seen[self._count] = token
            self._count += 1
        return token

    def _penalize(self, logits: Floats) -> None:
        seen = self._seen[: self._count]
        values = logits[seen]
        penalty = np.float32(self._options.repetition_penalty)
        logits[seen] = np.where(values < 0, values * penalty, values / penalty)


def distribution(logits: Floats, options: SamplingOptions) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that temperature, top-k, top-p and min-p leave, and their probabilities.

    Args:
        logits: [vocab], after the repetition penalty.
        options: `temperature` above 0.

    Returns:
        Token ids [n] and probabilities [n] that sum to 1; n >= 1.
    """
    size = len(logits)
    ids: NDArray[np.int64] | None = None
    if 0 < options.top_k < size:
        # The k-th value is a threshold: tokens that tie with it stay.
        threshold = np.partition(logits, size - options.top_k)[size - options.top_k]
        ids = np.flatnonzero(logits >= threshold)
    kept = logits if ids is None else logits[ids]
    weights = _weights(kept, options.temperature)
    if options.top_p < 1.0:
        nucleus = _nucleus(weights, options.top_p)
        ids = nucleus if ids is None else ids[nucleus]
        weights = weights[nucleus]
    if options.min_p > 0.0:
        likely = np.flatnonzero(weights >= options.min_p * float(weights.max()))
        ids = likely if ids is None else ids[likely]
        weights = weights[likely]
    if ids is None:
        ids = np.arange(size)
    probabilities = weights.astype(np.float64)
    probabilities /= probabilities.sum()
    return ids, probabilities


def _weights(logits: Floats, temperature: float) -> Floats:
    """Returns exp((logits - largest) / temperature): the largest is 1, what is too small for float32 is 0.

    float32 is fast over a whole vocabulary, and off by a few millionths of a probability; sums are float64. A
    temperature that float32 does not hold, or not in full precision, divides in float64.
    """
    is_exact = _FLOAT32_LEAST <= temperature <= _FLOAT32_MOST
    with np.errstate(over="ignore", under="ignore"):  # what overflows is -inf, whose weight is 0
        below = logits - logits.max()
        if is_exact:
            weights: Floats = np.exp(below / np.float32(temperature))
        else:
            weights = np.exp(below.astype(np.float64) / temperature).astype(np.float32)
    return weights


def _nucleus(weights: Floats, top_p: float) -> NDArray[np.int64]:
    """Positions of the fewest largest weights whose share of the sum reaches `top_p`; at least one."""
    wanted = top_p * weights.sum(dtype=np.float64)
    size = len(weights)
    tried = min(_FIRST_CANDIDATES, size)
    largest = np.sort(np.partition(weights, size - tried)[size - tried :])[::-1]
    cumulative = largest.cumsum(dtype=np.float64)
    if cumulative[-1] < wanted:
        largest = np.sort(weights)[::-1]
        cumulative = largest.cumsum(dtype=np.float64)
    # A token stays while those before it fall short of top_p.
    count = min(int(np.searchsorted(cumulative, wanted, side="left")) + 1, len(largest))
    smallest = largest[count - 1]
    above = np.flatnonzero(weights > smallest)
    ties = np.flatnonzero(weights == smallest)[: count - len(above)]
    return np.concatenate([above, ties])
