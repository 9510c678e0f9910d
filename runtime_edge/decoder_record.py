"""A decoder, as those see it that run one: the one part of a model, which keeps keys and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from runtime_edge import part_record as roles
from runtime_edge.part_record import Part
from runtime_edge.records import Positive, Record


class CacheLayer(Record, frozen=True, kw_only=True):
    """Key/value cache of one layer: buffers [batch, kv_heads, length, width], keys' and values' width."""

    kv_heads: Positive
    key_dim: Positive
    value_dim: Positive
    window: Positive | None = None


class DecoderNames(Record, frozen=True, kw_only=True):
    """Names of a decoder graph's inputs and outputs; those of caches are keys and values of each layer, in order."""

    token_ids: str
    past_length: str
    logits: str
    past: tuple[str, ...]
    present: tuple[str, ...]


class Decoder(Record, frozen=True, kw_only=True):
    """A causal language model. `cache[i]` describes the keys and values of layer i.

    `keeps_none` says that graphs of ONNX Runtime take 0 for the positions whose logits they make: all but the cache is
    left out then.
    """

    vocab_size: Positive
    max_seq_len: Positive
    cache: tuple[CacheLayer, ...]
    names: DecoderNames
    cache_dtype: str = "float32"
    keeps_none: bool = True


class DecoderSettings(Record, frozen=True, kw_only=True):
    """What a manifest's `settings` say of a model that generates text.

    Attributes:
        max_seq_len: How many tokens it takes.
        keeps_none: Whether graphs of ONNX Runtime take 0 for the positions whose logits they make.
    """

    max_seq_len: Positive
    keeps_none: bool = True


def decoder_of(parts: Sequence[Part], settings: Mapping[str, Any]) -> Decoder | None:
    """Returns the decoder that a model is; nothing where it has other parts.

    Raises:
        msgspec.ValidationError: Its settings are not a decoder's.
    """
    if len(parts) != 1:
        return None
    (part,) = parts
    ids, past, logits = part.input(roles.TOKEN_IDS), part.input(roles.PAST_LENGTH), part.output(roles.NEXT_TOKEN_LOGITS)
    vocab_size = logits.dims[-1] if logits is not None and logits.dims else ""
    if ids is None or past is None or logits is None or not isinstance(vocab_size, int):
        return None
    values = msgspec.convert(dict(settings), DecoderSettings)
    names = DecoderNames(
        token_ids=ids.name, past_length=past.name, logits=logits.name,
        past=tuple(buffer.input for buffer in part.buffers), present=tuple(buffer.output for buffer in part.buffers),
    )  # fmt: skip
    cache = []
    for state in part.states:
        (_, heads, _, key_dim), (_, _, _, value_dim) = (buffer.dims for buffer in state.buffers)
        sizes = {"kv_heads": int(heads), "key_dim": int(key_dim), "value_dim": int(value_dim)}  # see `check_parts`
        cache.append(CacheLayer(**sizes, window=state.window))
    dtypes = [buffer.dtype for buffer in part.buffers]
    return Decoder(
        vocab_size=vocab_size, max_seq_len=values.max_seq_len, cache=tuple(cache), names=names,
        cache_dtype=next(iter(dtypes), "float32"), keeps_none=values.keeps_none,
    )  # fmt: skip
