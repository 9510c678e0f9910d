"""Results of the steps of a build, in files. When a build was interrupted, the same build reads them and goes on.

Every file has a digest of its content. A damaged file is warned of and removed, and its step is done again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from leptonc.errors import InputError, ResumeWarning
from runtime_edge.writing import write_whole

if TYPE_CHECKING:
    import onnx_ir as ir

Arrays = dict[str, NDArray[Any]]
T = TypeVar("T")
VERSION = 5
STEPS = "steps"
OWN = ".lepton"  # a file that marks a directory of ours
_ENDINGS = (".json", ".safetensors", ".npy", ".partial")  # endings of the files in it
LONGEST = 120  # characters of a file's name: systems take 255 bytes, and partial files have longer names
SMALL = 2**16  # numbers of a weight that is read to tell models apart: no two models share all gains and biases


class StepCache:
    """Results of steps, each in a file of a directory. Every file has the mark of its build.

    Args:
        folder: The directory. Default: nothing is kept, and every step is done.
        mark: Mark of the build; see `mark_of`.
    """

    def __init__(self, folder: Path | None = None, mark: str = "") -> None:
        self.folder = None if folder is None else folder / STEPS
        self._mark = mark

    def json(self, name: str, make: Callable[[], Any]) -> Any:
        """Returns the result of a step: stored by an earlier run, or of `make`, which does the step. It must fit JSON.

        Raises:
            InputError: The file is of another build, or cannot be written.
        """
        if self.folder is None:
            return make()
        path = self._file(f"{name}.json")
        if os.path.lexists(path):
            try:
                stored = json.loads(_read(path))
                mark, value = stored["mark"], stored["value"]
                if stored["sha256"] != _digest(json.dumps(value).encode()):
                    raise ValueError("its sha256 is another")
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                self._drop(path, error)
            else:
                self._check(path, mark)
                return value
        value = make()
        text = json.dumps(value)
        self._write(path, f'{{"mark": "{self._mark}", "sha256": "{_digest(text.encode())}", "value": {text}}}'.encode())
        return value

    def record(self, name: str, kind: type[T], make: Callable[[], T], read: Callable[[T], T] = lambda made: made) -> T:
        """Returns the result of a step, stored by an earlier run or of `make`, completed by `read`.

        Numbers are stored exactly.

        Args:
            name: Name of the step.
            kind: Type of the result: dataclasses, arrays (`NDArray[np.float32]`) and what JSON has.
            make: Does the step.
            read: Completes the result. It raises KeyError or ValueError where the result is not one of this step.
                Default: the result is complete.

        Raises:
            InputError: The file is of another build, or damaged.
        """
        if self.folder is None:
            return read(make())
        import msgspec

        stored = self.json(name, lambda: msgspec.to_builtins(make(), enc_hook=lambda array: array.tolist()))
        try:
            return read(msgspec.convert(stored, kind, dec_hook=_array))
        except (msgspec.ValidationError, KeyError, ValueError) as error:
            raise self._damaged(self._file(f"{name}.json"), error) from error

    def arrays(self, name: str, make: Callable[[], Mapping[str, NDArray[Any]]]) -> Arrays:
        """Returns the arrays of a step: stored by an earlier run, or of `make`, which does the step.

        Raises:
            InputError: The file is of another build, or cannot be written.
        """
        if self.folder is None:
            return dict(make())
        if self.has(name):
            return self._read(self._file(f"{name}.safetensors"), None)
        from safetensors.numpy import save

        made = {key: np.asarray(array, order="C") for key, array in make().items()}
        about = {"mark": self._mark, **{f"sha256 {key}": _digest_of(array) for key, array in made.items()}}
        self._write(self._file(f"{name}.safetensors"), save(made, about))
        return made

    def read(self, name: str, keys: Sequence[str]) -> Arrays:
        """Returns those of `keys` that a finished step stored. The cache must have a directory.

        Raises:
            InputError: The file was damaged since.
        """
        path = self._file(f"{name}.safetensors")
        try:
            return self._read(path, keys)
        except (ValueError, OSError) as error:
            raise self._damaged(path, error) from error

    def has(self, name: str) -> bool:
        """Whether a step of that name stored arrays, and they are whole.

        Raises:
            InputError: The arrays are of another build.
        """
        if self.folder is None:
            return False
        path = self._file(f"{name}.safetensors")
        if not os.path.lexists(path):
            return False
        try:
            self._read(path, None)
        except (ValueError, OSError) as error:
            self._drop(path, error)
            return False
        return True

    def _read(self, path: Path, keys: Sequence[str] | None) -> Arrays:
        """Returns arrays of a file; all where `keys` is None. A damaged file raises `ValueError` or `OSError`."""
        from safetensors import SafetensorError, safe_open

        if not path.is_file() or path.is_symlink():
            raise ValueError("it is no file")
        try:
            with safe_open(str(path), framework="np") as file:
                about, names = file.metadata() or {}, list(file.keys())
                if "mark" in about:
                    self._check(path, about["mark"])
                arrays = {key: file.get_tensor(key) for key in names if keys is None or key in keys}
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        if {f"sha256 {key}" for key in names} != about.keys() - {"mark"}:
            raise ValueError("its arrays are others")
        for key, array in arrays.items():
            if about[f"sha256 {key}"] != _digest_of(array):
                raise ValueError(f"the sha256 of {key!r} is another")
        return arrays

    def place(self, name: str, scratch: Path) -> Path:
        """Returns a directory for a step's own files; it lies in `scratch` where nothing is kept."""
        folder = (scratch if self.folder is None else self.folder) / name
        self._own()
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def finish(self) -> None:
        """Removes all files of steps, and directories that are empty then. Files that others put there stay."""
        if self.folder is None or not (self.folder / OWN).is_file():
            return
        with contextlib.suppress(OSError):
            for folder, _, names in os.walk(self.folder, topdown=False):
                for name in names:
                    if name.endswith(_ENDINGS):
                        os.unlink(os.path.join(folder, name))
                if folder != str(self.folder):
                    with contextlib.suppress(OSError):
                        os.rmdir(folder)
            (self.folder / OWN).unlink()
            self.folder.rmdir()
            self.folder.parent.rmdir()

    def forget(self, name: str, error: Exception | str) -> None:
        """Removes the result of a step, which is damaged. The step is done again when its result is asked for."""
        self._drop(self._file(f"{name}.json"), error)

    def _own(self) -> None:
        """Makes the directory, and marks it as ours.

        Raises:
            InputError: The directory is there without our mark, or cannot be made.
        """
        if self.folder is None or (self.folder / OWN).is_file():
            return
        check_ours(self.folder.parent)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / OWN, b"What an interrupted build left; it is removed when the build is whole.\n")
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    @staticmethod
    def _drop(path: Path, error: Exception | str) -> None:
        """Warns that a file is damaged, and removes it."""
        reason = f"no {error}" if isinstance(error, KeyError) else error
        warnings.warn(f"{path}: {reason}: damaged, its step is done again", ResumeWarning, stacklevel=3)
        try:
            path.unlink()
        except OSError as refusal:
            raise InputError(
                f"expected a file that an interrupted build left at {path}, found: {refusal.strerror}",
                hint="delete it, or name another directory",
            ) from refusal

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / file_name(name)

    def _write(self, path: Path, data: bytes) -> None:
        self._own()
        try:
            write_whole(path, data)
        except OSError as error:
            raise _unwritable(path, error) from error

    def _check(self, path: Path, mark: str) -> None:
        if mark != self._mark:
            raise InputError(
                f"expected in {path} what this very build left when it was interrupted, found another's",
                hint="the same command goes on; for another build name another directory, or delete the files",
            )

    @staticmethod
    def _damaged(path: Path, error: Exception) -> InputError:
        return InputError(
            f"expected what an interrupted build left in {path}, found what cannot be read: "
            f"{f'no {error}' if isinstance(error, KeyError) else error}",
            hint="delete the file: its step is done again",
        )


def check_ours(folder: Path) -> None:
    """Refuses a directory in which another file or folder has the name of a step cache.

    Raises:
        InputError: The directory is refused.
    """
    steps = folder / STEPS
    if os.path.lexists(steps) and not (steps / OWN).is_file() and (not steps.is_dir() or any(steps.iterdir())):
        raise InputError(
            f"expected {steps} to be what an interrupted build left, or nothing, found something else",
            hint="name another directory with --resume",
        )


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot keep how far the build has come in {path}: {error.strerror or error}",
        hint="free some space, or name another directory with --resume",
    )


def _read(path: Path) -> str:
    if not path.is_file() or path.is_symlink():
        raise ValueError("it is no file")
    return path.read_text(encoding="utf-8")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest_of(array: NDArray[Any]) -> str:
    """Returns a digest of an array's type, shape and numbers."""
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape} ".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def file_name(name: str) -> str:
    """Returns the name of a module's file: the module's path, made fit for a file name where it is not.

    Paths of modules come from files that others wrote.
    """
    plain = re.sub(r"[^\w.@+-]", "_", name, flags=re.ASCII)
    if plain == name and len(name) <= LONGEST and name.strip("."):
        return name
    stem, dot, suffix = plain.rpartition(".")
    return f"{stem[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}{dot}{suffix[:16]}"


def _array(kind: Any, numbers: Any) -> NDArray[Any]:
    """Returns numbers, in lists, as an array of `kind`: NDArray[dtype]."""
    (dtype,) = get_args(get_args(kind)[1])
    return np.array(numbers, dtype)


def mark_of(model: ir.Model, *settings: Any) -> str:
    """Returns the mark of a build: equal for the same graph, small weights, settings and version of the cache."""
    digest = hashlib.sha256(f"{VERSION} {settings!r}".encode())
    for name, value in sorted(model.graph.initializers.items()):
        digest.update(f"{name} {value.shape} {value.dtype}".encode())
        if value.const_value is not None and value.const_value.size <= SMALL:
            digest.update(np.ascontiguousarray(value.const_value.numpy()).tobytes())
    return digest.hexdigest()
