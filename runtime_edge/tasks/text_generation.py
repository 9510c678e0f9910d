"""The room of text generation: a decoder over a key/value cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime_edge.manifest import CACHE_DTYPES, Manifest, check_ids
from runtime_edge.records import require
from runtime_edge.tasks import Running

METHODS = "generate, stream, score, logits"


def check(manifest: Manifest) -> None:
    """See `Room.check`."""
    decoder = manifest.decoder
    require(decoder is not None, f"task {manifest.task}: expected one part, a decoder with states, found none")
    assert decoder is not None
    require(
        decoder.cache_dtype in CACHE_DTYPES,
        f"parts: states: expected a dtype among {', '.join(CACHE_DTYPES)}, found {decoder.cache_dtype!r}",
    )
    check_ids(manifest.tokenizer, decoder.vocab_size)


def start(manifest: Manifest, sessions: Mapping[str, Any], codec: Any, conversations: int) -> Running:
    """See `Room.start`."""
    from runtime_edge.tasks.decoding import Decoding

    (session,) = sessions.values()
    assert manifest.decoder is not None  # verified
    return Decoding(session, manifest.decoder, codec, conversations)
