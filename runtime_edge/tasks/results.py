"""What a generation gives back: the answer, its pieces, and what it took."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stats:
    """What a generation took. Times are of the model's own work, not of what the caller did between tokens.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        cached_tokens: Those of them that were in a cache from an earlier call, and were not run again.
        new_tokens: Tokens of the answer.
        prefill_s: Seconds to the first token.
        decode_s: Seconds of all other tokens.
        drafted: Tokens that `drafts` proposed.
        accepted: Those of them that were right, and needed no run of their own.
    """

    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    prefill_s: float
    decode_s: float
    drafted: int = 0
    accepted: int = 0

    @property
    def prefill_tok_s(self) -> float:
        """Prompt tokens that were run in a second."""
        return (self.prompt_tokens - self.cached_tokens) / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tok_s(self) -> float:
        """Tokens after the first in a second."""
        return max(0, self.new_tokens - 1) / self.decode_s if self.decode_s else 0.0


@dataclass(frozen=True)
class Chunk:
    """One token of a stream and the text that became certain with it.

    Attributes:
        text: The text, perhaps empty.
        token_id: The token. The last chunk has none where none was made.
        finish_reason: Of the last chunk: `stop`, `length`, `cancelled` or `timeout`. None before.
        stats: Of the last chunk. None before.
    """

    text: str
    token_id: int | None
    finish_reason: str | None = None
    stats: Stats | None = None


@dataclass(frozen=True)
class Generation:
    """An answer.

    Attributes:
        text: Its text, without what stopped it.
        token_ids: All tokens that were made, the one that ended it too.
        finish_reason: `stop` (the model or a stop string ended it), `length`, `cancelled` or `timeout`.
        stats: What it took.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    stats: Stats
