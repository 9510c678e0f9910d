"""What the steps of an interrupted build left behind: the same build reads it, and does not do them again."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from leptonc.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

Arrays = dict[str, NDArray[Any]]
T = TypeVar("T")
VERSION = 4
STEPS = "steps"
LONGEST = 120  # characters of a file's name: systems take 255 bytes, and those of partial files are longer
SMALL = 2**16  # numbers of a weight that is read to tell models apart: gains, biases, of which no two models share all


class Kept:
    """Results of steps, each in a file of a directory; every file says which build it is of.

    Args:
        folder: The directory, or None: then nothing is kept.
        mark: Names the build, see `mark_of`.
    """

    def __init__(self, folder: Path | None = None, mark: str = "") -> None:
        self.folder = None if folder is None else folder / STEPS  # all in it is ours
        self._mark = mark

    def fact(self, name: str, make: Callable[[], Any]) -> Any:
        """Returns what `make` returned when the step was done, or does it now; it has a form in JSON.

        Raises:
            InputError: The file is of another build, or damaged.
        """
        if self.folder is None:
            return make()
        path = self._file(f"{name}.json")
        if path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                mark, value = found["mark"], found["value"]
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                raise self._damaged(path, error) from error
            self._check(path, mark)
            return value
        value = make()
        self._write(path, json.dumps({"mark": self._mark, "value": value}).encode())
        return value

    def record(self, name: str, kind: type[T], make: Callable[[], T], read: Callable[[T], T] = lambda made: made) -> T:
        """Returns, read, what `make` returned when the step was done, or does it now; every number is as it was.

        Args:
            name: Of the step.
            kind: The type of what is made: of dataclasses, arrays (`NDArray[np.float32]`) and what JSON has.
            make: Does the step.
            read: Completes what was made; a KeyError or ValueError says that it is not what the step makes.

        Raises:
            InputError: The file is of another build, or damaged.
        """
        if self.folder is None:
            return read(make())
        import msgspec

        found = self.fact(name, lambda: msgspec.to_builtins(make(), enc_hook=lambda array: array.tolist()))
        try:
            return read(msgspec.convert(found, kind, dec_hook=_array))
        except (msgspec.ValidationError, KeyError, ValueError) as error:
            raise self._damaged(self._file(f"{name}.json"), error) from error

    def arrays(self, name: str, make: Callable[[], Mapping[str, NDArray[Any]]]) -> Arrays:
        """Returns the arrays that `make` returned when the step was done, or does it now.

        Raises:
            InputError: The file is of another build, or damaged.
        """
        if self.folder is None:
            return dict(make())
        path = self._file(f"{name}.safetensors")
        if path.exists():
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(str(path), framework="np") as file:
                    mark = (file.metadata() or {}).get("mark", "")
                    found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
            except (SafetensorError, OSError) as error:
                raise self._damaged(path, error) from error
            self._check(path, mark)
            return found
        from safetensors.numpy import save

        made = {key: np.asarray(array, order="C") for key, array in make().items()}
        self._write(path, save(made, {"mark": self._mark}))
        return made

    def read(self, name: str, keys: Sequence[str]) -> Arrays:
        """Returns those of `keys` that are among the arrays of a step that was done; needs a directory."""
        from safetensors import safe_open

        with safe_open(str(self._file(f"{name}.safetensors")), framework="np") as file:
            return {key: file.get_tensor(key) for key in keys if key in file.keys()}  # noqa: SIM118 (it is no mapping)

    def has(self, name: str) -> bool:
        """Whether the arrays of that name were made before."""
        return self.folder is not None and self._file(f"{name}.safetensors").exists()

    def place(self, name: str, scratch: Path) -> Path:
        """Returns a directory for what a step puts in files of its own; in `scratch` where nothing is kept."""
        found = (scratch if self.folder is None else self.folder) / name
        found.mkdir(parents=True, exist_ok=True)
        return found

    def finish(self) -> None:
        """Removes all that was kept, and the directory if nothing else is in it."""
        if self.folder is not None and self.folder.is_dir():
            shutil.rmtree(self.folder, ignore_errors=True)
            if not any(self.folder.parent.iterdir()):
                self.folder.parent.rmdir()

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / file_name(name)

    def _write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_bytes(data)
        partial.replace(path)

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


def file_name(name: str) -> str:
    """Returns a name for a file of what belongs to a module: its path, but for one that is no name of a file.

    Paths of modules come from files that others wrote.
    """
    plain = re.sub(r"[^\w.@+-]", "_", name, flags=re.ASCII)
    if plain == name and len(name) <= LONGEST and name.strip("."):
        return name
    stem, dot, suffix = plain.rpartition(".")
    return f"{stem[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}{dot}{suffix[:16]}"


def _array(kind: Any, numbers: Any) -> NDArray[Any]:
    """Numbers, in lists, as an array of `kind`: NDArray[dtype]."""
    (dtype,) = get_args(get_args(kind)[1])
    return np.array(numbers, dtype)


def mark_of(model: ir.Model, *settings: Any) -> str:
    """Returns a name for a build: equal for the same graph, small weights and settings."""
    digest = hashlib.sha256(f"{VERSION} {settings!r}".encode())
    for name, value in sorted(model.graph.initializers.items()):
        digest.update(f"{name} {value.shape} {value.dtype}".encode())
        if value.const_value is not None and value.const_value.size <= SMALL:
            digest.update(np.ascontiguousarray(value.const_value.numpy()).tobytes())
    return digest.hexdigest()
