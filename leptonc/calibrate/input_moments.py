"""Second moments of the inputs of linear layers, gathered in one walk over a text, on disk until they are asked for."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.observe import moments
from leptonc.calibrate.stages import stages
from leptonc.calibrate.step_cache import StepCache, file_name
from leptonc.errors import InputError
from leptonc.ir.ports import inputs_of
from leptonc.ir.structure import Linear

_PART = 2**22  # bytes that are read at once

Clock = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


class InputMoments:
    """Second moments of the inputs of some linear layers in the whole model, a file for each: float32 [in, in].

    One walk over the text gathers them. They serve the choice of what is cut, and the fit of what stays.

    Args:
        model: The captured graph.
        linears: The layers.
        windows: Token ids int64 [length] of each text.
        scratch: For temporary files.
        memory: Bytes of activations that are kept in memory. Others wait on disk.
        clock: Opens a stage of progress with so many steps.
        step_cache: What earlier runs of this build made; this run adds to it. Default: nothing is kept.
    """

    def __init__(
        self, model: ir.Model, linears: Sequence[Linear], windows: Sequence[NDArray[np.int64]], scratch: Path, *,
        memory: int, clock: Clock, step_cache: StepCache | None = None,
    ) -> None:  # fmt: skip
        self.model, self.linears, self.windows, self.scratch = model, linears, windows, scratch
        self.memory, self.clock, self._step_cache = memory, clock, step_cache or StepCache()
        self._folder = self._step_cache.place("moments", scratch)
        self._gathered = False

    def __getitem__(self, linear: Linear) -> NDArray[np.float32]:
        """Returns the moments of one layer's inputs, float32 [in, in].

        Raises:
            InputError: An activation is not finite, or the file that an interrupted build left is damaged.
        """
        self.gather()
        path, width = self._file(linear), linear.shape[1]
        try:
            array: NDArray[np.float32] = np.load(path)
            if array.shape != (width, width) or array.dtype != np.float32:
                raise ValueError(f"{array.dtype} {list(array.shape)} in the place of float32 [{width}, {width}]")
        except (OSError, ValueError, EOFError) as error:
            raise InputError(
                f"expected moments in {path}, found what cannot be read: {error}",
                hint=f"delete {self._folder.with_name('moments.json')}: the step is done again",
            ) from error
        return array

    def gather(self) -> None:
        """Walks over the text, unless that was done; a stage of progress of its own."""
        if self._gathered:
            return
        digests = self._step_cache.json("moments", self._walk)
        if self._step_cache.folder is not None and digests != self._digests():
            self._step_cache.forget("moments", "the sha256 of its files is another")
            self._step_cache.json("moments", self._walk)
        self._gathered = True

    def _digests(self) -> dict[str, str]:
        """Returns the sha256 of each file that is kept, by name; a missing file has that of no bytes."""
        digests = {}
        for path in () if self._step_cache.folder is None else {self._file(linear) for linear in self.linears}:
            digest = hashlib.sha256()
            if path.is_file():
                with path.open("rb") as file:
                    while part := file.read(_PART):
                        digest.update(part)
            digests[path.name] = digest.hexdigest()
        return digests

    def _walk(self) -> dict[str, str]:
        texts = [inputs_of(self.model, window) for window in self.windows]
        with self.clock("prune moments", len(stages(self.model))) as advance:
            moments(
                self.model, self.linears, texts, lambda linear, array: np.save(self._file(linear), array),
                self.scratch, memory=self.memory, advance=advance,
            )  # fmt: skip
        return self._digests()

    def drop(self) -> None:
        """Removes the files, which take much room, unless the step cache keeps them."""
        if self._step_cache.folder is None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, linear: Linear) -> Path:
        return self._folder / file_name(f"{linear.path}.npy")
