"""Files that are there whole or not at all, whatever ends the process or the machine meanwhile.

What is written lies beside its place until it is on the disk, and is then renamed; a rename that must not replace what
has appeared meanwhile asks the system not to.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from runtime_edge.errors import RequestError

_CHUNK = 4 * 2**20
_LONGEST_NAME = 200  # bytes of a name that others are made of: systems take 255
# What a system or a file system answers that has no such rename, or no such way to the disk.
_LACKING = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
# Linux: renameat2(2). macOS: renamex_np(2).
_RENAMES = {"linux": ("renameat2", 1, 2), "darwin": ("renameatx_np", 4, 2)}  # function; flags: new only, exchange
_HERE = {"linux": -100, "darwin": -2}  # AT_FDCWD


def write_whole(path: Path, data: bytes | memoryview, mode: int = 0o666) -> None:
    """Writes a file that is there whole or not at all; one that is there already is replaced.

    A link is followed. What is no regular file (a terminal, a pipe) is written to as it is.

    Args:
        path: The file.
        data: Its bytes.
        mode: Permissions of a new file, from which the process's mask is taken.

    Raises:
        OSError: It cannot be written; it names `path`, and the file is as it was.
    """
    try:
        path = path.resolve() if path.is_symlink() else path
        if path.exists() and not path.is_file():
            path.write_bytes(data)  # a directory says here that it is one
            return
        handle, beside = tempfile.mkstemp(prefix=f".{short_name(path.name)}.", suffix=".partial", dir=path.parent)
        try:
            with os.fdopen(handle, "wb", buffering=0) as file:
                _write_all(file.write, memoryview(data).cast("B"))
                if sys.platform != "win32":
                    os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode) if path.exists() else mode & ~_mask())
                _to_disk(file.fileno())
            os.replace(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise
        sync_directory(path.parent)
    except OSError as error:
        error.filename = str(path)
        raise


def write_output(path: Path, data: bytes, hint: str = "free some space, or choose another place") -> None:
    """Writes a file that a user named, see `write_whole` (raises `RequestError`: it cannot be written)."""
    try:
        write_whole(path, data)
    except (OSError, ValueError) as error:  # ValueError: a zero byte, or letters that no name has
        reason = error.strerror if isinstance(error, OSError) else error
        raise RequestError(f"cannot write {path}: {reason}", hint=hint) from error


def _write_all(write: Callable[[memoryview], int | None], data: memoryview) -> None:
    position = 0
    while position < data.nbytes:
        position += write(data[position : position + _CHUNK]) or 0


def _mask() -> int:
    """The process's mask of permissions, which the system tells only where it changes it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def short_name(name: str) -> str:
    """A name's beginning, which leaves room in a file's name for what is added."""
    return os.fsdecode(os.fsencode(name)[:_LONGEST_NAME])


def rename_new(source: Path, place: Path) -> bool:
    """Renames a file or directory to a place where nothing is; returns whether the system can do that at once.

    Raises:
        FileExistsError: Something is at `place`; nothing was changed.
        OSError: It cannot be renamed.
    """
    if sys.platform == "win32":
        os.rename(source, place)  # never replaces there
        return True
    return _renamed(source, place, 0)


def exchange(one: Path, other: Path) -> bool:
    """Exchanges two files or directories; returns whether the system can do that at once, else nothing was changed.

    Raises:
        OSError: One is not there, or they cannot be exchanged.
    """
    return _renamed(one, other, 1)


@functools.cache
def _function(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None, use_errno=True), name, None)


def _renamed(source: Path, place: Path, which: int) -> bool:
    name, *flags = _RENAMES.get(sys.platform, ("", 0, 0))
    function = _function(name) if name else None
    if function is None:
        return False
    here = _HERE[sys.platform]
    # The last argument is 32 bits wide and unsigned.
    failed = function(
        ctypes.c_int(here), ctypes.c_char_p(os.fsencode(source)), ctypes.c_int(here),
        ctypes.c_char_p(os.fsencode(place)), ctypes.c_uint(flags[which]),
    )  # fmt: skip
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in _LACKING:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(place))


def sync_tree(root: Path) -> None:
    """Brings every file and directory under `root` to the disk; a rename must not be there before what it names."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            _sync(os.path.join(folder, name), 0)
        sync_directory(Path(folder))


def sync_directory(path: Path) -> None:
    """Brings the names of a directory to the disk, where the system can."""
    if sys.platform != "win32":
        _sync(str(path), os.O_DIRECTORY)


def _sync(path: str, flags: int) -> None:
    handle = os.open(path, (os.O_RDWR if sys.platform == "win32" else os.O_RDONLY) | flags)
    try:
        _to_disk(handle)
    finally:
        os.close(handle)


def _to_disk(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _LACKING:  # some file systems cannot
            raise
