"""2:4 weights by SparseGPT, layer after layer, on inputs that the sparse layers before made of a text."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.code_solver import Arrays, MomentsOf, choose_by_stage
from leptonc.calibrate.stage_session import Weights
from leptonc.calibrate.stages import Stage
from leptonc.calibrate.step_cache import StepCache
from leptonc.ir.structure import as_stored, weight_of
from leptonc.passes.columns import energy, factorize
from leptonc.passes.prune.sparse import magnitude, sparsegpt, why_dense
from leptonc.report.pruning import SparseError


def sparse_weights(
    model: ir.Model, windows: Sequence[NDArray[np.int64]], folder: Path, *, memory: int,
    advance: Callable[[int], Any] = lambda _: None, step_cache: StepCache | None = None,
) -> tuple[dict[str, NDArray[np.float32]], list[SparseError]]:  # fmt: skip
    """Chooses 2:4 weights of all linear layers that get the pattern; see `leptonc.passes.prune.sparse.sparsegpt`.

    Args:
        model: The captured graph. Its own weights stay as they are.
        windows: Token ids int64 [length] of each text.
        folder: For temporary files. The weights wait there, not in memory, and leave nothing behind.
        memory: Bytes of activations that are kept in memory. Others wait on disk.
        advance: Called with 1 after each stage. Default: nothing is called.
        step_cache: What earlier runs of this build made; this run adds to it. Default: nothing is kept.

    Returns:
        Weights as the graph has them, by initializer, which are read when they are used. And for each layer its path,
        the error of its outputs as a part of their energy, and the same error with `magnitude`'s weights.

    Raises:
        InputError: Activations are not finite.
    """
    chosen: dict[str, NDArray[np.float32]] = {}
    report: list[SparseError] = []

    def choose(stage: Stage, moments_of: MomentsOf) -> Arrays:
        arrays: Arrays = {}
        for name, group in stage.linears.items():
            hessian, factor = moments_of(name).hessian(), None
            for linear in group:
                key = str(linear.weight.name)
                # A weight that several layers share is chosen for the first of them.
                if why_dense(linear) or key in chosen or key in arrays:
                    continue
                factor = factorize(hessian, largest_first=False) if factor is None else factor
                weight = weight_of(linear)
                sparse = sparsegpt(weight, hessian, factor)
                whole = max(energy(weight, hessian), float(np.finfo(np.float32).tiny))
                errors = [energy(weight - zeroed, hessian) / whole for zeroed in (sparse, magnitude(weight))]
                arrays |= {key: as_stored(sparse, linear), f"{key} errors": np.array(errors)}
        return arrays

    def use(stage: Stage, arrays: Arrays) -> Weights:
        linears = {str(linear.weight.name): linear for group in stage.linears.values() for linear in group}
        for key, linear in linears.items():
            if key in arrays:
                error, plain = (round(float(value), 6) for value in arrays[f"{key} errors"])
                report.append(SparseError(path=linear.path, error=error, by_magnitude=plain))
                chosen[key] = _on_disk(arrays[key], folder)
        return {key: chosen[key] for key in linears if key in chosen}

    choose_by_stage(
        model, windows, choose, use, folder, memory=memory, advance=advance, step_cache=step_cache, name="sparse"
    )
    return chosen, report


def _on_disk(array: NDArray[np.float32], folder: Path) -> NDArray[np.float32]:
    """Moves an array to a file without a name, which is gone with the array."""
    with tempfile.TemporaryFile(dir=folder) as file:
        array.tofile(file)
        file.flush()
        return np.memmap(file, np.float32, mode="r", shape=array.shape)
