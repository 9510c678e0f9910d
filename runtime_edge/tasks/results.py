"""What a generation gives back: the answer, its pieces, and what it took."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stats:
    """What a generation took. Times are of the model's own work, not of what the caller did between tokens.

    `cached_tokens` of the prompt were in the cache from the call before. `prefill_s` is the time to the first token,
    `decode_s` that of all others. `accepted` of the `drafted` tokens needed no run of their own.
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
        """Prompt tokens that were run, a second."""
        return (self.prompt_tokens - self.cached_tokens) / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tok_s(self) -> float:
        """Tokens after the first, a second."""
        return max(0, self.new_tokens - 1) / self.decode_s if self.decode_s else 0.0


@dataclass(frozen=True)
class Chunk:
    """One token of a stream and the text that became certain with it, perhaps none.

    The last one has `finish_reason` (`stop`, `length` or `cancelled`) and `stats`, and no token where none was made.
    """

    text: str
    token_id: int | None
    finish_reason: str | None = None
    stats: Stats | None = None


@dataclass(frozen=True)
class Generation:
    """An answer. `token_ids` are all tokens made, the one that ended it too; `text` excludes what stopped it."""

    text: str
    token_ids: list[int]
    finish_reason: str
    stats: Stats
