"""What models are for: one room a task, a module with the functions of `Room`, and a line of `ROOMS`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

from runtime_edge.errors import ArtifactError
from runtime_edge.files import MANIFEST_NAME

ROOMS = {
    "text-generation": "runtime_edge.tasks.text_generation",
    "text-embedding": "runtime_edge.tasks.text_embedding",
    "text-classification": "runtime_edge.tasks.text_classification",
}


class Running(Protocol):
    """A task of an open model: what its methods are is the task's."""

    def close(self) -> None:
        """Frees what it holds outside of the host's memory."""


class Room(Protocol):
    """What the module of a task offers. It is imported while a manifest is checked, and so imports little itself.

    Attributes:
        METHODS: Names of the methods that models of the task have, for messages.
    """

    METHODS: str

    def check(self, manifest: Any) -> None:
        """Refuses a manifest whose parts or settings are not the task's (raises `ArtifactError`)."""

    def start(self, manifest: Any, sessions: Mapping[str, Any], codec: Any, conversations: int) -> Running:
        """Returns the task of an open model.

        Args:
            manifest: The artifact's.
            sessions: An open session of each part, by its name: see `runtime_edge.backends`.
            codec: The tokenizer, and the chat templates.
            conversations: Caches that are kept at most.
        """


def room(task: str) -> Room:
    """Returns the room of a task (raises `ArtifactError`: there is none)."""
    if task not in ROOMS:
        raise ArtifactError(f"{MANIFEST_NAME}: task: expected one of {', '.join(ROOMS)}, found {task!r}")
    return cast(Room, importlib.import_module(ROOMS[task]))
