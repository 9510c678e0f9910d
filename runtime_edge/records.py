"""What all records of a manifest share: their base, bounds on their numbers and texts, and how they are checked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from runtime_edge.errors import ArtifactError
from runtime_edge.files import MANIFEST_NAME

# Bounds on what a manifest may claim, checked before anything is allocated from it.
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Size = Annotated[int, Meta(ge=0, le=2**46)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Meta(max_length=2**10)]
Text = Annotated[str, Meta(max_length=2**16)]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all records: immutable, unknown fields refused."""


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ArtifactError(f"{MANIFEST_NAME}: {otherwise}")


def unique(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        require(name not in seen, f"{what}: expected each name once, found {name!r} twice")
        seen.add(name)
