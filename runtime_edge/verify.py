"""Integrity of an artifact: every file is what the manifest says, and nothing else is there.

All of it happens before a tokenizer, a template or a graph is opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from runtime_edge.errors import ArtifactError
from runtime_edge.files import MANIFEST_NAME, Hashes, listing
from runtime_edge.stamps import check_same, read_regular

if TYPE_CHECKING:
    from runtime_edge.externaldata import ExternalData
    from runtime_edge.manifest import Graph, Manifest, Variant

_MAX_PATH = 512
_REBUILD = "the artifact is damaged or was changed: copy it again, or rebuild it with `leptonc build`"


def verify(path: str | os.PathLike[str]) -> Manifest:
    """Checks an artifact completely and returns its manifest.

    `load` does the same before it opens anything. What is refused is in docs/reference/artifact.md.

    Args:
        path: The artifact's directory.

    Raises:
        FormatVersionError: The artifact was written by a later toolchain.
        ArtifactError: It is damaged, or breaks a rule of the format; the message names the file.

    Example:
        manifest = runtime_edge.verify("smollm2.lepton")
        print(manifest.task, [variant.name for variant in manifest.variants])
    """
    root = Path(path)
    sizes = listing(root)
    with start_hashing(root, sizes) as hashes:
        manifest = check_listing(root, sizes)
        check_contents(root, manifest, hashes)
    return manifest


def start_hashing(root: Path, sizes: Mapping[str, int]) -> Hashes:
    """Starts hashing every file but the manifest; `sizes` as `listing` returns them."""
    return Hashes(root, {path: size for path, size in sizes.items() if path != MANIFEST_NAME})


def check_listing(root: Path, sizes: Mapping[str, int]) -> Manifest:
    """The first half of `verify`, which opens the manifest alone: its schema, and which files there are."""
    manifest = read_manifest(root)
    for file in manifest.files:
        _check_path(file.path)
    for file in manifest.files:
        if file.path not in sizes:
            raise ArtifactError(f"{file.path}: expected a file of {file.size} bytes, found none", hint=_REBUILD)
        if sizes[file.path] != file.size:
            raise ArtifactError(
                f"{file.path}: expected {file.size} bytes, found {sizes[file.path]}",
                hint=_REBUILD,
            )
    unlisted = sorted(sizes.keys() - {MANIFEST_NAME, *(file.path for file in manifest.files)})
    if unlisted:
        raise ArtifactError(
            f"{unlisted[0]}: expected only files that {MANIFEST_NAME} lists, found {len(unlisted)} more",
            hint="remove what does not belong to the artifact",
        )
    return manifest


def check_contents(root: Path, manifest: Manifest, hashes: Hashes) -> None:
    """The second half of `verify`, which waits for the hashes, then reads what graphs refer to."""
    from runtime_edge.externaldata import external_data  # imported while hashes are still being computed
    from runtime_edge.graph import check_graph

    digests = hashes.results()
    for file in manifest.files:
        if digests[file.path] != file.sha256:
            raise ArtifactError(
                f"{file.path}: expected sha256 {file.sha256}, found {digests[file.path]}",
                hint=_REBUILD,
            )
    for variant in manifest.variants:
        for graph in variant.graphs:
            path = graph.file
            if not path.endswith(".onnx"):  # by another name ONNX Runtime would read it in another format
                raise ArtifactError(f"variant {variant.name!r}: expected a graph named *.onnx, found {path!r}")
            _check_graph(manifest, variant, graph, external_data(root / path, path))
            check_graph(root / path, manifest, graph)
            if graph.derived is not None:
                from runtime_edge.derived import read

                read(root / graph.derived, graph.derived, _blobs(manifest, variant, graph.derived))


def check_opened(root: Path, hashes: Hashes) -> None:
    """Says, once all is opened, that it was what was hashed (raises `ArtifactError`: a file was exchanged since)."""
    check_same(root, hashes.stamps)


def read_manifest(root: Path) -> Manifest:
    """Reads and checks `manifest.json` alone (raises `ArtifactError`): cheap, and no proof of the other files."""
    from runtime_edge.manifest import MAX_MANIFEST_BYTES, decode

    try:
        data = read_regular(root / MANIFEST_NAME, MANIFEST_NAME, MAX_MANIFEST_BYTES)
    except ArtifactError as error:
        if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise
        raise ArtifactError(
            f"{root}: expected {MANIFEST_NAME}, found: {error.__cause__.strerror}",
            hint="is this the directory of an artifact? `leptonc build` makes one of a model",
        ) from error
    return decode(data)


def _check_path(path: str) -> None:
    """Refuses every path that could name something outside the artifact, on any operating system."""
    parts = path.split("/")
    fault = (
        (f"a path longer than {_MAX_PATH}", len(path) > _MAX_PATH),
        ("an absolute path", path.startswith("/")),
        ("a backslash", "\\" in path),
        ("a colon", ":" in path),
        ("a control character", not path.isprintable()),
        ("`..`", ".." in parts),
        ("an empty or `.` part", not {"", "."}.isdisjoint(parts)),
        (f"{MANIFEST_NAME} itself", path.casefold() == MANIFEST_NAME),
    )
    for what, is_so in fault:
        if is_so:
            raise ArtifactError(
                f"{MANIFEST_NAME}: expected paths relative to the artifact with forward slashes, "
                f"found {what} in {path[:_MAX_PATH]!r}"
            )


def _blobs(manifest: Manifest, variant: Variant, file: str) -> dict[str, int]:
    """Bytes of each blob of a variant, by its path from the folder of a file."""
    sizes = {file.path: file.size for file in manifest.files}
    folder = file.rpartition("/")[0]
    lead = f"{folder}/" if folder else ""
    return {blob[len(lead) :]: sizes[blob] for blob in variant.blobs if blob.startswith(lead)}


def _check_graph(manifest: Manifest, variant: Variant, graph: Graph, entries: Iterable[ExternalData]) -> None:
    from runtime_edge.manifest import DERIVED

    file, sizes = graph.file, _blobs(manifest, variant, graph.file)
    for entry in entries:
        path = entry.location
        if graph.derived is not None and path == DERIVED:  # no file: the session is given the weight, or does not open
            continue
        if path not in sizes:
            raise ArtifactError(
                f"{file}: expected external data in the blobs of variant {variant.name!r}, found {path!r}"
            )
        if entry.offset + entry.length > sizes[path]:
            raise ArtifactError(
                f"{file}: expected external data within the {sizes[path]} bytes of {path}, "
                f"found {entry.length} bytes at offset {entry.offset}"
            )
