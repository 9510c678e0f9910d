"""The files of an artifact: which there are, and their hashes, computed in the background.

Light to import: `load` starts here, and what it needs next is imported while these hashes are computed.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from runtime_edge.errors import ArtifactError
from runtime_edge.stamps import Stamp, open_regular
from runtime_edge.stamps import kind as kind  # for those that list

MANIFEST_NAME = "manifest.json"

_READ_BYTES = 4 * 2**20  # each hashing thread holds one buffer of this size, however big the file
_MAX_THREADS = 4
_MAX_ENTRIES = 100_000
_LONGEST = 300  # letters of a path in a message

T = TypeVar("T")


def listing(root: Path) -> dict[str, int]:
    """Returns the size in bytes of every file by its path relative to `root`, with forward slashes; opens none.

    Raises:
        ArtifactError: `root` is not a directory, or holds links, special files, or absurdly many entries.
    """
    hint = "an artifact is the directory that `leptonc build` writes, NAME.lepton"
    try:
        is_directory, what = stat.S_ISDIR(os.stat(root).st_mode), "a file"
    except (FileNotFoundError, NotADirectoryError):
        is_directory, what = False, "nothing"
    except (OSError, ValueError) as error:  # ValueError: a zero byte, or letters that no name has
        is_directory, what = False, str(error.strerror if isinstance(error, OSError) else error)
    if not is_directory:
        raise ArtifactError(f"{str(root)[:_LONGEST]}: expected an artifact's directory, found {what}", hint=hint)
    try:
        return dict(_walk(root))
    except OSError as error:
        name = os.fsdecode(error.filename or root)[:_LONGEST]
        raise ArtifactError(f"{name}: expected a directory that can be read, found: {error.strerror}") from error


def _walk(root: Path) -> Iterator[tuple[str, int]]:
    pending = [""]
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
                        f"{name}: expected regular files and folders, found {kind(status.st_mode)}",
                        hint="an artifact holds no links: copy it with links resolved",
                    )


class Background(Generic[T]):
    """A call running in a thread. (`concurrent.futures` imports `logging`: 12 ms of every load.)"""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._call()
            self._error = None
        except BaseException as error:  # raised by `result`, in the thread that asks
            self._error = error

    def result(self) -> T:
        """Waits, and returns what the call returned or raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value


def in_threads(items: Sequence[T], work: Callable[[T], None], threads: int) -> None:
    """Calls `work` for each item, the last first, in so many threads; raises what one raises, and starts no more then.

    Interrupted, it leaves what was begun to end by itself.
    """
    pending = list(items)

    def until_none() -> None:
        try:
            while True:
                try:
                    item = pending.pop()
                except IndexError:
                    return
                work(item)
        finally:
            pending.clear()

    try:
        for thread in [Background(until_none) for _ in range(min(threads, len(pending)))]:
            thread.result()
    finally:
        pending.clear()


class Hashes:
    """The sha256 of files, computed by threads from the moment it is made; leaving it as a context stops them.

    Hashing starts before the manifest is read, so that neither waits for the other; nothing of a file is interpreted.
    """

    def __init__(self, root: Path, sizes: Mapping[str, int]) -> None:
        # hashlib releases the interpreter's lock: one thread a file; biggest first, so that none waits for the last.
        self._pending = sorted(sizes, key=lambda path: (sizes[path], path))
        self._root = root
        self._stopped = False
        self._found: dict[str, str] = {}
        self.stamps: dict[str, Stamp] = {}  # by path, of what was hashed; whole once `results` has returned
        count = max(1, min(_MAX_THREADS, (os.cpu_count() or 1), len(sizes)))
        self._threads = [Background(self._work) for _ in range(count)]

    def __enter__(self) -> Hashes:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True

    def results(self) -> dict[str, str]:
        """Waits, and returns the sha256 in hexadecimal by path (raises `ArtifactError`: a file cannot be read)."""
        for thread in self._threads:
            thread.result()
        return self._found

    def _work(self) -> None:
        import hashlib

        buffer = memoryview(bytearray(_READ_BYTES))
        while not self._stopped:
            try:
                path = self._pending.pop()
            except IndexError:
                return
            digest = hashlib.sha256()
            handle, stamp = open_regular(self._root / path, path)
            try:
                with os.fdopen(handle, "rb", buffering=0) as file:
                    while not self._stopped and (count := file.readinto(buffer)):
                        digest.update(buffer[:count])
                    is_same = Stamp.of(os.fstat(file.fileno())) == stamp
            except OSError as error:
                raise ArtifactError(f"{path}: expected a readable file, found: {error.strerror}") from error
            if not is_same:
                raise ArtifactError(f"{path}: expected a file at rest, found it changed while it was read")
            self._found[path], self.stamps[path] = digest.hexdigest(), stamp
