"""The state of a healing run, and the file from which it goes on after an interruption."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from leptonc.errors import InputError, ResumeWarning
from leptonc.heal.objective import Measured
from leptonc.passes.quantize.weights import quantized_of
from runtime_edge.writing import write_whole

VERSION = 5
_TENSORS = ("learned", "mean", "square", "best")


@dataclass(frozen=True)
class Evaluation:
    """Measurement of the student on the held-out windows, after so many steps."""

    step: int
    measured: Measured


class _Record(msgspec.Struct, forbid_unknown_fields=True):
    """The record beside the tensors of a file."""

    version: int
    mark: str
    steps: int
    seconds: float
    fitted: float
    evaluations: list[Evaluation]
    sha256: str


@dataclass
class State:
    """All that a run changes.

    Attributes:
        learned: The learned numbers, float32 [n].
        mean, square: Adam's means of gradients and of their squares, float32 [n].
        best: The learned numbers with the least loss so far.
        steps: Steps taken.
        seconds: Time taken, with the time before an interruption.
        fitted: Seconds before the first step.
        evaluations: Measurements on the held-out windows.
        whole: Whether the state is consistent: no step is half done.
    """

    learned: Tensor
    mean: Tensor
    square: Tensor
    best: Tensor
    steps: int = 0
    seconds: float = 0.0
    fitted: float = 0.0
    evaluations: list[Evaluation] = field(default_factory=list)
    whole: bool = True
    _path: Path | None = None
    _mark: str = ""

    @staticmethod
    def start(learned: Tensor) -> State:
        """Returns the state before the first step."""
        return State(learned, torch.zeros_like(learned), torch.zeros_like(learned), learned.clone())

    def bind(self, path: Path, mark: str) -> None:
        """Binds the state to a file, and goes on from what it holds; `mark` names the run.

        A damaged file is put aside with a warning, and the run begins anew.

        Raises:
            InputError: The file is of another run.
        """
        self._path, self._mark = path, mark
        if not os.path.lexists(path):
            return
        try:
            self._load(path)
        except (ValueError, OSError) as error:
            aside = path.with_name(f"{path.name}.damaged")
            message = f"{path}: {error}: healing begins anew, the file is {aside.name} now"
            warnings.warn(message, ResumeWarning, stacklevel=2)
            os.replace(path, aside)

    def _load(self, path: Path) -> None:
        """Reads a file. A damaged file raises `ValueError` or `OSError`."""
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise ValueError("it is no file")
        try:
            with safe_open(str(path), framework="pt") as file:
                record = msgspec.json.decode((file.metadata() or {}).get("heal", ""), type=_Record)
                tensors = [file.get_tensor(name) for name in _TENSORS]
        except (SafetensorError, msgspec.DecodeError) as error:
            raise ValueError(f"what cannot be read: {error}") from error
        if record.sha256 != _digest(tensors):
            raise ValueError("its sha256 is another")
        if (record.version, record.mark) != (VERSION, self._mark):
            raise InputError(
                f"expected in {path} what this very build left when it was interrupted, found another's",
                hint="the same command goes on; for another build name another directory, or delete the file",
            )
        if any(tensor.shape != self.learned.shape or tensor.dtype != self.learned.dtype for tensor in tensors):
            raise ValueError("another number of numbers")
        self.learned, self.mean, self.square, self.best = tensors
        self.steps, self.seconds, self.fitted = record.steps, record.seconds, record.fitted
        self.evaluations = record.evaluations

    def save(self) -> None:
        """Writes the file, whole or not at all, if the state is bound to one."""
        from safetensors.torch import save

        if self._path is None:
            return
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        digest = _digest(list(tensors.values()))
        record = _Record(VERSION, self._mark, self.steps, self.seconds, self.fitted, self.evaluations, digest)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, save(tensors, {"heal": msgspec.json.encode(record).decode()}))
        except OSError as error:
            raise InputError(
                f"cannot keep how far healing has come in {self._path}: {error.strerror or error}",
                hint="free some space, or name another directory with --resume",
            ) from error

    def remove(self) -> None:
        """Removes the file, because the run is over."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _digest(tensors: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(student: ir.Model, windows: Sequence[NDArray[np.int64]], *settings: Mapping[str, Any] | Any) -> str:
    """Returns the mark of a run: equal for equal codes, scales, texts and settings."""
    digest = hashlib.sha256()
    for name, value in sorted(student.graph.initializers.items()):
        digest.update(f"{name} {value.shape}".encode())
        weight = quantized_of(value)
        if weight is not None:
            for part in weight.parts():
                digest.update(b"" if part is None else np.ascontiguousarray(part).data)
    for window in windows:
        digest.update(np.ascontiguousarray(window).data)
    for setting in settings:
        pairs = sorted(setting.items()) if isinstance(setting, Mapping) else [("", setting)]
        for name, value in pairs:
            array = isinstance(value, np.ndarray)
            digest.update(name.encode() + (np.ascontiguousarray(value).data if array else repr(value).encode()))
    return digest.hexdigest()
