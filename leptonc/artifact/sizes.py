"""Bytes of an artifact's parts."""

from __future__ import annotations

from collections.abc import Callable

from leptonc.artifact.writer import ArtifactWriter
from leptonc.report import Sizes


def sizes_of(writer: ArtifactWriter) -> Sizes:
    """Returns the bytes of the parts that are written so far."""

    def total(holds: Callable[[str], bool]) -> int:
        return sum(file.size for file in writer.listing() if holds(file.path))

    return Sizes(
        weights=total(lambda path: path.startswith("blobs/")),
        graph=total(lambda path: path.endswith(".onnx")),
        tokenizer=total(lambda path: path == "tokenizer.json"),
        plans=total(lambda path: path.endswith(".plan")) or None,
    )
