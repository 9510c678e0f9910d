"""What tells whether a file is still the one that was hashed: its identity, size and times.

A hash is of what a descriptor read; libraries open files by their names, later, and map them. Between both a file may
be exchanged, by a rename or a link, or written to; and after, a file that is cut makes a mapping of it fail (SIGBUS).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from runtime_edge.errors import ArtifactError

_FLAGS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
_AGAIN = "load it again; an artifact is replaced by renaming another to its place, and never written to in place"


class Stamp(NamedTuple):
    """A file's identity, size in bytes, and times in nanoseconds: of its content's last change, and of any."""

    device: int
    inode: int
    size: int
    written: int
    changed: int

    @staticmethod
    def of(status: os.stat_result) -> Stamp:
        """The stamp of what `os.stat` returned."""
        return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def kind(mode: int) -> str:
    """Names what a file that is not a regular one is, from its `st_mode`."""
    kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a special file")


def open_regular(path: str | os.PathLike[str], name: str) -> tuple[int, Stamp]:
    """Opens a regular file to read, and no link, pipe or device; returns its descriptor and stamp.

    Raises:
        ArtifactError: It is something else, or cannot be opened; `name` is what the message calls it.
    """
    try:
        handle = os.open(path, os.O_RDONLY | _FLAGS)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        if isinstance(error, OSError) and error.errno == errno.ELOOP:  # what O_NOFOLLOW answers
            reason = "a link"
        raise ArtifactError(f"{name}: expected a readable file, found: {reason}") from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise ArtifactError(f"{name}: expected a regular file, found {kind(status.st_mode)}")
    return handle, Stamp.of(status)


def read_regular(path: str | os.PathLike[str], name: str, most: int) -> bytes:
    """Returns a regular file's bytes, at most one more than `most` of them.

    Raises:
        ArtifactError: As `open_regular`, or where reading fails.
    """
    handle, stamp = open_regular(path, name)
    try:
        with os.fdopen(handle, "rb") as file:
            return file.read(min(most, stamp.size) + 1)  # room for as many is made before they are read
    except OSError as error:
        raise ArtifactError(f"{name}: expected a readable file, found: {error.strerror}") from error


def check_same(root: Path, stamps: Mapping[str, Stamp]) -> None:
    """Refuses files that are no longer those that were hashed.

    Args:
        root: The artifact's directory.
        stamps: By path relative to it, of the descriptors that were hashed.

    Raises:
        ArtifactError: One was exchanged or changed since.
    """
    for path, stamp in stamps.items():
        try:
            current = Stamp.of(os.lstat(root / path))
        except OSError as error:
            raise ArtifactError(
                f"{path}: expected the file that was verified, found: {error.strerror}", hint=_AGAIN
            ) from error
        if current != stamp:
            raise ArtifactError(
                f"{path}: expected the file that was verified, found it exchanged or changed while it was opened",
                hint=_AGAIN,
            )


class Watched:
    """Files that an open model may have mapped; `check` tells where one was written to or cut meanwhile.

    A file that was removed, or exchanged by a rename, stays as it was for who has it open: that is no error.

    Args:
        root: The artifact's directory.
        stamps: Of the files, by path relative to it.
    """

    def __init__(self, root: Path, stamps: Mapping[str, Stamp]) -> None:
        folder = os.path.abspath(root)  # a program may change its directory
        self._files = [(os.path.join(folder, path), path, stamp) for path, stamp in stamps.items()]

    def check(self) -> None:
        """Takes 2 us a file (raises `ArtifactError`)."""
        for place, path, stamp in self._files:
            try:
                status = os.lstat(place)
            except OSError:
                continue
            is_same = (status.st_dev, status.st_ino) == (stamp.device, stamp.inode)
            if is_same and (status.st_size, status.st_mtime_ns) != (stamp.size, stamp.written):
                raise ArtifactError(
                    f"{path}: expected the file as it was when the model was opened, found it changed", hint=_AGAIN
                )
