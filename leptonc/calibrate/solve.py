"""Chooses the codes of a model's linear layers from what a calibration text makes of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.moments import Moments
from leptonc.calibrate.walk import Stage, Weights, stages, walk
from leptonc.ir.structure import Linear, weight_of
from leptonc.passes.columns import factorize
from leptonc.passes.quantize.blocks import Codes, Format, dequantize
from leptonc.passes.quantize.gptq import clip_search, gptq, output_error


def inputs_of(model: ir.Model, token_ids: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Returns a captured graph's inputs for one text, token ids int64 [length]; a cache is empty and just large enough.

    Raises:
        ValueError: The graph has an input that a text does not give.
    """
    ids = token_ids[None]
    known: dict[str, NDArray[Any]] = {
        "input_ids": ids, "past_length": np.zeros(1, np.int64),
        "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids),
    }  # fmt: skip
    found: dict[str, NDArray[Any]] = {}
    for value in model.graph.inputs:
        name = str(value.name)
        if name in known:
            found[name] = known[name]
        elif name.startswith("past_key_values.") and value.shape is not None:
            heads, width = int(value.shape[1]), int(value.shape[3])  # type: ignore[arg-type]
            found[name] = _empty((1, heads, len(token_ids), width))
        else:
            raise ValueError(f"a text gives no input {name}")
    return found


@lru_cache(maxsize=8)
def _empty(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Zeros that all texts and layers share: a cache that nothing was written to."""
    found = np.zeros(shape, np.float32)
    found.setflags(write=False)
    return found


# Given linear layers that read one value, and the second moments of it, gives layers other weights, float32 [out, in].
Choose = Callable[[Sequence[Linear], NDArray[np.float32]], Iterable[tuple[Linear, NDArray[Any]]]]


def by_layer(
    model: ir.Model, windows: Sequence[NDArray[np.int64]], choose: Choose, folder: Path, *, memory: int,
    advance: Callable[[int], Any] = lambda _: None,
) -> None:  # fmt: skip
    """Chooses weights layer by layer: each sees inputs that the layers before it made with theirs.

    Args:
        model: The captured graph; its own weights stay as they are.
        windows: Token ids int64 [length] of each text.
        choose: What chooses.
        folder: For temporary files.
        memory: Bytes of activations kept in memory.
        advance: Called with 1 after each stage, of `stages(model)`.
    """
    moments: dict[str, Moments] = {}

    def see(stage: Stage, name: str, x: NDArray[Any]) -> None:
        if name not in moments:
            moments[name] = Moments(stage.linears[name][0].path, x.shape[-1])
        moments[name].add(x)

    def solve(stage: Stage) -> Weights:
        return {
            str(linear.weight.name): as_stored(weight, linear)
            for name, group in stage.linears.items()
            for linear, weight in choose(group, moments.pop(name).hessian())
        }

    walk(model, [inputs_of(model, window) for window in windows], see, solve, folder, memory=memory, advance=advance)


class Solver:
    """Chooses the codes of a graph's linear layers, layer by layer: each sees inputs that quantized layers made.

    Args:
        windows: Token ids int64 [length] of each calibration text.
        folder: For temporary files: activations beyond `memory`, and the codes until they are written.
        memory: Bytes of activations kept in memory.
        stage: Opens a stage of progress with so many steps.
        report: Gets `linears`: for each linear layer its path, and the error of its outputs as a part of them.
        method: gptq, or awq for the clipping search alone.
    """

    def __init__(
        self, windows: Sequence[NDArray[np.int64]], folder: Path, memory: int, stage: Callable[[str, int], Any],
        report: dict[str, Any], method: str = "gptq",
    ) -> None:  # fmt: skip
        self._windows, self._folder, self._memory = windows, folder, memory
        self._stage, self._report, self._method = stage, report, method

    def __call__(self, model: ir.Model, form: Callable[[Linear], Format | None]) -> Mapping[str, Codes]:
        """Returns the codes of each layer's linear layers, by the name of the weight."""
        codes: dict[str, Codes] = {}
        errors: list[dict[str, Any]] = []

        def choose(group: Sequence[Linear], hessian: NDArray[np.float32]) -> Iterator[tuple[Linear, NDArray[Any]]]:
            factor = None
            for linear in group:
                stored = form(linear)
                if stored is None:
                    continue
                weight = weight_of(linear)
                if self._method == "gptq":
                    factor = factorize(hessian) if factor is None else factor
                    found = gptq(weight, stored, hessian, factor)
                else:
                    found = clip_search(weight, stored, np.diag(hessian))
                error = output_error(weight, found, stored, hessian)
                errors.append({"path": linear.path, "error": round(error, 6)})
                codes[str(linear.weight.name)] = found
                yield linear, dequantize(found, stored)

        with self._stage("pass calibrate", len(stages(model))) as advance:
            by_layer(model, self._windows, choose, self._folder, memory=self._memory, advance=advance)
        self._report["linears"] = errors
        return codes


def as_stored(weight: NDArray[np.float32], linear: Linear) -> NDArray[np.float32]:
    """Returns a weight [out, in] as the graph has it."""
    return weight if linear.transposed else np.ascontiguousarray(weight.T)
