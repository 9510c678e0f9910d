"""The room of text embedding: one vector a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime_edge.manifest import Manifest
from runtime_edge.part_record import EMBEDDINGS
from runtime_edge.tasks import Running
from runtime_edge.tasks.encoders import check_rows, started

METHODS = "encode, encode_query, encode_document"


def check(manifest: Manifest) -> None:
    """See `Room.check`."""
    check_rows(manifest, EMBEDDINGS)


def start(manifest: Manifest, sessions: Mapping[str, Any], codec: Any, conversations: int) -> Running:
    """See `Room.start`."""
    return started(manifest, sessions, codec)
