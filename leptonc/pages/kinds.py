"""Kinds of layers: one colour for each on every page, and one shape for each part of a kind."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

EMBEDDING, ATTENTION, MLP, HEAD, NORM = "embedding", "attention", "MLP", "head", "norm"
KINDS = (EMBEDDING, ATTENTION, MLP, HEAD, NORM)
# In a layer, what is neither of these is its MLP.
_PATTERNS = ((ATTENTION, re.compile(r"att(?:n|ention)", re.I)), (NORM, re.compile(r"norm|(?:^|[._])ln", re.I)))
_PLACE = re.compile(r"^(.*?\.(\d+))(?:[./](.*)|$)")


@dataclass(frozen=True)
class Place:
    """Where a matrix of weights is.

    Attributes:
        kind: One of `KINDS`.
        layer: The number of its layer. Default: empty, it is in none.
        part: What it is in its layer, as `self_attn.q_proj`; outside the layers its whole path.
    """

    kind: str
    layer: str
    part: str

    @property
    def column(self) -> str:
        """What stands under it where layers are side by side."""
        return self.layer or self.kind


def place_of(path: str, *, embedding: bool = False) -> Place:
    """Returns the place of a matrix with this module path."""
    match = _PLACE.match(path)
    layer, part = (match[2], match[3] or "") if match else ("", path)
    if embedding:
        return Place(EMBEDDING, "", path)
    if not layer:
        return Place(HEAD, "", part)
    return Place(next((kind for kind, pattern in _PATTERNS if pattern.search(part)), MLP), layer, part)


def style(kind: str) -> str:
    """Returns the class of a kind's colour."""
    return f"k{KINDS.index(kind)}"


@dataclass(frozen=True)
class Scale:
    """What a plot over layers has along its axis, and which shape each part has.

    Attributes:
        columns: Names along the axis: embeddings, layers by their numbers, then heads.
        shapes: The shape of each part, by kind and part.
    """

    columns: tuple[str, ...]
    shapes: dict[tuple[str, str], int]

    @classmethod
    def of(cls, places: Iterable[Place]) -> Scale:
        """Returns the scale of all these places."""
        places = list(places)
        inner = sorted({int(place.layer) for place in places if place.layer})
        found = {place.kind for place in places if not place.layer}
        columns = [EMBEDDING] * (EMBEDDING in found) + [str(layer) for layer in inner] + [HEAD] * (HEAD in found)
        shapes: dict[tuple[str, str], int] = {}
        for place in sorted(places, key=lambda place: KINDS.index(place.kind)):
            taken = sum(kind == place.kind for kind, _ in shapes)
            shapes.setdefault((place.kind, place.part), taken)
        return cls(tuple(columns), shapes)

    def index(self, place: Place) -> int:
        """Returns the column of a place."""
        return self.columns.index(place.column)
