"""Chooses the codes of a model's linear layers from what a calibration text makes of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.kept import Kept
from leptonc.calibrate.moments import Moments
from leptonc.calibrate.walk import Stage, Weights, linear_stages, walk
from leptonc.ir.structure import Linear, layer_of, lookups, weight_of
from leptonc.passes.columns import DAMPING, Factor, factorize, shift_of
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


Arrays = dict[str, NDArray[Any]]
MomentsOf = Callable[[str], Moments]  # of a value that linear layers of the stage read; to be had once
# Weights make up for half of what inputs lack, and for less where there are fewer than 8 tokens for each feature.
MADE_UP, TOKENS = 0.5, 8
LOOKED_UP = 0.1  # of the mean second moment, added to all for a head whose rows are looked up as embeddings, too


def by_layer(
    model: ir.Model, windows: Sequence[NDArray[np.int64]], choose: Callable[[Stage, MomentsOf], Arrays],
    use: Callable[[Stage, Arrays], Weights], folder: Path, *, memory: int,
    advance: Callable[[int], Any] = lambda _: None, kept: Kept | None = None, name: str, outside: bool = False,
    beside: bool = False,
) -> None:  # fmt: skip
    """Chooses weights layer by layer: each sees inputs that the layers before it made with theirs.

    Args:
        model: The captured graph; its own weights stay as they are.
        windows: Token ids int64 [length] of each text.
        choose: Returns what a stage's linear layers get, by any names.
        use: Given that, returns the weights, by initializer, that the stage runs with from then on.
        folder: For temporary files.
        memory: Bytes of activations kept in memory.
        advance: Called with 1 after each stage, of `linear_stages(model)`.
        kept: What an interrupted build left, and this one leaves: what was chosen for each stage, under `name`.
        name: Of what is chosen.
        outside: Whether linear layers outside of the layers get weights, too.
        beside: Whether moments know how far inputs are from those of the model as it was; see `walk`.
    """
    steps = kept or Kept()
    moments: dict[str, Moments] = {}

    def step(stage: Stage) -> str:
        return f"{name}-{stage.path or 'first'}"

    def see(stage: Stage, value: str, *x: NDArray[Any]) -> None:
        if value not in moments:
            moments[value] = Moments(stage.linears[value][0].path, x[0].shape[-1])
        moments[value].add(*x)

    def solve(stage: Stage) -> Weights:
        found = steps.arrays(step(stage), lambda: choose(stage, moments.pop))
        return use(stage, found)

    walk(
        model, [inputs_of(model, window) for window in windows], see, solve, folder, memory=memory, advance=advance,
        solved_before=lambda stage: steps.has(step(stage)), outside=outside, beside=beside,
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
        self._kept, self._name = kept, name

    def __call__(self, model: ir.Model, form: Callable[[Linear], Format | None]) -> Mapping[str, Codes]:
        """Returns the codes of linear layers, those of a head of fewer than 8 bits too, by the name of the weight."""
        codes: dict[str, Codes] = {}
        errors: list[dict[str, Any]] = []
        tables = lookups(model)

        def wanted(linear: Linear) -> Format | None:
            given = form(linear)  # a head's codes of 8 bits are near enough as they are
            return given if given is not None and (given.bits < 8 or layer_of(linear.path)) else None

        def choose(stage: Stage, moments_of: MomentsOf) -> Arrays:
            new = {  # a weight that serves again has its codes
                name: [each for each in group if str(each[0].weight.name) not in codes]
                for name, group in forms(stage).items()
            }
            return self._chosen(new, moments_of, tables)

        def forms(stage: Stage) -> dict[str, list[tuple[Linear, Format]]]:
            return {
                name: [(linear, given) for linear in group if (given := wanted(linear)) is not None]
                for name, group in stage.linears.items()
            }

        def use(stage: Stage, arrays: Arrays) -> Weights:
            made: Weights = {}
            for linear, given in (each for group in forms(stage).values() for each in group):
                key = str(linear.weight.name)
                if key not in codes:
                    codes[key] = Codes(*(arrays.get(f"{key} {part}") for part in Codes._fields))  # type: ignore[arg-type]
                    errors.append({"path": linear.path, "error": round(float(arrays[f"{key} error"]), 6)})
                if stage.outputs:  # a head is the last: nothing reads what it makes of the text
                    made[key] = as_stored(dequantize(codes[key], given), linear)
            return made

        beside = self._method == "gptq"
        with self._stage("pass calibrate", len(linear_stages(model))) as advance:
            by_layer(
                model, self._windows, choose, use, self._folder, memory=self._memory, advance=advance, kept=self._kept,
                name=self._name, outside=True, beside=beside,
            )  # fmt: skip
        self._report["linears"] = errors
        return codes

    def _chosen(
        self, forms: Mapping[str, Sequence[tuple[Linear, Format]]], moments_of: MomentsOf,
        tables: Container[ir.Value | None],
    ) -> Arrays:  # fmt: skip
        """Returns the parts of each layer's codes, and the error of its outputs."""
        found: Arrays = {}
        for name, group in forms.items():
            moments = moments_of(name)
            hessian = moments.hessian()
            # One token a text, as a classifier has: what is made up for in features unseen would be anything.
            enough = moments.tokens >= moments.width or all(layer_of(linear.path) for linear, _ in group)
            solved = self._method == "gptq" and enough
            table = any(linear.weight in tables for linear, _ in group)
            factor, shift = _aim(moments, hessian, table=table) if solved and group else (None, None)
            for linear, form in group:
                key, weight = str(linear.weight.name), weight_of(linear)
                if solved:
                    codes = gptq(weight, form, hessian, factor, shift)
                else:
                    codes = clip_search(weight, form, np.diag(hessian))
                found |= {f"{key} {part}": array for part, array in codes._asdict().items() if array is not None}
                found[f"{key} error"] = np.array(output_error(weight, codes, form, hessian, shift))
        return found


def _aim(
    moments: Moments, hessian: NDArray[Any], *, table: bool
) -> tuple[Factor | None, NDArray[np.float32] | None]:  # fmt: skip
    """What GPTQ needs for all layers that read one value: the factor of its moments, and how far weights aim beside.

    `table` says that rows are looked up, too: these stay what they are.
    """
    factor = factorize(hessian, DAMPING + (LOOKED_UP if table else 0))
    off = None if table else moments.off()
    part = MADE_UP * min(1, moments.tokens / (TOKENS * moments.width))
    return factor, None if off is None or factor is None else shift_of(off, factor, part)


def as_stored(weight: NDArray[np.float32], linear: Linear) -> NDArray[np.float32]:
    """Returns a weight [out, in] as the graph has it."""
    return weight if linear.transposed else np.ascontiguousarray(weight.T)
