"""Writes an artifact in a hidden directory beside its place, and moves it there at once when it is whole.

Only files that Lepton wrote are ever replaced or removed. A build that was killed leaves its hidden directory; the next
one to the same place removes it, unless a process holds its lock. Its name has this machine's mark, for a lock says
nothing of another machine's processes.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from leptonc.errors import InputError
from runtime_edge.errors import ArtifactError
from runtime_edge.files import MANIFEST_NAME, listing
from runtime_edge.manifest import EMITTED_NAME, REPORT_NAME
from runtime_edge.verify import read_manifest
from runtime_edge.writing import exchange, rename_new, short_name, sync_directory, sync_tree, write_whole

# Kinds of directories that may be replaced, by the file that tells them.
BUNDLE_NAME = "bundle.json"  # of a folder for a device, which `pack --with-runtime` wrote
_OURS = {MANIFEST_NAME: "an artifact", EMITTED_NAME: "an emitted graph", BUNDLE_NAME: "a folder for a device"}
_NEW, _OLD, _WORK, _STEPPING = "new", "old", "work", "stepping"  # in the hidden directory
_SUFFIX = ".partial"
_MOST_NAMED = 3  # files that a message names
_ATTEMPTS = 100


class Place:
    """A hidden directory beside `out`: `put` moves its `path` to `out`, `close` removes the rest.

    Args:
        out: The artifact's path.
        replace: Whether an artifact or emitted graph of ours may be replaced there.

    Raises:
        InputError: `out` exists and may not be replaced.
        OSError: Its directory cannot be written to.
    """

    def __init__(self, out: Path, *, replace: bool) -> None:
        check_out(out, replace=replace)
        self.out, self._replace = out, replace
        self._parents = _make_directories(out.parent)
        self._moving: os.stat_result | None = None  # of `path`, while the old one is moved away
        try:
            self._root, self._lock = _make_hidden(out)
            self.path, self.scratch = self._root / _NEW, self._root / _WORK
            self.path.mkdir()
            self.scratch.mkdir()
        except BaseException:
            self._remove_parents()
            raise

    def put(self) -> None:
        """Moves `path` to `out` at once; `close` removes the directory that was at `out`.

        Raises:
            InputError: Something appeared at `out` meanwhile that may not be replaced; it is left as it is.
        """
        os.chmod(self.path, 0o755)
        sync_tree(self.path)
        while not self._try_move():
            pass
        self._parents = []
        sync_directory(self.out.parent)

    def close(self) -> None:
        """Removes the hidden directory, and the empty directories that were made for `out`."""
        if self._moving is not None:
            self._put_back()
        shutil.rmtree(self._root, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        self._remove_parents()

    def _try_move(self) -> bool:
        """Moves `path` to `out`; returns False where the old one vanished meanwhile, so that the move begins anew."""
        try:
            if not rename_new(self.path, self.out):
                self._step()
            return True
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        if not self._replace:
            raise InputError(
                f"expected nothing at {self.out}, found what was not there when the build began; it was left as it is",
                hint="replace it with --force, or choose another with -o",
            )
        with contextlib.suppress(FileNotFoundError):
            check_out(self.out, replace=True)
            return self._swap()
        return False

    def _swap(self) -> bool:
        """Moves `path` to `out`, and the old one out of reach; checks it there again before it may be removed."""
        write_whole(self._root / _STEPPING, os.fsencode(self.out.name))
        self._moving = self.path.stat()
        if exchange(self.path, self.out):
            old = self.path
        else:
            old = self._root / _OLD
            os.rename(self.out, old)
        try:
            _check_ours(old, self.out)
        except InputError:
            self._put_back()
            raise
        if old != self.path:
            os.rename(self.path, self.out)
        self._moving = None
        os.unlink(self._root / _STEPPING)  # after this the whole hidden directory may be removed
        return True

    def _put_back(self) -> None:
        """Moves the old one back to `out`, where it is not there."""
        moving, self._moving = self._moving, None
        with contextlib.suppress(OSError):
            if os.path.lexists(self._root / _OLD):
                if not os.path.lexists(self.out):
                    os.rename(self._root / _OLD, self.out)
            elif moving is not None and os.path.samestat(moving, self.out.stat()):
                exchange(self.path, self.out)

    def _step(self) -> None:
        """Moves `path` to `out` in two steps, where the system has no rename that never replaces."""
        write_whole(self._root / _STEPPING, os.fsencode(self.out.name))
        self.out.mkdir()  # it fails where something exists
        try:
            os.rename(self.path, self.out)  # onto an empty directory
        except BaseException:
            with contextlib.suppress(OSError):
                self.out.rmdir()
            raise

    def _remove_parents(self) -> None:
        for path in reversed(self._parents):
            with contextlib.suppress(OSError):  # something else is in it
                path.rmdir()
        self._parents = []


def check_out(out: Path, *, replace: bool) -> None:
    """Refuses a path that an artifact may not be written to; it is quick, so it comes before the work.

    First it removes the rest of killed builds to the same path, see `_clear`.

    Raises:
        InputError: The path has something that Lepton did not write, in part or as a whole, or that may not be
            replaced; or its directory cannot be written to.
    """
    _exists(out)  # raises an error where it is no path
    with contextlib.suppress(OSError):  # the checks below, or the first write, report it
        _clear(out)
    if _exists(out):
        kind = None if out.is_symlink() else next((w for name, w in _OURS.items() if (out / name).is_file()), None)
        if kind is None:
            raise InputError(
                f"expected a place for the artifact, found something else at {out}", hint="choose another with -o"
            )
        if not replace:
            raise InputError(
                f"expected nothing at {out}, found {kind}",
                hint="replace it with --force, or choose another with -o",
            )
        _check_ours(out, out)
    parent = out.parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(
            f"expected a directory that can be written to, found {parent}", hint="choose another place with -o"
        )


def _exists(out: Path) -> bool:
    """Whether anything is at a path (raises `InputError` where it is no path)."""
    try:
        os.lstat(out)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # ValueError: a zero byte, or letters that no name has
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"expected a path for the artifact, found {str(out)[:100]!r}: {reason}", hint="choose another with -o"
        ) from error
    return True


def _check_ours(directory: Path, out: Path) -> None:
    """Refuses to remove a directory unless Lepton wrote every file in it; messages call it `out`."""
    hint = f"move what you want to keep and delete {out} yourself, or choose another place with -o"
    try:
        ours = _listed_files(directory)
        present = listing(directory)
    except ArtifactError as error:
        raise InputError(
            f"expected an artifact at {out} that is ours to replace, found: {error.message}", hint=hint
        ) from error
    others = sorted(present.keys() - ours)
    if others:
        more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
        raise InputError(
            f"expected at {out} only what we wrote, found {', '.join(map(repr, others[:_MOST_NAMED]))}{more} beside it",
            hint=hint,
        )


class _Files(msgspec.Struct):
    files: tuple[str, ...] = ()


def _listed_files(directory: Path) -> set[str]:
    """Returns the files that one of `_OURS` lists (raises `ArtifactError` where the list is damaged)."""
    if (directory / MANIFEST_NAME).is_file():
        return {MANIFEST_NAME, *(file.path for file in read_manifest(directory).files)}
    record = EMITTED_NAME if (directory / EMITTED_NAME).is_file() else BUNDLE_NAME
    try:
        about = msgspec.json.decode((directory / record).read_bytes(), type=_Files)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"{record}: expected {_OURS[record]}'s record, found: {error}") from error
    return {record, *about.files, *([REPORT_NAME] if record == EMITTED_NAME else [])}


def _make_directories(path: Path) -> list[Path]:
    """Makes a directory and its missing parents; returns those that it made, the outermost first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()][::-1]
    path.mkdir(parents=True, exist_ok=True)
    return missing


@functools.cache
def _machine() -> str:
    """Returns a mark of this machine, 8 letters: a digest of its name and of its system's identity."""
    texts = [platform.node()]
    for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            texts.append(Path(path).read_text())
            break
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _prefix(out: Path) -> str:
    return f".{short_name(out.name)}.{_machine()}."


def _make_hidden(out: Path) -> tuple[Path, int | None]:
    """Makes a hidden directory for `out`; returns it and its lock, which ends with this process."""
    for _ in range(_ATTEMPTS):
        path = Path(tempfile.mkdtemp(prefix=_prefix(out), suffix=_SUFFIX, dir=out.parent))
        try:
            return path, _locked(path)
        except BlockingIOError:  # another build is about to remove this directory
            continue
    raise OSError(errno.EAGAIN, "no directory of its own could be made", str(out.parent))


if sys.platform == "win32":

    def _locked(path: Path) -> int | None:
        """Returns None: directories have no locks there, so the rest of killed builds stays."""
        return None

else:
    import fcntl

    def _locked(path: Path) -> int | None:
        """Locks a directory; returns None without locks (raises `BlockingIOError` where another process has it)."""
        handle = -1
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(handle), os.lstat(path)):
                raise BlockingIOError(errno.EWOULDBLOCK, "it is another directory now", str(path))
            return handle
        except (BlockingIOError, FileNotFoundError) as error:
            _close(handle)
            raise BlockingIOError(errno.EWOULDBLOCK, "it is another's", str(path)) from error
        except OSError:
            _close(handle)
            return None


def _close(handle: int) -> None:
    if handle >= 0:
        os.close(handle)


def _left_over(out: Path) -> Iterator[Path]:
    prefix = _prefix(out)
    with os.scandir(out.parent) as scan:
        for entry in scan:
            if entry.name.startswith(prefix) and entry.name.endswith(_SUFFIX) and entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)


def _clear(out: Path) -> None:
    """Removes the hidden directories of killed builds to the same path.

    Where one was killed between two steps of a move, the old directory is first moved back to `out`.
    """
    for path in list(_left_over(out)):
        try:
            lock = _locked(path)
        except BlockingIOError:
            continue
        if lock is None:
            continue
        try:
            if _began_move(path, out):
                if not _settle(path, out):
                    continue
                os.unlink(path / _STEPPING)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def _began_move(path: Path, out: Path) -> bool:
    """Whether the build of a hidden directory had begun to replace the old one at `out`."""
    try:
        return (path / _STEPPING).read_bytes() == os.fsencode(out.name)
    except OSError:
        return False


def _settle(path: Path, out: Path) -> bool:
    """Ends a killed move, so that the old or the new one is at `out`; returns whether the rest may be removed."""
    old = path / _OLD
    with contextlib.suppress(OSError):
        out.rmdir()  # an empty one, made for a move in two steps
    if old.exists() and not os.path.lexists(out):
        with contextlib.suppress(OSError):
            os.rename(old, out)
    try:
        for folder in (old, path / _NEW):
            if folder.exists():
                _check_ours(folder, out)
    except InputError:
        return False
    return True
