"""What the rooms of text encoders share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime_edge.encoder_record import check_encoder
from runtime_edge.manifest import Manifest, check_ids
from runtime_edge.records import require
from runtime_edge.tasks import Running

MAX_VOCAB = 2**31  # tokens of a model that does not say how many it has, as formats before 8 do not


def check_rows(manifest: Manifest, role: str) -> None:
    """Refuses a manifest that is no encoder's with rows of this role (raises `ArtifactError`)."""
    encoder = manifest.encoder
    right = encoder is not None and manifest.parts[0].output(role) is not None
    require(right, f"task {manifest.task}: expected one part, an encoder that gives {role}, found none")
    assert encoder is not None
    check_encoder(encoder, role)
    check_ids(manifest.tokenizer, manifest.tokenizer.vocab_size or MAX_VOCAB)


def started(manifest: Manifest, sessions: Mapping[str, Any], codec: Any) -> Running:
    """Returns an encoder's running task."""
    from runtime_edge.tasks.embed import Encoding

    (session,) = sessions.values()
    assert manifest.encoder is not None  # verified
    return Encoding(session, manifest.encoder, codec)
