"""Ranges of keys and values on a text: the scales of a cache of 8-bit integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.observe import observe
from leptonc.calibrate.stage_session import Values
from leptonc.errors import OVERFLOWS, InputError
from leptonc.ir.dialect import DOMAIN
from leptonc.ir.ports import inputs_of

TOP = 127


def cache_scales(
    model: ir.Model, windows: Sequence[NDArray[np.int64]], folder: Path, *, memory: int = 2**30,
    advance: Callable[[int], Any] = lambda _: None,
) -> dict[str, NDArray[np.float32]]:  # fmt: skip
    """Runs a captured decoder over a text, and returns the scale of each channel of its caches of 8-bit integers.

    Keys, which are stored rotated, have channels that reach far in every token (Liu et al., KIVI, 2024). With a scale
    for each channel these do not coarsen the others. Integers are symmetric. The greatest magnitude on the text becomes
    127, and values beyond it are clipped.

    Args:
        model: A captured graph; values get their types, nothing else changes.
        windows: Token ids int64 [length] of each text.
        folder: For temporary files.
        memory: Bytes of activations that are kept in memory. Others wait on disk. Default: 1 GiB.
        advance: Called with 1 after each stage. Default: nothing is called.

    Returns:
        Scales float32 [heads, width], above zero, by the name of the graph's input for that cache.

    Raises:
        InputError: A key or value is not finite.
    """
    caches: dict[str, list[str]] = {}  # inputs of the graph, by the name of the value that goes into them
    for node in model.graph:
        if node.op_type == "CachedAttention" and node.domain == DOMAIN:
            for new, past in zip(node.inputs[1:3], node.inputs[3:5], strict=True):
                caches.setdefault(str(new.name), []).append(str(past.name))  # type: ignore[union-attr]
    largest: dict[str, NDArray[np.float32]] = {}

    def observer(values: Values) -> None:
        for name in caches.keys() & values.keys():
            reached = np.abs(values[name]).max(axis=(0, 2))  # of [batch, heads, length, width]
            if not np.isfinite(reached).all():
                raise InputError(
                    f"expected finite keys and values on the calibration text, found others in {caches[name][0]}",
                    hint=OVERFLOWS,
                )
            largest[name] = np.maximum(largest[name], reached) if name in largest else reached

    texts = [inputs_of(model, window) for window in windows]
    observe(model, texts, set(caches), observer, folder, memory=memory, advance=advance)
    return {past: _steps(largest[name]) for name, pasts in caches.items() for past in pasts}


def _steps(largest: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the scales of channels. Channels that are always zero get the median of the others."""
    known = largest[largest > 0]
    usual = float(np.median(known)) if known.size else float(TOP)
    steps: NDArray[np.float32] = (np.where(largest > 0, largest, usual) / TOP).astype(np.float32)
    return np.maximum(steps, np.finfo(np.float32).tiny)
