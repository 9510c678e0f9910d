"""Chooses how the inputs of linear layers become integers: each for itself, and which are kept higher than 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.calibrators import scale_of
from leptonc.calibrate.choice import Choice, choose
from leptonc.calibrate.inputs import inputs_of
from leptonc.calibrate.sensitivity import Trial, measure
from leptonc.calibrate.stage_session import Weights
from leptonc.calibrate.staged_run import walk
from leptonc.calibrate.stages import Stage, linear_stages
from leptonc.calibrate.statistics import Statistics
from leptonc.ir import edit
from leptonc.ir.structure import as_stored, weight_of
from leptonc.passes.feature import Feature
from leptonc.passes.quantize.activations import WIDE_ZERO, QuantizeActivationsConfig, round_value
from leptonc.passes.quantize.blocks import Format, dequantize
from leptonc.passes.quantize.channels import channel_codes
from leptonc.passes.quantize.smooth import SmoothLinearsConfig, places
from leptonc.passes.quantize.static import StaticActivations

SHARE = 0.9  # of the layers' multiply-adds that are 8-bit at least
# How much of the error of weights that are rounded to nearest is left: paired codes add to it, GPTQ removes from it.
ROUNDED, SOLVED = 1.7, 0.3
# Nats by which all rounded inputs together may move what the model says, before more layers are kept higher.
TOLERANCE = 0.003
# Where higher is 16 bits, still more layers may be, so that these nats are not passed.
LARGE_MOVE, WIDE_SHARE = 0.02, 0.75
ROOM = 2  # 16 bits reach so many times as far as the inputs on the text do


def choices(
    model: ir.Model, windows: Sequence[NDArray[np.int64]], calibrator: str, folder: Path, *, symmetric: bool,
    weights: float = 1.0, memory: int = 2**30, advance: Callable[[int], Any] = lambda _: None,
) -> list[Choice]:  # fmt: skip
    """Runs a captured graph over a text and chooses, for each value that linear layers read, how it is quantized.

    Args:
        model: A captured graph.
        windows: Token ids int64 [length] of each text.
        calibrator: Name of what chooses ranges.
        folder: For temporary files.
        symmetric: Whether integers are signed with zero in the middle.
        weights: How much the error of rounding weights to nearest counts.
        memory: Bytes of activations kept in memory.
        advance: Called with 1 after each stage.

    Raises:
        InputError: An activation is not finite.
    """
    where = places(model)
    seen: dict[str, Statistics] = {}
    found: list[Choice] = []

    def see(stage: Stage, name: str, x: NDArray[Any]) -> None:
        if name not in seen:
            seen[name] = Statistics(stage.linears[name][0].path, x.shape[-1])
        seen[name].add(x)

    def solve(stage: Stage) -> Weights:
        for name, group in stage.linears.items():
            place, each = where.get(name), seen.pop(name)
            found.append(choose(each, tuple(group), place, calibrator, symmetric=symmetric, weights=weights))
        return {}

    walk(model, [inputs_of(model, each) for each in windows], see, solve, folder, memory=memory, advance=advance)
    return found


def without_layers(found: Sequence[Choice]) -> list[Choice]:
    """Returns choices that know nothing of a graph, so that a file can hold them."""
    return [replace(each, linears=()) for each in found]


def with_layers(found: Sequence[Choice], model: ir.Model) -> list[Choice]:
    """Returns choices with the layers, in a captured graph, that read their values: what `without_layers` took.

    Raises:
        ValueError: They are not of the values that the graph's layers read, in order.
    """
    groups = [each for stage in linear_stages(model) for each in stage.linears.items()]
    if [each.value for each in found] != [name for name, _ in groups]:
        raise ValueError(f"choices of {len(found)} values, in the place of the {len(groups)} that layers read")
    return [replace(each, linears=tuple(group)) for each, (_, group) in zip(found, groups, strict=True)]


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
        paired: Whether the weights' codes are paired; None for weights that are not rounded here.
        memory: Bytes of activations kept in memory.
        advance: Called with 1 after each stage.

    Returns:
        See `sensitivity.divergence`, by the choice's path.
    """
    by_value = {each.value: each for each in wanted}

    def trials(stage: Stage) -> list[Trial]:
        here = [by_value[name] for name in stage.linears if name in by_value]
        return [Trial(each.path, lambda each=each: _rounded(each, paired), _rounding(each)) for each in here]  # type: ignore[misc]

    # A text's first token has massive activations and moves far: of short texts it would decide everything.
    return measure(model, windows, trials, folder, first=1, memory=memory, advance=advance)


def _rounded(choice: Choice, paired: bool | None) -> Weights:
    """The weights of a choice's layers as 8-bit ones compute (None: exact ones), of inputs that are divided before."""
    found: Weights = {}
    for linear in choice.linears:
        weight = weight_of(linear)
        moved = weight if choice.scales is None else weight * choice.scales
        if paired is not None:
            form = Format(8, weight.shape[1], True, positive=True, paired=paired)
            many, few = choice.apart(moved)
            moved = dequantize(channel_codes(many, form, choice.importance), form) + few
        found[str(linear.weight.name)] = as_stored(moved, linear)
    return found


def _rounding(choice: Choice) -> Callable[[ir.Graph], None]:
    """Divides and rounds the choice's value, where its layers read it in a graph."""

    def change(graph: ir.Graph) -> None:
        names = {each.node.name for each in choice.linears}
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
    found: Sequence[Choice], errors: Mapping[str, float], share: float = SHARE, tolerance: float = TOLERANCE
) -> set[str]:
    """Chooses which inputs are kept higher: those that hurt most for their work, until the rest hurts little.

    Args:
        found: All inputs.
        errors: What rounding each one does, by path.
        share: Of the work that has 8-bit inputs at least.
        tolerance: What all rounded inputs together may do.

    Returns:
        Paths of the choices.
    """
    left = (1 - share) * sum(each.work for each in found)
    rest = sum(errors[each.path] for each in found)
    kept: set[str] = set()
    for each in sorted(found, key=lambda each: -errors[each.path] / each.work):
        if rest <= tolerance:
            break
        if each.work <= left:
            left -= each.work
            rest -= errors[each.path]
            kept.add(each.path)
    return kept


def widened(found: Sequence[Choice], errors: Mapping[str, float]) -> set[str]:
    """Chooses which inputs get 16 bits, where a backend has them: paths of the choices."""
    return kept_higher(found, errors) | kept_higher(found, errors, WIDE_SHARE, LARGE_MOVE)


def static_of(
    found: Sequence[Choice], kept: set[str], *, symmetric: bool, wide: Collection[str] = ()
) -> StaticActivations:
    """Returns what the passes need to carry the choices out, but for those that are kept as they are.

    Paths in `wide` get integers of 16 bits, the others of 8.
    """
    wanted = [each for each in found if each.path not in kept]
    layers = [(linear.path, each) for each in wanted for linear in each.linears]
    smooth = [each for each in wanted if each.scales is not None]
    return StaticActivations(
        rounding=QuantizeActivationsConfig(
            symmetric, tuple((path, *_grid(each, each.path in wide)) for path, each in layers),
            tuple((path, each.outliers) for path, each in layers if each.outliers),
            tuple(path for path, each in layers if each.path in wide),
        ),
        smoothing=SmoothLinearsConfig(tuple((each.path, each.strength) for each in smooth)),
        scales={each.path: _stored(each.scales) for each in smooth if each.scales is not None},
        inputs={path: Feature(each.mean, each.importance) for path, each in layers},
    )


def _stored(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest scales that float16 holds: so they are stored where the runtime multiplies weights by them."""
    return scales.astype(np.float16).astype(np.float32)


def _grid(choice: Choice, wide: bool) -> tuple[float, int]:
    """Scale and zero point of a choice's integers."""
    if not wide:
        return choice.grid.scale, choice.grid.zero
    return scale_of(ROOM * max(map(abs, choice.ends)) / (WIDE_ZERO - 1)), WIDE_ZERO


def describe(
    found: Sequence[Choice], errors: Mapping[str, float], kept: set[str], calibrator: str, wide: Collection[str] = ()
) -> dict[str, Any]:
    """Returns what a report says of the choices; see `static_of`."""
    work = max(1, sum(each.work for each in found))
    bits = {each.path: 32 if each.path in kept else 16 if each.path in wide else 8 for each in found}
    shares = {few: sum(each.work for each in found if bits[each.path] == few) / work for few in (8, 16)}
    grids = {each.path: _grid(each, each.path in wide) for each in found}
    return {
        "calibrator": calibrator,
        "int8_share": round(shares[8], 4),
        "int16_share": round(shares[16], 4),
        "int8_share_of": "multiply-adds a token of the linear layers inside the layers; embedding and head are apart",
        "inputs": [
            {
                "layers": [linear.path for linear in each.linears], "bits": bits[each.path],
                "range": [float(f"{end:.6g}") for end in each.ends],
                "scale": grids[each.path][0], "zero": grids[each.path][1],
                "outliers": list(each.outliers), "smoothing": each.strength, "error": float(f"{each.error:.4g}"),
                "error_unsmoothed": float(f"{each.unsmoothed:.4g}"), "divergence": float(f"{errors[each.path]:.4g}"),
            }
            for each in found
        ],
    }  # fmt: skip
