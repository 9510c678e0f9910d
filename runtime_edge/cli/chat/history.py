"""What a person typed in earlier chats, in a file that only they may read."""

from __future__ import annotations

import json
import os
from pathlib import Path

from runtime_edge.tensorrt.cache import cache_root
from runtime_edge.writing import write_whole

_NAME = "chat-history"
_KEPT, _MOST = 1000, 2000  # entries: above the second, the file is cut to the first
_LONGEST = 16_384  # characters of an entry: what is longer was pasted


class HistoryFile:
    """Entries of a file, a JSON string a line. What goes wrong with the file is told once and ends its use.

    Attributes:
        problem: Why the file is not used, or None.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.problem: str | None = None

    @classmethod
    def of_user(cls) -> HistoryFile:
        """The file in Lepton's cache folder."""
        try:
            return cls(cache_root() / _NAME)
        except RuntimeError as error:  # no home folder
            history = cls(None)
            history.problem = str(error)
            return history

    def read(self) -> list[str]:
        """Returns the entries, the oldest first; lines that are none are left out."""
        if self._path is None:
            return []
        try:
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
            entries = [entry for line in lines if (entry := _entry(line)) is not None]
            if len(entries) > _MOST:
                entries = entries[-_KEPT:]
                write_whole(self._path, "".join(map(_line, entries)).encode(), mode=0o600)
        except FileNotFoundError:
            return []
        except OSError as error:
            self._give_up(error)
            return []
        return entries

    def add(self, entry: str) -> None:
        """Appends an entry, unless it is very long."""
        if self._path is None or len(entry) > _LONGEST:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(handle, "ab", buffering=0) as file:
                if hasattr(os, "fchmod"):
                    os.fchmod(handle, 0o600)
                file.write(_line(entry).encode())
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.problem = f"{self._path}: {error.strerror}"
        self._path = None


def _line(entry: str) -> str:
    return json.dumps(entry) + "\n"


def _entry(line: str) -> str | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, str) else None
