"""The key/value cache of one decoding context: which tokens it holds, and for CPUs the buffers themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime_edge.errors import PromptTooLongError
from runtime_edge.manifest import Decoder

_ROUND = 64  # capacity is a multiple of this, so that requests of like length reuse the buffers


def common_prefix(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Returns how many tokens at the start of both are equal."""
    count = 0
    for one, other in zip(ours, theirs, strict=False):
        if one != other:
            break
        count += 1
    return count


class TokenCache:
    """Which tokens a cache holds, in their order; a backend holds their keys and values where it computes.

    Attributes:
        is_copyable: Whether a further cache costs the host's memory alone, and takes a copy of another's tokens.
    """

    is_copyable = False

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.token_ids: list[int] = []

    def check(self, length: int) -> None:
        """Raises `PromptTooLongError` where `length` tokens are more than the model takes."""
        if length > self.max_length:
            raise PromptTooLongError(f"expected at most {self.max_length} tokens (max_seq_len), found {length}")

    def keep(self, count: int) -> None:
        """Forgets all tokens but the first `count`."""
        del self.token_ids[count:]

    @property
    def nbytes(self) -> int:
        """Bytes of the host's memory that it takes at most: rows that were never written take none yet."""
        return 0

    def bytes_of(self, length: int) -> int:
        """Returns the bytes of the host's memory that a cache of `length` tokens takes."""
        return 0

    def copy(self, other: TokenCache, count: int) -> None:
        """Takes the first `count` tokens of another cache of the same model; room for them is there."""
        raise NotImplementedError

    def drop(self, count: int) -> None:
        """Forgets the last `count` tokens: a row belongs to one position alone, and the next run writes it anew."""
        del self.token_ids[len(self.token_ids) - count :]


class KVCache(TokenCache):
    """Keys and values of the tokens seen in plain numpy buffers, which a backend binds and writes in place.

    `buffers` holds key and value of layer 0, then of layer 1, …: each [1, kv_heads, capacity, dim]. Rows beyond
    `len(token_ids)` are garbage that no kernel reads. After `reserve` returns True the buffers are other arrays.
    """

    is_copyable = True

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(decoder.max_seq_len)
        self.capacity = 0
        self.buffers: list[NDArray[np.generic]] = []
        self._dtype = np.dtype(decoder.cache_dtype)
        self._shapes = [(layer.kv_heads, dim) for layer in decoder.cache for dim in (layer.key_dim, layer.value_dim)]

    @property
    def nbytes(self) -> int:
        """See `TokenCache.nbytes`."""
        return sum(buffer.nbytes for buffer in self.buffers)

    def bytes_of(self, length: int) -> int:
        """See `TokenCache.bytes_of`."""
        rows = min(-(-length // _ROUND) * _ROUND, self.max_length)
        return rows * self._dtype.itemsize * sum(heads * dim for heads, dim in self._shapes)

    def copy(self, other: TokenCache, count: int) -> None:
        """See `TokenCache.copy`."""
        assert isinstance(other, KVCache)  # of the same session
        for mine, theirs in zip(self.buffers, other.buffers, strict=True):
            mine[:, :, :count] = theirs[:, :, :count]
        self.token_ids[:] = other.token_ids[:count]

    def reserve(self, length: int) -> bool:
        """Makes room for `length` tokens, at most `max_length`; keeps the rows of `token_ids`.

        Returns:
            Whether the buffers are new ones, to be bound again.

        Raises:
            PromptTooLongError: `length` exceeds `max_length`, or what there is of memory.
        """
        if length <= self.capacity:
            return False
        self.check(length)
        doubled = max(length, 2 * self.capacity)
        capacity = min(-(-doubled // _ROUND) * _ROUND, self.max_length)
        used = len(self.token_ids)
        # Zeros come as untouched pages from the system: rows that are never written cost no memory.
        for index, (heads, dim) in enumerate(self._shapes):
            try:
                grown = np.zeros((1, heads, capacity, dim), self._dtype)
            except (MemoryError, ValueError) as error:  # ValueError: more than an array can have
                raise PromptTooLongError(
                    f"expected memory for {self.bytes_of(capacity)} bytes of keys and values of {capacity} tokens, "
                    f"found less",
                    hint="give a shorter prompt, and a smaller max_new_tokens",
                ) from error
            if self.buffers and used:
                grown[:, :, :used] = self.buffers[index][:, :, :used]
            if len(self.buffers) > index:
                self.buffers[index] = grown  # the old buffer goes now: one layer's copy at a time
            else:
                self.buffers.append(grown)
        self.capacity = capacity
        return True
