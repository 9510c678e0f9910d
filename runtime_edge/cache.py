"""The key/value cache of one decoding context: which tokens it holds, and for CPUs the buffers themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime_edge.errors import PromptTooLongError
from runtime_edge.manifest import Decoder

_ROUND = 64  # capacity is a multiple of this, so that requests of like length reuse the buffers


class TokenCache:
    """Which tokens a cache holds, in their order; a backend holds their keys and values where it computes."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.token_ids: list[int] = []

    def check(self, length: int) -> None:
        """Raises `PromptTooLongError` where `length` tokens are more than the model takes."""
        if length > self.max_length:
            raise PromptTooLongError(f"expected at most {self.max_length} tokens (max_seq_len), found {length}")

    def keep_prefix(self, token_ids: Sequence[int]) -> int:
        """Cuts the cache to the tokens that it shares with the start of `token_ids`; at most all but the last.

        Returns:
            How many are kept. The last is never among them: its logits are wanted, so it has to be run.
        """
        kept = 0
        for ours, theirs in zip(self.token_ids, token_ids[:-1], strict=False):
            if ours != theirs:
                break
            kept += 1
        del self.token_ids[kept:]
        return kept

    def drop(self, count: int) -> None:
        """Forgets the last `count` tokens: a row belongs to one position alone, and the next run writes it anew."""
        del self.token_ids[len(self.token_ids) - count :]


class KVCache(TokenCache):
    """Keys and values of the tokens seen in plain numpy buffers, which a backend binds and writes in place.

    `buffers` holds key and value of layer 0, then of layer 1, …: each [1, kv_heads, capacity, dim]. Rows beyond
    `len(token_ids)` are garbage that no kernel reads. After `reserve` returns True the buffers are other arrays.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(decoder.max_seq_len)
        self.capacity = 0
        self.buffers: list[NDArray[np.generic]] = []
        self._dtype = np.dtype(decoder.cache_dtype)
        self._shapes = [(layer.kv_heads, dim) for layer in decoder.cache for dim in (layer.key_dim, layer.value_dim)]

    def reserve(self, length: int) -> bool:
        """Makes room for `length` tokens, at most `max_length`; keeps the rows of `token_ids`.

        Returns:
            Whether the buffers are new ones, to be bound again.

        Raises:
            PromptTooLongError: `length` exceeds `max_length`.
        """
        if length <= self.capacity:
            return False
        self.check(length)
        doubled = max(length, 2 * self.capacity)
        capacity = min(-(-doubled // _ROUND) * _ROUND, self.max_length)
        used = len(self.token_ids)
        # Zeros come as untouched pages from the system: rows that are never written cost no memory.
        for index, (heads, dim) in enumerate(self._shapes):
            grown = np.zeros((1, heads, capacity, dim), self._dtype)
            if self.buffers and used:
                grown[:, :, :used] = self.buffers[index][:, :, :used]
            if len(self.buffers) > index:
                self.buffers[index] = grown  # the old buffer goes now: one layer's copy at a time
            else:
                self.buffers.append(grown)
        self.capacity = capacity
        return True
