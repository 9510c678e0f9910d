"""Drafts of what comes next, copied from earlier text and checked several tokens in one run.

A step reads all weights for one row of logits; a run of few tokens reads them once for all of its rows, and takes less
time than as many steps. Where an answer repeats its context (a summary, code, text that is corrected), the tokens that
followed the newest few at their last occurrence often follow again: prompt lookup decoding (Saxena, 2023,
https://github.com/apoorvumang/prompt-lookup-decoding). They are run together, and the sampler draws at each position
from the model's own logits; a drafted token stays where it is the one drawn. For a draft that has no probabilities this
is the rule of speculative decoding (Leviathan et al., 2023, arXiv:2211.17192), and every draw is made once, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from runtime_edge.backends import DecoderState, Floats

MOST = 8  # tokens of a draft, where the caller names no number
_GRAMS = (3, 2)  # lengths of what is looked up, the first that is found counts
_WORTH = 0.5  # a token is drafted where it is at least so likely to stay: a further row costs less than half a step
_WEIGHT = 0.2  # of the newest guess in the share that was right


class Lookup:
    """What followed the newest tokens when they last occurred, and how far that can be trusted.

    The next token is guessed after every one, whether it is drafted or not, and costs nothing: `_right` is the moving
    share of guesses that were right. So nothing is drafted where guesses fail, and drafts come back where they hold.
    Indices are kept as tokens come: a look-up does not depend on the length of the text.

    Args:
        token_ids: The text so far.
    """

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._token_ids: list[int] = []
        self._after: list[dict[tuple[int, ...], int]] = [{} for _ in _GRAMS]  # where each n-gram last went on
        self._match: int | None = None  # position of the guess
        self._right = _WORTH
        for token_id in token_ids:
            self._add(token_id)

    def push(self, token_id: int) -> None:
        """Adds a token that was made."""
        if self._match is not None:
            self._right += _WEIGHT * ((self._token_ids[self._match] == token_id) - self._right)
        self._add(token_id)

    def draft(self, most: int) -> list[int]:
        """Returns tokens that may come next, at most `most`, as many as are likely enough to stay; or none."""
        if self._match is None:
            return []
        count, likely = 0, self._right
        while count < most and likely >= _WORTH:
            count += 1
            likely *= self._right
        period = len(self._token_ids) - self._match  # a copy that reaches its own start goes round, as in LZ77
        return [self._token_ids[self._match + index % period] for index in range(count)]

    def _add(self, token_id: int) -> None:
        self._token_ids.append(token_id)
        length = len(self._token_ids)
        self._match = None
        for count, after in zip(_GRAMS, self._after, strict=True):
            if length >= count:
                gram = tuple(self._token_ids[-count:])
                if self._match is None:
                    self._match = after.get(gram)
                after[gram] = length


class Steps:
    """Logits after each token of an answer: of a step, or of a run that checks a draft.

    Args:
        state: The sequence, which holds the prompt. What it cannot check is not drafted: see `most_drafts`.
        vocab_size: Length of a row of logits.
        token_ids: The prompt.
        most: Tokens of a draft at most; 0 takes steps only.

    Attributes:
        drafted: Tokens that were drafted.
        accepted: Of these, how many the answer went on from without a run of their own.
    """

    def __init__(self, state: DecoderState, vocab_size: int, token_ids: Sequence[int], most: int) -> None:
        self.drafted = 0
        self.accepted = 0
        self._state = state
        self._most = min(most, state.most_drafts)
        self._prompt = token_ids
        self._lookup: Lookup | None = None  # made with the first step: it is no part of the time to the first token
        self._rows: Floats = np.empty((self._most + 1, vocab_size), np.float32)
        self._draft: list[int] = []  # what the last run checked, in the cache behind the token that was made
        self._taken = 0  # how many of them were made since

    def after(self, token_id: int, room: int) -> Floats:
        """Returns logits [vocab] after the newest token; valid until the next call, and may be overwritten.

        Args:
            token_id: The token that was made of the logits before.
            room: Tokens that a draft may have before the answer or the model's length is full.
        """
        if not self._most:
            return self._state.step(token_id)
        if self._lookup is None:
            self._lookup = Lookup(self._prompt)
        self._lookup.push(token_id)
        if self._taken < len(self._draft) and self._draft[self._taken] == token_id:
            self._taken += 1
            self.accepted += 1
            row: Floats = self._rows[self._taken]
            return row
        self.close()
        draft = self._lookup.draft(min(self._most, room))
        if not draft:
            return self._state.step(token_id)
        rows = self._rows[: 1 + len(draft)]
        self._state.all_logits([token_id, *draft], rows)
        self._draft = draft
        self.drafted += len(draft)
        first: Floats = rows[0]
        return first

    def close(self) -> None:
        """Takes what was drafted and not made out of the cache, which then holds all tokens but the newest."""
        self._state.cache.drop(len(self._draft) - self._taken)
        self._draft, self._taken = [], 0
