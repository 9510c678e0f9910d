"""Chooses the codes of a model's linear layers from what a calibration text makes of their inputs."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.inputs import inputs_of
from leptonc.calibrate.moments import Moments
from leptonc.calibrate.stage_session import Weights
from leptonc.calibrate.staged_run import walk
from leptonc.calibrate.stages import Stage, linear_stages
from leptonc.calibrate.step_cache import StepCache
from leptonc.ir.structure import Linear, as_stored, layer_of, linears, lookups, weight_of
from leptonc.passes.columns import DAMPING, Factor, factorize, shift_of
from leptonc.passes.quantize.blocks import Codes, Format, dequantize
from leptonc.passes.quantize.gptq import clip_search, damping_of, gptq, output_error

Arrays = dict[str, NDArray[Any]]
MomentsOf = Callable[[str], Moments]  # of a value that linear layers of the stage read; to be had once
# Weights make up for half of what inputs lack, and for less where there are fewer than 8 tokens for each feature.
MADE_UP, TOKENS = 0.5, 8
TRIED = 64  # outputs of a layer that tell its damping
LOOKED_UP = 0.1  # of the mean second moment, added to all for a head whose rows are looked up as embeddings, too


def by_layer(
    model: ir.Model, windows: Sequence[NDArray[np.int64]], choose: Callable[[Stage, MomentsOf], Arrays],
    use: Callable[[Stage, Arrays], Weights], folder: Path, *, memory: int,
    advance: Callable[[int], Any] = lambda _: None, kept: StepCache | None = None, name: str, outside: bool = False,
    with_exact: bool = False, hold_out: bool = False,
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
        with_exact: Whether moments also know how far inputs are from the exact model's; see `walk`. Default: not.
        hold_out: Whether moments know those of some texts apart.
    """
    steps = kept or StepCache()
    moments: dict[str, Moments] = {}

    def see(stage: Stage, value: str, *x: NDArray[Any]) -> None:
        if value not in moments:
            moments[value] = Moments(stage.linears[value][0].path, x[0].shape[-1], hold_out=hold_out)
        moments[value].add(*x)

    def solve(stage: Stage) -> Weights:
        found = steps.arrays(step_of(name, stage), lambda: choose(stage, moments.pop))
        return use(stage, found)

    walk(
        model, [inputs_of(model, window) for window in windows], see, solve, folder, memory=memory, advance=advance,
        solved_before=lambda stage: steps.has(step_of(name, stage)), outside=outside,
        with_exact=with_exact,
    )  # fmt: skip


def step_of(name: str, stage: Stage) -> str:
    """What a stage's step of `by_layer` is called where it is kept."""
    return f"{name}-{stage.path or 'first'}"


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
        report: dict[str, Any], method: str = "gptq", kept: StepCache | None = None, name: str = "codes",
    ) -> None:  # fmt: skip
        self._windows, self._folder, self._memory = windows, folder, memory
        self._stage, self._report, self._method = stage, report, method
        self._kept, self._name = kept or StepCache(), name

    def __call__(self, model: ir.Model, form: Callable[[Linear], Format | None]) -> Mapping[str, Codes]:
        """Returns the codes of linear layers, those of a head of fewer than 8 bits too, by the name of the weight."""
        steps, place = self._kept, None
        if steps.folder is None:  # codes go to files all the same, which are gone with what reads them
            steps = StepCache(place := Path(tempfile.mkdtemp(dir=self._folder, prefix=".codes.")))
        codes = _Chosen(steps)
        if place is not None:
            weakref.finalize(codes, shutil.rmtree, place, ignore_errors=True)
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
                    codes.add(key, step_of(self._name, stage))
                    about = {"path": linear.path, "error": round(float(arrays[f"{key} error"]), 6)}
                    damping = arrays.get(f"{key} damping")
                    errors.append(about if damping is None else {**about, "damping": float(damping)})
                if stage.outputs:  # a head is the last: nothing reads what it makes of the text
                    made[key] = as_stored(dequantize(codes[key], given), linear)
            return made

        solved = self._method == "gptq"
        few = any(given is not None and given.bits < 8 for given in map(wanted, linears(model)))
        with self._stage("pass calibrate", len(linear_stages(model))) as advance:
            by_layer(
                model, self._windows, choose, use, self._folder, memory=self._memory, advance=advance, kept=steps,
                name=self._name, outside=True, with_exact=solved, hold_out=solved and few,
            )  # fmt: skip
        self._report["linears"] = errors
        return codes

    def _chosen(
        self, forms: Mapping[str, Sequence[tuple[Linear, Format]]], moments_of: MomentsOf,
        tables: Container[ir.Value | None],
    ) -> Arrays:  # fmt: skip
        """Returns the parts of each layer's codes, the error of its outputs, and the damping that was chosen."""
        found: Arrays = {}
        for name, group in forms.items():
            moments = moments_of(name)
            # One token a text, as a classifier has: what is made up for in features unseen would be anything.
            enough = moments.tokens >= moments.width or all(layer_of(linear.path) for linear, _ in group)
            solved = self._method == "gptq" and enough and bool(group)
            more = LOOKED_UP if any(linear.weight in tables for linear, _ in group) else 0.0
            weights = [weight_of(linear) for linear, _ in group]
            damping = _damping(moments, weights, [form for _, form in group], more) if solved else None
            hessian, factor, shift = moments.hessian(), None, None
            if solved:
                # Damping that is best for codes would leave out much of what can be made up for.
                factor = factorize(hessian, DAMPING + more)
                shift = None if factor is None or more else _shift(moments, factor)
            del moments
            if damping not in (None, DAMPING):
                factor = factorize(hessian, damping + more)
            for (linear, form), weight in zip(group, weights, strict=True):
                key = str(linear.weight.name)
                if solved:
                    codes = gptq(weight, form, hessian, factor, shift)
                else:
                    codes = clip_search(weight, form, np.diag(hessian))
                found |= {f"{key} {part}": array for part, array in codes._asdict().items() if array is not None}
                found[f"{key} error"] = np.array(output_error(weight, codes, form, hessian, shift))
                if damping is not None:
                    found[f"{key} damping"] = np.array(damping)
        return found


class _Chosen(Mapping[str, Codes]):
    """Codes by the name of the weight, which lie in the files of the steps that chose them."""

    def __init__(self, steps: StepCache) -> None:
        self._steps, self._step = steps, dict[str, str]()

    def add(self, weight: str, step: str) -> None:
        self._step[weight] = step

    def __contains__(self, weight: object) -> bool:
        return weight in self._step

    def __getitem__(self, weight: str) -> Codes:
        found = self._steps.read(self._step[weight], [f"{weight} {part}" for part in Codes._fields])
        return Codes(*(found.get(f"{weight} {part}") for part in Codes._fields))  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[str]:
        return iter(self._step)

    def __len__(self) -> int:
        return len(self._step)


def _damping(
    moments: Moments, weights: Sequence[NDArray[Any]], forms: Sequence[Format], more: float
) -> float | None:  # fmt: skip
    """Chooses the damping for all layers that read one value; None where the text is too short to choose by.

    Eight bits leave too little error for it to matter.
    """
    few = [(weight, form) for weight, form in zip(weights, forms, strict=True) if form.bits < 8]
    parts = moments.held_out() if few else None
    if parts is None:
        return None
    return damping_of([(weight[:: max(1, len(weight) // TRIED)], form) for weight, form in few], *parts, more)


def _shift(moments: Moments, factor: Factor) -> NDArray[np.float32] | None:
    """How far weights aim beside their own values, for what their inputs lack; rows that are looked up, too, do not."""
    off, part = moments.off(), MADE_UP * min(1, moments.tokens / (TOKENS * moments.width))
    return None if off is None else shift_of(off, factor, part)
