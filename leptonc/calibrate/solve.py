"""Chooses the codes of a model's linear layers from what a calibration text makes of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.kept import Kept
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


# Given a stage, and what gives the second moments of a value that its linear layers read, returns other weights.
Solve = Callable[[Stage, Callable[[str], NDArray[np.float32]]], Weights]


def by_layer(
    model: ir.Model, windows: Sequence[NDArray[np.int64]], solve: Solve, folder: Path, *, memory: int,
    advance: Callable[[int], Any] = lambda _: None, solved_before: Callable[[Stage], bool] = lambda _: False,
) -> None:  # fmt: skip
    """Chooses weights layer by layer: each sees inputs that the layers before it made with theirs.

    Args:
        model: The captured graph; its own weights stay as they are.
        windows: Token ids int64 [length] of each text.
        solve: What chooses; moments of a value can be had once.
        folder: For temporary files.
        memory: Bytes of activations kept in memory.
        advance: Called with 1 after each stage, of `stages(model)`.
        solved_before: Says of a stage that `solve` needs no moments for it.
    """
    moments: dict[str, Moments] = {}

    def see(stage: Stage, name: str, x: NDArray[Any]) -> None:
        if name not in moments:
            moments[name] = Moments(stage.linears[name][0].path, x.shape[-1])
        moments[name].add(x)

    walk(
        model, [inputs_of(model, window) for window in windows], see,
        lambda stage: solve(stage, lambda name: moments.pop(name).hessian()), folder, memory=memory, advance=advance,
        solved_before=solved_before,
    )  # fmt: skip


class Solver:
    """Chooses the codes of a graph's linear layers, layer by layer: each sees inputs that quantized layers made.

    Args:
        windows: Token ids int64 [length] of each calibration text.
        folder: For temporary files: activations beyond `memory`, and the codes until they are written.
        memory: Bytes of activations kept in memory.
        stage: Opens a stage of progress with so many steps.
        report: Gets `linears`: for each linear layer its path, and the error of its outputs as a part of them.
        method: gptq, or awq for the clipping search alone.
        kept: What an interrupted build left, and this one leaves: the codes of each stage under `name`.
    """

    def __init__(
        self, windows: Sequence[NDArray[np.int64]], folder: Path, memory: int, stage: Callable[[str, int], Any],
        report: dict[str, Any], method: str = "gptq", kept: Kept | None = None, name: str = "codes",
    ) -> None:  # fmt: skip
        self._windows, self._folder, self._memory = windows, folder, memory
        self._stage, self._report, self._method = stage, report, method
        self._kept, self._name = kept or Kept(), name

    def __call__(self, model: ir.Model, form: Callable[[Linear], Format | None]) -> Mapping[str, Codes]:
        """Returns the codes of each layer's linear layers, by the name of the weight."""
        codes: dict[str, Codes] = {}
        errors: list[dict[str, Any]] = []

        def name_of(stage: Stage) -> str:
            return f"{self._name}-{stage.path or 'first'}"

        def solve(stage: Stage, moments_of: Callable[[str], NDArray[np.float32]]) -> Weights:
            forms = {
                name: [(linear, given) for linear in group if (given := form(linear)) is not None]
                for name, group in stage.linears.items()
            }
            arrays = self._kept.arrays(name_of(stage), lambda: self._chosen(forms, moments_of))
            made: Weights = {}
            for linear, given in (each for group in forms.values() for each in group):
                key = str(linear.weight.name)
                codes[key] = Codes(*(arrays.get(f"{key} {part}") for part in Codes._fields))  # type: ignore[arg-type]
                errors.append({"path": linear.path, "error": round(float(arrays[f"{key} error"]), 6)})
                made[key] = as_stored(dequantize(codes[key], given), linear)
            return made

        with self._stage("pass calibrate", len(stages(model))) as advance:
            by_layer(
                model, self._windows, solve, self._folder, memory=self._memory, advance=advance,
                solved_before=lambda stage: self._kept.has(name_of(stage)),
            )  # fmt: skip
        self._report["linears"] = errors
        return codes

    def _chosen(
        self, forms: Mapping[str, Sequence[tuple[Linear, Format]]], moments_of: Callable[[str], NDArray[np.float32]]
    ) -> dict[str, NDArray[Any]]:
        """Returns the parts of each layer's codes, and the error of its outputs."""
        found: dict[str, NDArray[Any]] = {}
        for name, group in forms.items():
            hessian, factor = moments_of(name), None
            for linear, form in group:
                key, weight = str(linear.weight.name), weight_of(linear)
                if self._method == "gptq":
                    factor = factorize(hessian) if factor is None else factor
                    codes = gptq(weight, form, hessian, factor)
                else:
                    codes = clip_search(weight, form, np.diag(hessian))
                found |= {f"{key} {part}": array for part, array in codes._asdict().items() if array is not None}
                found[f"{key} error"] = np.array(output_error(weight, codes, form, hessian))
        return found


def as_stored(weight: NDArray[np.float32], linear: Linear) -> NDArray[np.float32]:
    """Returns a weight [out, in] as the graph has it."""
    return weight if linear.transposed else np.ascontiguousarray(weight.T)
