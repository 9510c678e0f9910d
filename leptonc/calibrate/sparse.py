"""2:4 weights by SparseGPT, layer after layer, each on what the sparse layers before it make of a text."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.solve import as_stored, by_layer
from leptonc.ir.structure import Linear, weight_of
from leptonc.passes.columns import energy, factorize
from leptonc.passes.prune.sparse import magnitude, sparsegpt, why_dense


def sparse_weights(
    model: ir.Model, windows: Sequence[NDArray[np.int64]], folder: Path, *, memory: int,
    advance: Callable[[int], Any] = lambda _: None,
) -> tuple[dict[str, NDArray[np.float32]], list[dict[str, Any]]]:  # fmt: skip
    """Chooses 2:4 weights of all linear layers that get the pattern; see `leptonc.passes.prune.sparse.sparsegpt`.

    Args:
        model: The captured graph; its own weights stay as they are.
        windows: Token ids int64 [length] of each text.
        folder: For temporary files; the weights are kept there, not in memory, and leave nothing behind.
        memory: Bytes of activations kept in memory.
        advance: Called with 1 after each stage.

    Returns:
        Weights as the graph has them, by initializer, read when they are used; and of each layer its path and its
        outputs' error, as a part of them, beside that of `magnitude` on the same inputs.

    Raises:
        InputError: Activations are not finite.
    """
    kept: dict[str, NDArray[np.float32]] = {}
    report: list[dict[str, Any]] = []

    def choose(group: Sequence[Linear], hessian: NDArray[np.float32]) -> Iterator[tuple[Linear, NDArray[Any]]]:
        factor = None
        for linear in group:
            name = str(linear.weight.name)
            if why_dense(linear):
                continue
            if name in kept:  # a weight that several layers have is chosen for the first
                yield linear, as_stored(kept[name], linear)
                continue
            factor = factorize(hessian, largest_first=False) if factor is None else factor
            weight = weight_of(linear)
            found = sparsegpt(weight, hessian, factor)
            whole = max(energy(weight, hessian), float(np.finfo(np.float32).tiny))
            error, plain = (energy(weight - each, hessian) / whole for each in (found, magnitude(weight)))
            report.append({"path": linear.path, "error": round(error, 6), "by_magnitude": round(plain, 6)})
            kept[name] = _on_disk(as_stored(found, linear), folder)
            yield linear, found

    by_layer(model, windows, choose, folder, memory=memory, advance=advance)
    return kept, report


def _on_disk(array: NDArray[np.float32], folder: Path) -> NDArray[np.float32]:
    """Keeps an array in a file without a name, which is gone with the array."""
    with tempfile.TemporaryFile(dir=folder) as file:
        array.tofile(file)
        file.flush()
        return np.memmap(file, np.float32, mode="r", shape=array.shape)
