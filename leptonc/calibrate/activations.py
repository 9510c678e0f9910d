"""Chooses how the inputs of linear layers become integers, and which inputs are kept in more than 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.calibrators import scale_of
from leptonc.calibrate.choice import Choice, choose
from leptonc.calibrate.cores import sharing_cores
from leptonc.calibrate.sensitivity import Trial, measure
from leptonc.calibrate.stage_session import Weights
from leptonc.calibrate.staged_run import walk
from leptonc.calibrate.stages import Stage, linear_stages
from leptonc.calibrate.statistics import Statistics
from leptonc.ir import edit
from leptonc.ir.ports import inputs_of
from leptonc.ir.structure import as_stored, weight_of
from leptonc.passes.feature import Feature
from leptonc.passes.quantize.activations import WIDE_ZERO, QuantizeActivationsConfig, round_value
from leptonc.passes.quantize.blocks import Format, dequantize
from leptonc.passes.quantize.channels import channel_codes
from leptonc.passes.quantize.smooth import SmoothLinearsConfig, places
from leptonc.passes.quantize.static import StaticActivations
from leptonc.report.quantization import Activations, QuantizedInput

SHARE = 0.9  # part of the layers' multiply-adds that have 8-bit inputs at least
# The weights' error, as a part of that of rounding to nearest: paired codes add to it, GPTQ takes from it.
ROUNDED, SOLVED = 1.7, 0.3
# Nats by which all rounded inputs together may move the model's output. Beyond that more inputs are kept higher.
TOLERANCE = 0.003
# Where "higher" means 16 bits, still more inputs are kept higher, up to a share, so that the output moves by less.
LARGE_MOVE, WIDE_SHARE = 0.02, 0.75
ROOM = 2  # integers of 16 bits reach so many times as far as the inputs on the text do


def choices(
    model: ir.Model, windows: Sequence[NDArray[np.int64]], calibrator: str, folder: Path, *, symmetric: bool,
    weights: float = 1.0, memory: int = 2**30, advance: Callable[[int], Any] = lambda _: None,
) -> list[Choice]:  # fmt: skip
    """Runs a captured graph over a text and chooses, for each value that linear layers read, how it is quantized.

    Args:
        model: A captured graph.
        windows: Token ids int64 [length] of each text.
        calibrator: Name of the calibrator that chooses ranges.
        folder: For temporary files.
        symmetric: Whether integers are signed with zero in the middle.
        weights: Factor of the error that rounding weights to nearest makes. Default: 1.
        memory: Bytes of activations that are kept in memory. Others wait on disk. Default: 1 GiB.
        advance: Called with 1 after each stage. Default: nothing is called.

    Raises:
        InputError: An activation is not finite.
    """
    where = places(model)
    statistics: dict[str, Statistics] = {}
    chosen: list[Choice] = []

    def observer(stage: Stage, name: str, x: NDArray[Any]) -> None:
        if name not in statistics:
            statistics[name] = Statistics(stage.linears[name][0].path, x.shape[-1])
        statistics[name].add(x)

    def solve(stage: Stage) -> Weights:
        for name, group in stage.linears.items():
            place, values = where.get(name), statistics.pop(name)
            chosen.append(choose(values, tuple(group), place, calibrator, symmetric=symmetric, weights=weights))
        return {}

    texts = [inputs_of(model, window) for window in windows]
    with sharing_cores():
        walk(model, texts, observer, solve, folder, memory=memory, advance=advance)
    return chosen


def without_layers(chosen: Sequence[Choice]) -> list[Choice]:
    """Returns choices without their graph's layers, so that a file can hold them."""
    return [replace(choice, linears=()) for choice in chosen]


def with_layers(chosen: Sequence[Choice], model: ir.Model) -> list[Choice]:
    """Returns choices with the layers of a captured graph that read their values; the inverse of `without_layers`.

    Raises:
        ValueError: The choices are not those of the values that the graph's layers read, in order.
    """
    groups = [pair for stage in linear_stages(model) for pair in stage.linears.items()]
    if [choice.value for choice in chosen] != [name for name, _ in groups]:
        raise ValueError(f"choices of {len(chosen)} values, in the place of the {len(groups)} that layers read")
    return [replace(choice, linears=tuple(group)) for choice, (_, group) in zip(chosen, groups, strict=True)]


def divergences(
    model: ir.Model, windows: Sequence[NDArray[np.int64]], wanted: Sequence[Choice], folder: Path, *,
    paired: bool | None, memory: int = 2**30, advance: Callable[[int], Any] = lambda _: None,
) -> dict[str, float]:  # fmt: skip
    """Quantizes one value at a time, and the weights that read it, and returns how far the model's output moves.

    Args:
        model: A captured graph.
        windows: Token ids int64 [length] of each text.
        wanted: How each value is quantized.
        folder: For temporary files.
        paired: Whether the weights' codes are paired. None: the weights are not rounded.
        memory: Bytes of activations that are kept in memory. Others wait on disk. Default: 1 GiB.
        advance: Called with 1 after each stage. Default: nothing is called.

    Returns:
        The mean divergence over the texts, by the choice's path; see `output_change.divergence`.
    """
    by_value = {choice.value: choice for choice in wanted}

    def trials(stage: Stage) -> list[Trial]:
        here = [by_value[name] for name in stage.linears if name in by_value]
        return [Trial(choice.path, partial(_rounded, choice, paired), _rounding(choice)) for choice in here]

    # A text's first token has massive activations and moves far. In short texts it would decide everything.
    return measure(model, windows, trials, folder, first=1, memory=memory, advance=advance)


def _rounded(choice: Choice, paired: bool | None) -> Weights:
    """Returns the weights of a choice's layers, scaled for divided inputs, and in 8 bits unless `paired` is None."""
    weights: Weights = {}
    for linear in choice.linears:
        weight = weight_of(linear)
        moved = weight if choice.scales is None else weight * choice.scales
        if paired is not None:
            form = Format(8, weight.shape[1], True, positive=True, paired=paired)
            many, few = choice.apart(moved)
            moved = dequantize(channel_codes(many, form, choice.importance), form) + few
        weights[str(linear.weight.name)] = as_stored(moved, linear)
    return weights


def _rounding(choice: Choice) -> Callable[[ir.Graph], None]:
    """Returns a change of a graph that divides and rounds the choice's value where its layers read it."""

    def change(graph: ir.Graph) -> None:
        names = {linear.node.name for linear in choice.linears}
        readers = [node for node in graph if node.name in names]
        first, x = readers[0], readers[0].inputs[0]
        assert x is not None
        if choice.scales is not None:
            inverse = edit.initializer(graph, f"{x.name}.smooth", ir.tensor(1 / choice.scales, name=f"{x.name}.smooth"))
            (x,) = edit.insert(first, "Mul", [x, inverse], name=f"{x.name}/smooth")
        kind = ir.DataType.INT8 if choice.grid.symmetric else ir.DataType.UINT8
        rounded = round_value(first, x, choice.grid.scale, choice.grid.zero, kind)
        if choice.outliers:
            which = np.isin(np.arange(choice.linears[0].shape[1]), choice.outliers)
            few = edit.initializer(graph, f"{x.name}.outliers", ir.tensor(which, name=f"{x.name}.outliers"))
            (rounded,) = edit.insert(first, "Where", [few, x, rounded], name=f"{x.name}/outliers")
        for node in readers:
            node.replace_input_with(0, rounded)

    return change


def kept_higher(
    chosen: Sequence[Choice], errors: Mapping[str, float], share: float = SHARE, tolerance: float = TOLERANCE
) -> set[str]:
    """Chooses which inputs are kept higher: those with the largest error for their work, until the rest is small.

    Args:
        chosen: The choices for all inputs.
        errors: How far the output moves when one input is rounded, in nats, by path.
        share: Part of the work that has 8-bit inputs at least. Default: `SHARE`.
        tolerance: Nats by which all rounded inputs together may move the output. Default: `TOLERANCE`.

    Returns:
        Paths of the choices.
    """
    left = (1 - share) * sum(choice.work for choice in chosen)
    rest = sum(errors[choice.path] for choice in chosen)
    kept: set[str] = set()
    for choice in sorted(chosen, key=lambda choice: -errors[choice.path] / choice.work):
        if rest <= tolerance:
            break
        if choice.work <= left:
            left -= choice.work
            rest -= errors[choice.path]
            kept.add(choice.path)
    return kept


def widened(chosen: Sequence[Choice], errors: Mapping[str, float]) -> set[str]:
    """Returns the paths of the choices whose inputs get 16 bits, on a backend that has these."""
    return kept_higher(chosen, errors) | kept_higher(chosen, errors, WIDE_SHARE, LARGE_MOVE)


def static_of(
    chosen: Sequence[Choice], kept: set[str], *, symmetric: bool, wide: Collection[str] = ()
) -> StaticActivations:
    """Returns what the passes need to carry out the choices. Inputs whose path is in `kept` stay as they are.

    Inputs whose path is in `wide` get integers of 16 bits, the others of 8.
    """
    wanted = [choice for choice in chosen if choice.path not in kept]
    layers = [(linear.path, choice) for choice in wanted for linear in choice.linears]
    smooth = [choice for choice in wanted if choice.scales is not None]
    return StaticActivations(
        rounding=QuantizeActivationsConfig(
            symmetric,
            tuple((path, *_grid(choice, choice.path in wide)) for path, choice in layers),
            tuple((path, choice.outliers) for path, choice in layers if choice.outliers),
            tuple(path for path, choice in layers if choice.path in wide),
        ),
        smoothing=SmoothLinearsConfig(tuple((choice.path, choice.strength) for choice in smooth)),
        scales={choice.path: _stored(choice.scales) for choice in smooth if choice.scales is not None},
        inputs={path: Feature(choice.mean, choice.importance) for path, choice in layers},
    )


def _stored(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the nearest scales that float16 holds: the runtime multiplies weights by scales in float16."""
    return scales.astype(np.float16).astype(np.float32)


def _grid(choice: Choice, wide: bool) -> tuple[float, int]:
    """Returns scale and zero point of a choice's integers."""
    if not wide:
        return choice.grid.scale, choice.grid.zero
    return scale_of(ROOM * max(map(abs, choice.ends)) / (WIDE_ZERO - 1)), WIDE_ZERO


def describe(
    chosen: Sequence[Choice], errors: Mapping[str, float], kept: set[str], calibrator: str, wide: Collection[str] = ()
) -> Activations:
    """Returns the report's record of the choices; arguments as of `static_of`."""
    work = max(1, sum(choice.work for choice in chosen))
    bits = {choice.path: 32 if choice.path in kept else 16 if choice.path in wide else 8 for choice in chosen}
    shares = {few: sum(choice.work for choice in chosen if bits[choice.path] == few) / work for few in (8, 16)}
    grids = {choice.path: _grid(choice, choice.path in wide) for choice in chosen}
    return Activations(
        calibrator=calibrator,
        int8_share=round(shares[8], 4),
        int16_share=round(shares[16], 4),
        int8_share_of="multiply-adds a token of the linear layers inside the layers; embedding and head are apart",
        inputs=[
            QuantizedInput(
                layers=[linear.path for linear in choice.linears], bits=bits[choice.path],
                range=(float(f"{choice.ends[0]:.6g}"), float(f"{choice.ends[1]:.6g}")),
                scale=grids[choice.path][0], zero=grids[choice.path][1],
                outliers=list(choice.outliers), smoothing=choice.strength, error=float(f"{choice.error:.4g}"),
                error_unsmoothed=float(f"{choice.unsmoothed:.4g}"), divergence=float(f"{errors[choice.path]:.4g}"),
            )
            for choice in chosen
        ],
    )  # fmt: skip
