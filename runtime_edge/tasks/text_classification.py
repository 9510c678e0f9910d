"""The room of text classification: a score of each label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime_edge.manifest import Manifest
from runtime_edge.part_record import LABEL_LOGITS
from runtime_edge.tasks import Running
from runtime_edge.tasks.encoders import check_rows, started

METHODS = "classify, rerank"


def check(manifest: Manifest) -> None:
    """See `Room.check`."""
    check_rows(manifest, LABEL_LOGITS)


def start(manifest: Manifest, sessions: Mapping[str, Any], codec: Any, conversations: int) -> Running:
    """See `Room.start`."""
    return started(manifest, sessions, codec)
