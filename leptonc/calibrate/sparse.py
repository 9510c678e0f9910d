"""2:4 weights by SparseGPT, layer after layer, each on what the sparse layers before it make of a text."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.code_solver import Arrays, MomentsOf, by_layer
from leptonc.calibrate.stage_session import Weights
from leptonc.calibrate.stages import Stage
from leptonc.calibrate.step_cache import StepCache
from leptonc.ir.structure import as_stored, weight_of
from leptonc.passes.columns import energy, factorize
from leptonc.passes.prune.sparse import magnitude, sparsegpt, why_dense


def sparse_weights(
    model: ir.Model, windows: Sequence[NDArray[np.int64]], folder: Path, *, memory: int,
    advance: Callable[[int], Any] = lambda _: None, kept: StepCache | None = None,
) -> tuple[dict[str, NDArray[np.float32]], list[dict[str, Any]]]:  # fmt: skip
    """Chooses 2:4 weights of all linear layers that get the pattern; see `leptonc.passes.prune.sparse.sparsegpt`.

    Args:
        model: The captured graph; its own weights stay as they are.
        windows: Token ids int64 [length] of each text.
        folder: For temporary files; the weights are kept there, not in memory, and leave nothing behind.
        memory: Bytes of activations kept in memory.
        advance: Called with 1 after each stage.
        kept: What an interrupted build left, and this one leaves.

    Returns:
        Weights as the graph has them, by initializer, read when they are used; and of each layer its path and its
        outputs' error, as a part of them, beside that of `magnitude` on the same inputs.

    Raises:
        InputError: Activations are not finite.
    """
    chosen: dict[str, NDArray[np.float32]] = {}
    report: list[dict[str, Any]] = []

    def choose(stage: Stage, moments_of: MomentsOf) -> Arrays:
        found: Arrays = {}
        for name, group in stage.linears.items():
            hessian, factor = moments_of(name).hessian(), None
            for linear in group:
                key = str(linear.weight.name)
                # A weight that several layers have is chosen for the first.
                if why_dense(linear) or key in chosen or key in found:
                    continue
                factor = factorize(hessian, largest_first=False) if factor is None else factor
                weight = weight_of(linear)
                sparse = sparsegpt(weight, hessian, factor)
                whole = max(energy(weight, hessian), float(np.finfo(np.float32).tiny))
                errors = [energy(weight - each, hessian) / whole for each in (sparse, magnitude(weight))]
                found |= {key: as_stored(sparse, linear), f"{key} errors": np.array(errors)}
        return found

    def use(stage: Stage, arrays: Arrays) -> Weights:
        linears = {str(each.weight.name): each for group in stage.linears.values() for each in group}
        for key, linear in linears.items():
            if key in arrays:
                error, plain = (round(float(each), 6) for each in arrays[f"{key} errors"])
                report.append({"path": linear.path, "error": error, "by_magnitude": plain})
                chosen[key] = _on_disk(arrays[key], folder)
        return {key: chosen[key] for key in linears if key in chosen}

    by_layer(
        model, windows, choose, use, folder, memory=memory, advance=advance, kept=kept, name="sparse"
    )
    return chosen, report


def _on_disk(array: NDArray[np.float32], folder: Path) -> NDArray[np.float32]:
    """Keeps an array in a file without a name, which is gone with the array."""
    with tempfile.TemporaryFile(dir=folder) as file:
        array.tofile(file)
        file.flush()
        return np.memmap(file, np.float32, mode="r", shape=array.shape)
