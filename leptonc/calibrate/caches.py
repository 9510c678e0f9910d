"""Ranges of keys and values on a text: the scales of a cache of 8-bit integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.inputs import inputs_of
from leptonc.calibrate.observe import observe
from leptonc.calibrate.stage_session import Values
from leptonc.errors import OVERFLOWS, InputError
from leptonc.ir.dialect import DOMAIN

TOP = 127


def cache_scales(
    model: ir.Model, windows: Sequence[NDArray[np.int64]], folder: Path, *, memory: int = 2**30,
    advance: Callable[[int], Any] = lambda _: None,
) -> dict[str, NDArray[np.float32]]:  # fmt: skip
    """Runs a captured decoder over a text and returns what one step of each channel of its caches is.

    Keys, rotated as they are stored, have channels that reach far in every token (Liu et al., KIVI, 2024): a scale a
    channel keeps the others apart from them. Zero stays in the middle; the greatest magnitude on the text becomes 127,
    and what goes beyond that later is cut off.

    Args:
        model: A captured graph; values get their types, nothing else changes.
        windows: Token ids int64 [length] of each text.
        folder: For temporary files.
        memory: Bytes of activations that are kept in memory; others wait on disk.
        advance: Called with 1 after each stage.

    Returns:
        Scales float32 [heads, width], above zero, by the name of the graph's input for that cache.

    Raises:
        InputError: A key or value is not finite.
    """
    caches: dict[str, list[str]] = {}  # inputs, by the name of what goes into them
    for node in model.graph:
        if node.op_type == "CachedAttention" and node.domain == DOMAIN:
            for new, past in zip(node.inputs[1:3], node.inputs[3:5], strict=True):
                caches.setdefault(str(new.name), []).append(str(past.name))  # type: ignore[union-attr]
    largest: dict[str, NDArray[np.float32]] = {}

    def see(values: Values) -> None:
        for name in caches.keys() & values.keys():
            found = np.abs(values[name]).max(axis=(0, 2))  # of [batch, heads, length, width]
            if not np.isfinite(found).all():
                raise InputError(
                    f"expected finite keys and values on the calibration text, found others in {caches[name][0]}",
                    hint=OVERFLOWS,
                )
            largest[name] = np.maximum(largest[name], found) if name in largest else found

    observe(
        model, [inputs_of(model, each) for each in windows], set(caches), see, folder, memory=memory, advance=advance
    )
    return {past: _steps(largest[name]) for name, pasts in caches.items() for past in pasts}


def _steps(largest: NDArray[np.float32]) -> NDArray[np.float32]:
    """Steps of channels; those that were always zero have one of the others' size."""
    known = largest[largest > 0]
    usual = float(np.median(known)) if known.size else float(TOP)
    found: NDArray[np.float32] = (np.where(largest > 0, largest, usual) / TOP).astype(np.float32)
    return np.maximum(found, np.finfo(np.float32).tiny)
