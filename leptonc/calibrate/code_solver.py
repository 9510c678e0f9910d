"""Chooses the codes of a model's linear layers, layer by layer, from their inputs on a calibration text."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.cores import sharing_cores
from leptonc.calibrate.methods import Layers, method_of
from leptonc.calibrate.moments import Moments
from leptonc.calibrate.stage_session import Weights
from leptonc.calibrate.staged_run import walk
from leptonc.calibrate.stages import Stage, linear_stages
from leptonc.calibrate.step_cache import StepCache
from leptonc.ir.ports import inputs_of
from leptonc.ir.structure import Linear, as_stored, layer_of, linears, lookups, weight_of
from leptonc.passes.quantize.blocks import Codes, Format, dequantize
from leptonc.report.quantization import Quantization, SolvedLayer

Arrays = dict[str, NDArray[Any]]
MomentsOf = Callable[[str], Moments]  # takes the name of a value that a stage's linear layers read; works once a name


def choose_by_stage(
    model: ir.Model, windows: Sequence[NDArray[np.int64]], choose: Callable[[Stage, MomentsOf], Arrays],
    use: Callable[[Stage, Arrays], Weights], folder: Path, *, memory: int,
    advance: Callable[[int], Any] = lambda _: None, step_cache: StepCache | None = None, name: str,
    outside: bool = False, with_exact: bool = False, hold_out: bool = False,
) -> None:  # fmt: skip
    """Chooses weights stage by stage. A stage's inputs are those that earlier stages make with their chosen weights.

    Args:
        model: The captured graph. Its own weights stay as they are.
        windows: Token ids int64 [length] of each text.
        choose: Returns what is chosen for a stage's linear layers, by any names.
        use: Takes what was chosen, and returns the weights, by initializer, that the stage runs with.
        folder: For temporary files.
        memory: Bytes of activations that are kept in memory. Others wait on disk.
        advance: Called with 1 after each stage of `linear_stages(model)`. Default: nothing is called.
        step_cache: What earlier runs of this build chose for each stage; this run adds to it. Default: nothing is kept.
        name: Begins the names of the steps in the cache.
        outside: Whether linear layers that are in no layer get weights too. Default: they do not.
        with_exact: Whether moments count how far inputs are from the exact model's; see `walk`. Default: they do not.
        hold_out: Whether moments sum some texts apart; see `Moments`. Default: they do not.
    """
    steps = step_cache or StepCache()
    moments: dict[str, Moments] = {}

    def observer(stage: Stage, value: str, *x: NDArray[Any]) -> None:
        if value not in moments:
            moments[value] = Moments(stage.linears[value][0].path, x[0].shape[-1], hold_out=hold_out)
        moments[value].add(*x)

    def solve(stage: Stage) -> Weights:
        chosen = steps.arrays(step_name(name, stage), lambda: choose(stage, moments.pop))
        return use(stage, chosen)

    with sharing_cores():
        walk(
            model, [inputs_of(model, window) for window in windows], observer, solve, folder, memory=memory,
            advance=advance,
            solved_before=lambda stage: steps.has(step_name(name, stage)), outside=outside, with_exact=with_exact,
        )  # fmt: skip


def step_name(name: str, stage: Stage) -> str:
    """Returns the name that the step cache has for a stage of `choose_by_stage`."""
    return f"{name}-{stage.path or 'first'}"


class Solver:
    """Chooses the codes of a graph's linear layers, layer by layer, on inputs that the quantized layers before made.

    Args:
        windows: Token ids int64 [length] of each calibration text.
        folder: For temporary files: activations beyond `memory`, and the codes until they are written.
        memory: Bytes of activations that are kept in memory.
        stage: Opens a stage of progress with so many steps.
        report: Gets `linears`: each linear layer's path, and the error of its outputs as a part of their energy.
        method: A name of `leptonc.passes.quantize.methods.METHODS` that reads a text. Default: `gptq`.
        step_cache: Codes that earlier runs of this build chose; this run adds to it. Default: nothing is kept.
        name: Begins the names of the steps in the cache.
    """

    def __init__(
        self, windows: Sequence[NDArray[np.int64]], folder: Path, memory: int, stage: Callable[[str, int], Any],
        report: Quantization, method: str = "gptq", step_cache: StepCache | None = None, name: str = "codes",
    ) -> None:  # fmt: skip
        self._windows, self._folder, self._memory = windows, folder, memory
        self._stage, self._report, self._method = stage, report, method_of(method)
        self._step_cache, self._name = step_cache or StepCache(), name

    def __call__(self, model: ir.Model, form: Callable[[Linear], Format | None]) -> Mapping[str, Codes]:
        """Returns the codes of linear layers by the name of the weight. A head of 8 bits has none."""
        steps, place = self._step_cache, None
        if steps.folder is None:  # the codes' files last as long as what reads them
            steps = StepCache(place := Path(tempfile.mkdtemp(dir=self._folder, prefix=".codes.")))
        codes = _StoredCodes(steps)
        if place is not None:
            weakref.finalize(codes, shutil.rmtree, place, ignore_errors=True)
        errors: list[SolvedLayer] = []
        tables = lookups(model)

        def wanted(linear: Linear) -> Format | None:
            wanted_form = form(linear)
            # A head of 8 bits is near enough when it is rounded to nearest.
            return wanted_form if wanted_form is not None and (wanted_form.bits < 8 or layer_of(linear.path)) else None

        def choose(stage: Stage, moments_of: MomentsOf) -> Arrays:
            new = {  # a weight that serves again has its codes already
                name: [(linear, wanted_form) for linear, wanted_form in group if str(linear.weight.name) not in codes]
                for name, group in forms(stage).items()
            }
            return self._chosen(new, moments_of, tables)

        def forms(stage: Stage) -> dict[str, list[tuple[Linear, Format]]]:
            return {
                name: [(linear, wanted_form) for linear in group if (wanted_form := wanted(linear)) is not None]
                for name, group in stage.linears.items()
            }

        def use(stage: Stage, arrays: Arrays) -> Weights:
            weights: Weights = {}
            for linear, wanted_form in chain.from_iterable(forms(stage).values()):
                key = str(linear.weight.name)
                if key not in codes:
                    codes.add(key, step_name(self._name, stage))
                    about = SolvedLayer(path=linear.path, error=round(float(arrays[f"{key} error"]), 6))
                    if (damping := arrays.get(f"{key} damping")) is not None:
                        about.damping = float(damping)
                    errors.append(about)
                if stage.outputs:  # nothing reads what a head makes of the text
                    weights[key] = as_stored(dequantize(codes[key], wanted_form), linear)
            return weights

        few = any(wanted_form is not None and wanted_form.bits < 8 for wanted_form in map(wanted, linears(model)))
        # With weights of 8 bits alone inputs are the exact model's, nearly; where activations are rounded they are not.
        differs = few or any(node.op_type == "QuantizeLinear" for node in model.graph)
        with self._stage("pass calibrate", len(linear_stages(model))) as advance:
            choose_by_stage(
                model, self._windows, choose, use, self._folder, memory=self._memory, advance=advance, step_cache=steps,
                name=self._name, outside=True, with_exact=self._method.WITH_EXACT and differs,
                hold_out=self._method.HOLDS_OUT and few,
            )  # fmt: skip
        self._report.linears = errors
        return codes

    def _chosen(
        self, forms: Mapping[str, Sequence[tuple[Linear, Format]]], moments_of: MomentsOf,
        tables: Container[ir.Value | None],
    ) -> Arrays:  # fmt: skip
        """Returns each layer's parts of codes, the error of its outputs, and its damping where one was chosen."""
        arrays: Arrays = {}
        for name, group in forms.items():
            moments = moments_of(name)
            if not group:
                continue
            layers = Layers(
                [weight_of(linear) for linear, _ in group], [form for _, form in group], moments,
                looked_up=any(linear.weight in tables for linear, _ in group),
                outside=not all(layer_of(linear.path) for linear, _ in group),
            )  # fmt: skip
            del moments
            for (linear, _), chosen in zip(group, self._method.choose(layers), strict=True):
                key = str(linear.weight.name)
                parts = chosen.codes._asdict().items()
                arrays |= {f"{key} {part}": array for part, array in parts if array is not None}
                arrays[f"{key} error"] = np.array(chosen.error)
                if chosen.damping is not None:
                    arrays[f"{key} damping"] = np.array(chosen.damping)
        return arrays


class _StoredCodes(Mapping[str, Codes]):
    """Codes by the name of the weight. They are read from the files of the steps that chose them."""

    def __init__(self, steps: StepCache) -> None:
        self._steps, self._step = steps, dict[str, str]()

    def add(self, weight: str, step: str) -> None:
        self._step[weight] = step

    def __contains__(self, weight: object) -> bool:
        return weight in self._step

    def __getitem__(self, weight: str) -> Codes:
        parts = self._steps.read(self._step[weight], [f"{weight} {part}" for part in Codes._fields])
        return Codes(*(parts.get(f"{weight} {part}") for part in Codes._fields))  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[str]:
        return iter(self._step)

    def __len__(self) -> int:
        return len(self._step)
