"""Chooses how the inputs of linear layers become 8-bit integers: ranges, smoothing, and which layers stay higher."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.calibrators import SEARCH as SEARCHES
from leptonc.calibrate.calibrators import Grid, calibrators, grids_of
from leptonc.calibrate.sensitivity import Trial, measure
from leptonc.calibrate.solve import as_stored, inputs_of
from leptonc.calibrate.statistics import Statistics
from leptonc.calibrate.walk import Stage, Weights, stages, walk
from leptonc.ir import edit
from leptonc.ir.structure import Linear, weight_of
from leptonc.passes.feature import Feature
from leptonc.passes.quantize.activations import WIDE_ZERO, QuantizeActivationsConfig, round_value
from leptonc.passes.quantize.blocks import Format, dequantize
from leptonc.passes.quantize.channels import channel_codes
from leptonc.passes.quantize.smooth import Place, SmoothLinearsConfig, places
from leptonc.passes.quantize.static import StaticActivations

STRENGTHS = (0.5, 0.8, 0.9)  # of smoothing what a norm makes, besides none
CAPS = (0.01, 0.05)  # parts of the features of other values that are brought down to the others, besides none
SEARCH = 128  # ordinary tokens that strengths are compared on
OUTLIERS = 16  # features, one in 64 at most, that may go past the integers of a value that one layer reads
# They do where the error is above the first, and at most this part of it is left: they cost three small operators.
LARGE, GAIN = 0.003, 0.5
SHARE = 0.9  # of the layers' multiply-adds that are 8-bit at least
# How much of the error of weights that are rounded to nearest is left: paired codes add to it, GPTQ removes from it.
ROUNDED, SOLVED = 1.7, 0.3
# Nats by which all rounded inputs together may move what the model says, before more layers are kept higher.
TOLERANCE = 0.003
# Where higher is 16 bits, still more layers may be, so that these nats are not passed.
LARGE_MOVE, WIDE_SHARE = 0.02, 0.75
ROOM = 2  # 16 bits reach so many times as far as the inputs on the text do


@dataclass(frozen=True)
class Choice:
    """How one value that linear layers read is quantized.

    Attributes:
        value: Its name in the graph.
        linears: The layers.
        strength: Of smoothing what a norm makes, of STRENGTHS; of other values the part of CAPS; 0 for none.
        scales: float32 [width] that it is divided by, or None.
        grid: Its integers, after that.
        outliers: Features that stay float, in order.
        ends: Least and greatest value on the text, after that, of the others.
        mean, importance: Of each feature and its square, after that, float64 [width]; zero for those that stay float.
        error: Of the layers' outputs, both sides rounded, as a part of each layer's outputs, the mean of the layers;
            unsmoothed: without smoothing.
    """

    value: str
    linears: tuple[Linear, ...]
    strength: float
    scales: NDArray[np.float32] | None
    grid: Grid
    outliers: tuple[int, ...]
    ends: tuple[float, float]
    mean: NDArray[np.float64]
    importance: NDArray[np.float64]
    error: float
    unsmoothed: float

    @property
    def path(self) -> str:
        """What stands for it: the path of the first layer."""
        return self.linears[0].path

    def apart(self, weight: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns a weight [out, width] without the outliers' columns, and with these alone."""
        few = np.zeros_like(weight)
        few[:, self.outliers] = weight[:, self.outliers]
        return weight - few, few

    @property
    def work(self) -> int:
        """Multiply-adds a token."""
        return sum(each.shape[0] * each.shape[1] for each in self.linears)


def smooth_scales(
    inputs: NDArray[np.float32], weights: NDArray[np.float32], strength: float
) -> NDArray[np.float32]:  # fmt: skip
    """Returns max|X_j|^strength / max|W_j|^(1 - strength) of each feature (equation 4 of SmoothQuant), float32 [width].

    Args:
        inputs: Largest magnitude of each feature, [width].
        weights: Weights [out, width] of all layers that read it.
        strength: From 0, all difficulty stays in the inputs, to 1, all goes to the weights.

    Their geometric mean is 1; features that are always zero, or that no weight reads, have 1.
    """
    largest = np.abs(weights).max(0)
    used = (inputs > 0) & (largest > 0)
    logs = np.zeros(len(inputs))
    logs[used] = strength * np.log(inputs[used]) - (1 - strength) * np.log(largest[used])
    logs[used] -= logs[used].mean() if used.any() else 0
    # Far-off features stay within what float32 weights and norms carry without loss.
    found: NDArray[np.float32] = np.exp(np.clip(logs, -9, 9)).astype(np.float32)
    return found


def cap_scales(inputs: NDArray[np.float32], part: float, past: int = 0) -> NDArray[np.float32]:
    """Returns what brings the features that reach furthest down to the others' range, float32 [width], 1 at least.

    Products of gates are sparse: what a feature reaches on one text says little of what it reaches on the next. So no
    feature is enlarged, as smoothing does, and most have room that they did not use yet.

    Args:
        inputs: Largest magnitude of each feature, [width].
        part: The part of the features that are brought down.
        past: How many others reach further and go past the integers.
    """
    at = min(len(inputs) - 1, past + int(part * len(inputs)))
    limit = max(float(np.sort(inputs)[::-1][at]), float(np.finfo(np.float32).tiny))
    found: NDArray[np.float32] = np.maximum(inputs / np.float32(limit), 1).astype(np.float32)
    return found


def choose(
    seen: Statistics, linears: tuple[Linear, ...], place: Place | None, calibrator: str, *, symmetric: bool,
    strengths: Sequence[float] = STRENGTHS, weights: float = 1.0,
) -> Choice:  # fmt: skip
    """Chooses the grid of one value and, where it can be divided, the smoothing whose outputs are off least.

    Where one layer reads it, and no norm makes it, features that reach furthest may go past the integers: see `LARGE`.

    Outputs are compared on the tokens that `Statistics.sample` gives, with inputs on their grid, and with weights on
    one of 8 bits a channel; `weights` is how much the error of the latter counts.
    """
    weight = np.concatenate([weight_of(each) for each in linears])
    rows, counts = seen.sample(SEARCH)
    want = rows @ weight.T
    split = np.cumsum([each.shape[0] for each in linears])[:-1]
    whole = _energies(want, counts, split)
    # What gates let through is sparse: on other texts others reach far, so nothing that was seen is cut off.
    gated = place is not None and place.linear is not None and place.heads == (1, 1)
    names = ("minmax",) if gated and calibrator == SEARCHES else calibrators(calibrator)
    tries: list[tuple[float, Callable[[int], NDArray[np.float32] | None]]] = [(0.0, lambda past: None)]
    if place is not None and place.norm is not None:
        ordinary = np.abs(rows[: len(rows) - min(seen.sinks, len(rows))]).max(0, initial=0)
        for largest in (seen.largest, ordinary) if seen.sinks else (seen.largest,):
            smooth = [place.shared(smooth_scales(largest, weight, each)) for each in strengths]
            tries += [(each, lambda past, known=known: known) for each, known in zip(strengths, smooth, strict=True)]  # type: ignore[misc]
    elif place is not None:
        tries += [(each, lambda past, each=each: place.shared(cap_scales(seen.largest, each, past))) for each in CAPS]  # type: ignore[misc]

    def part(off: NDArray[Any]) -> float:
        parts = _energies(off, counts, split)
        return float(np.divide(parts, whole, out=np.zeros_like(parts), where=whole > 0).mean())

    def tried(strength: float, scale: Callable[[int], NDArray[np.float32] | None], count: int) -> _Tried:
        scales = scale(count)
        by = np.ones(seen.width, np.float32) if scales is None else scales
        few = np.sort(np.argsort(-seen.largest, kind="stable")[:count])
        x, moved = rows / by, weight * by
        x[:, few] = moved[:, few] = 0
        by_weights = weights * part(x @ (_nearest(moved) - moved).T)
        narrowed = by.copy()
        narrowed[few] = np.inf  # what is divided by it is zero
        known = None if scales is None and not count else narrowed
        grids = grids_of(seen, names, symmetric, known)
        off, grid = min(((part((each.round(x) - x) @ moved.T), each) for each in grids), key=lambda found: found[0])
        return _Tried(off + by_weights, strength, scales, tuple(few.tolist()), grid)

    found = [tried(strength, scale, 0) for strength, scale in tries]
    best = min(found, key=lambda each: each.error)
    count = min(OUTLIERS, seen.width // 64)
    alone = len(linears) == 1 and len(list(linears[0].weight.uses())) == 1  # a shared weight is another layer's too
    if count and alone and (place is None or place.norm is None):
        past = min((tried(strength, scale, count) for strength, scale in tries), key=lambda each: each.error)
        best = past if best.error > LARGE and past.error < GAIN * best.error else best
    by = np.ones(seen.width, np.float32) if best.scales is None else best.scales.copy()
    importance = seen.importance() / np.square(by.astype(np.float64))
    importance[list(best.outliers)] = 0
    by[list(best.outliers)] = np.inf
    mean = seen.mean() / by
    return Choice(
        str(linears[0].x.name), linears, best.strength, best.scales, best.grid, best.outliers, seen.ends(by),
        mean, importance, best.error, found[0].error,
    )  # fmt: skip


@dataclass(frozen=True)
class _Tried:
    """One way to quantize a value; names are those of `Choice`."""

    error: float
    strength: float
    scales: NDArray[np.float32] | None
    outliers: tuple[int, ...]
    grid: Grid


def _energies(y: NDArray[Any], counts: NDArray[np.float64], split: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sums of squares [layers] of outputs [tokens, out of all layers], tokens counted as they are."""
    features = counts @ np.square(y)
    return np.array([float(part.sum()) for part in np.split(features, split)])


def _nearest(moved: NDArray[np.float32]) -> NDArray[np.float32]:
    """A weight [out, in] on 255 even steps a channel."""
    step = np.abs(moved).max(1, keepdims=True) / np.float32(127)
    step = np.where(step > 0, step, np.float32(1))
    found: NDArray[np.float32] = np.rint(moved / step) * step
    return found


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
    groups = [each for stage in stages(model) for each in stage.linears.items()]
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
    """Chooses which inputs stay float: those that hurt most for their work, until the rest hurts little.

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
        scales={each.path: each.scales for each in smooth if each.scales is not None},
        inputs={path: Feature(each.mean, each.importance) for path, each in layers},
    )


def _grid(choice: Choice, wide: bool) -> tuple[float, int]:
    """Scale and zero point of a choice's integers."""
    if not wide:
        return choice.grid.scale, choice.grid.zero
    reach = ROOM * max(map(abs, choice.ends))
    return (float(np.float32(reach / (WIDE_ZERO - 1))) if reach else 1.0), WIDE_ZERO


def describe(
    found: Sequence[Choice], errors: Mapping[str, float], kept: set[str], calibrator: str, wide: Collection[str] = ()
) -> dict[str, Any]:
    """Returns what a report says of the choices; see `static_of`."""
    work = max(1, sum(each.work for each in found))
    bits = {each.path: 32 if each.path in kept else 16 if each.path in wide else 8 for each in found}
    shares = {few: sum(each.work for each in found if bits[each.path] == few) / work for few in (8, 16)}
    return {
        "calibrator": calibrator,
        "int8_share": round(shares[8], 4),
        "int16_share": round(shares[16], 4),
        "int8_share_of": "multiply-adds a token of the linear layers inside the layers; embedding and head are apart",
        "inputs": [
            {
                "layers": [linear.path for linear in each.linears], "bits": bits[each.path],
                "range": [float(f"{end:.6g}") for end in each.ends], "scale": each.grid.scale, "zero": each.grid.zero,
                "outliers": list(each.outliers), "smoothing": each.strength, "error": float(f"{each.error:.4g}"),
                "error_unsmoothed": float(f"{each.unsmoothed:.4g}"), "divergence": float(f"{errors[each.path]:.4g}"),
            }
            for each in found
        ],
    }  # fmt: skip
