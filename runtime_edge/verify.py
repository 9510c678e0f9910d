"""Integrity of an artifact: every file is what the manifest says, and nothing else is there.

All of it happens before a tokenizer, a template or a graph is opened.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runtime_edge.errors import ArtifactError
from runtime_edge.externaldata import external_data
from runtime_edge.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, File, Manifest, Variant, decode

_READ_BYTES = 2**20  # each hashing thread holds one buffer of this size, however big the file
_MAX_HASH_THREADS = 4
_MAX_PATH = 512
_MAX_ENTRIES = 100_000
_REBUILD = "the artifact is damaged or was changed: copy it again, or rebuild it with `leptonc build`"


def verify(path: str | os.PathLike[str]) -> Manifest:
    """Checks an artifact completely and returns its manifest.

    Refused are: a manifest that breaks the schema; paths that are absolute or climb; links and special files;
    files that the manifest does not list; files that are missing or whose size or sha256 differs; graphs whose
    external data is not one of their variant's blobs.

    Args:
        path: The artifact's directory.

    Raises:
        FormatVersionError: The artifact was written by a later toolchain.
        ArtifactError: Any other of the above; the message names the file.
    """
    root = Path(path)
    manifest = check_listing(root)
    check_contents(root, manifest)
    return manifest


def check_listing(root: Path) -> Manifest:
    """The first half of `verify`, which opens the manifest alone: its schema, and which files there are."""
    manifest = read_manifest(root)
    for file in manifest.files:
        _check_path(file.path)
    found = dict(_walk(root))
    found.pop(MANIFEST_NAME, None)
    for file in manifest.files:
        if file.path not in found:
            raise ArtifactError(f"{file.path}: expected a file of {file.size} bytes, found none", hint=_REBUILD)
        if found[file.path] != file.size:
            raise ArtifactError(
                f"{file.path}: expected {file.size} bytes, found {found[file.path]}",
                hint=_REBUILD,
            )
    unlisted = sorted(found.keys() - {file.path for file in manifest.files})
    if unlisted:
        raise ArtifactError(
            f"{unlisted[0]}: expected only files that {MANIFEST_NAME} lists, found {len(unlisted)} more",
            hint="remove what does not belong to the artifact",
        )
    return manifest


def check_contents(root: Path, manifest: Manifest) -> None:
    """The second half of `verify`, which reads every file: hashes, and what graphs refer to."""
    _check_hashes(root, manifest.files)
    for variant in manifest.variants:
        _check_graph(root, manifest, variant)


def read_manifest(root: Path) -> Manifest:
    """Reads and checks `manifest.json` alone (raises `ArtifactError`): cheap, and no proof of the other files."""
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise ArtifactError(
            f"{root}: expected an artifact's directory, found {found}",
            hint="an artifact is the directory that `leptonc build` writes, NAME.lepton",
        )
    path = root / MANIFEST_NAME
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"{MANIFEST_NAME}: expected a regular file, found {_kind(status.st_mode)}")
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise ArtifactError(
            f"{root}: expected {MANIFEST_NAME}, found: {error.strerror}", hint="is this the directory of an artifact?"
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


def _walk(root: Path, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yields (relative path, size) of every file; refuses links and special files without following them."""
    pending = [prefix]
    entries = 0
    while pending:
        folder = pending.pop()
        with os.scandir(root / folder) as scan:
            for entry in scan:
                entries += 1
                name = f"{folder}{entry.name}"
                status = entry.stat(follow_symlinks=False)
                if entries > _MAX_ENTRIES:
                    raise ArtifactError(f"{root}: expected at most {_MAX_ENTRIES} files and folders, found more")
                if stat.S_ISDIR(status.st_mode) and not entry.is_symlink():
                    pending.append(f"{name}/")
                elif stat.S_ISREG(status.st_mode):
                    yield name, status.st_size
                else:
                    raise ArtifactError(
                        f"{name}: expected regular files and folders, found {_kind(status.st_mode)}",
                        hint="an artifact holds no links: copy it with links resolved",
                    )


def _kind(mode: int) -> str:
    kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a special file")


def _check_hashes(root: Path, files: tuple[File, ...]) -> None:
    # hashlib releases the interpreter's lock: one thread a file; biggest first, so that none waits for the last.
    ordered = sorted(files, key=lambda file: file.size, reverse=True)
    threads = max(1, min(_MAX_HASH_THREADS, os.cpu_count() or 1, len(ordered)))
    with ThreadPoolExecutor(threads) as pool:
        for file, digest in zip(ordered, pool.map(lambda file: _sha256(root / file.path), ordered), strict=True):
            if digest != file.sha256:
                raise ArtifactError(
                    f"{file.path}: expected sha256 {file.sha256}, found {digest}",
                    hint=_REBUILD,
                )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_READ_BYTES))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
    except OSError as error:
        raise ArtifactError(f"{path.name}: expected a readable file, found: {error.strerror}") from error
    return digest.hexdigest()


def _check_graph(root: Path, manifest: Manifest, variant: Variant) -> None:
    if not variant.graph.endswith(".onnx"):
        return  # only an ONNX graph can name other files; a plan of another backend is one file
    sizes = {file.path: file.size for file in manifest.files}
    folder = variant.graph.rpartition("/")[0]
    blobs = {blob for blob in variant.blobs if not folder or blob.startswith(f"{folder}/")}
    for entry in external_data(root / variant.graph, variant.graph):
        path = f"{folder}/{entry.location}" if folder else entry.location
        if path not in blobs:
            raise ArtifactError(
                f"{variant.graph}: expected external data in the blobs of variant {variant.name!r}, "
                f"found {entry.location!r}"
            )
        if entry.offset + entry.length > sizes[path]:
            raise ArtifactError(
                f"{variant.graph}: expected external data within the {sizes[path]} bytes of {path}, "
                f"found {entry.length} bytes at offset {entry.offset}"
            )
