"""Fits the layers that sum over cut units anew, on the values that the cut model computes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.moments import is_sink, not_finite
from leptonc.calibrate.stage_session import Values, Weights
from leptonc.calibrate.staged_run import StagedRun
from leptonc.calibrate.stages import stages
from leptonc.ir.edit import only_user
from leptonc.ir.ports import inputs_of
from leptonc.ir.structure import Linear, as_stored, linears, weight_of
from leptonc.passes.prune.obs import least_squares
from leptonc.report.pruning import FittedLayer

RIDGES = (1e-2, 1e-1, 1.0)  # parts of the mean second moment: how strongly a fit keeps to the weights it begins with


class Regression:
    """Moments for a linear fit of outputs to inputs. Massive rows count at most as much as all others, as in `Moments`.

    Args:
        inputs: Features of an input.
        outputs: Features of a target.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self._sums = [np.zeros((inputs + outputs, inputs), np.float32) for _ in range(2)]
        self._energy, self._targets, self.rows = [0.0, 0.0], [0.0, 0.0], 0

    def add(self, x: NDArray[np.float32], target: NDArray[np.float32]) -> None:
        """Counts inputs float32 [..., inputs] and targets [..., outputs]."""
        targets = target.reshape(-1, target.shape[-1])
        rows = x.reshape(len(targets), x.shape[-1])  # there are no inputs where a block goes whole
        energies = [np.einsum("ij,ij->i", array, array) for array in (rows, targets)]
        massive = np.logical_or(*map(is_sink, energies))
        for at, mask in enumerate((~massive, massive)):
            if mask.any():
                part, aim = rows[mask], targets[mask]
                self._sums[at][: rows.shape[1]] += part.T @ part
                self._sums[at][rows.shape[1] :] += aim.T @ part
                self._targets[at] += float(energies[1][mask].sum(dtype=np.float64))
                self._energy[at] += float(energies[0][mask].sum(dtype=np.float64))
        self.rows += len(rows)

    @property
    def _scale(self) -> float:
        """The factor of massive rows. With it neither their inputs nor their targets outweigh those of all others."""
        pairs = (self._energy, self._targets)
        return min((1.0, *(ordinary / massive for ordinary, massive in pairs if massive > ordinary > 0)))

    def moments(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns the second moments of inputs [inputs, inputs], and of targets with them [outputs, inputs]."""
        both: NDArray[np.float32] = self._sums[0] + np.float32(self._scale) * self._sums[1]
        both /= np.float32(max(1, self.rows))
        inputs = both.shape[1]
        return both[:inputs], both[inputs:]

    def __add__(self, other: Regression) -> Regression:
        """Returns the moments over the rows of both."""
        both = Regression(self._sums[0].shape[1], len(self._sums[0]) - self._sums[0].shape[1])
        both.rows = self.rows + other.rows
        for at in range(2):
            both._sums[at] = self._sums[at] + other._sums[at]
            both._energy[at] = self._energy[at] + other._energy[at]
            both._targets[at] = self._targets[at] + other._targets[at]
        return both

    def fit(self, weight: NDArray[np.float32], ridge: float) -> NDArray[np.float32]:
        """Returns the weight float32 [outputs, inputs] that fits best; `ridge` draws it to `weight`."""
        return least_squares(weight, *self.moments(), ridge=ridge)

    def error(self, weight: NDArray[np.float32]) -> float:
        """Returns the mean square error that a weight [outputs, inputs] leaves, as a part of the targets' own."""
        moments, cross = (sums.astype(np.float64) for sums in self.moments())
        whole = (self._targets[0] + self._scale * self._targets[1]) / max(1, self.rows)
        off = whole - 2 * float(np.vdot(weight, cross)) + float(np.vdot(weight @ moments, weight))
        return max(0.0, off / whole) if whole > 0 else 0.0


def ridge_of(halves: Sequence[Regression], weight: NDArray[np.float32], ridges: Sequence[float]) -> float:
    """Chooses the ridge whose fit to one half of the text errs least on the other, both ways round.

    A fit has as many free numbers as the layer has weights, and some thousand tokens determine few of them. A fit that
    is not checked on other text learns its own by heart.

    Args:
        halves: Moments of two parts of the text. Where there is one part, the first ridge is taken.
        weight: The weight that the fit begins with, float32 [outputs, inputs].
        ridges: Candidates.
    """
    if len(halves) < 2 or len(ridges) < 2 or not weight.shape[1]:
        return ridges[0]
    first, second = halves
    errors = [second.error(first.fit(weight, ridge)) + first.error(second.fit(weight, ridge)) for ridge in ridges]
    return ridges[int(np.argmin(errors))]


def compensate(
    model: ir.Model, windows: Sequence[NDArray[np.int64]], consumers: Sequence[Linear],
    removed: Mapping[str, NDArray[np.int64]], folder: Path, *, student: ir.Model | None = None,
    ridges: Sequence[float] = RIDGES, memory: int = 2**30, advance: Callable[[int], Any] = lambda _: None,
) -> tuple[Weights, list[FittedLayer]]:  # fmt: skip
    """Fits the layers that sum over units, one after another, from the first that loses some.

    The whole model and the cut model run side by side. A layer whose output is added to the residual stream is fitted
    to the stream after it in the whole model, so that it corrects errors of earlier layers. Any other layer is fitted
    to its own output in the whole model. The weights that stay are found by ridge regression around their old values.

    Args:
        model: The captured graph, of which nothing is cut. Its values get their types, nothing else changes.
        windows: Token ids int64 [length] of each text.
        consumers: The layers to fit, in graph order. They are layers of `student`, where that is given.
        removed: The inputs that a layer loses, by module path. Where a block goes whole, it loses all.
        folder: For temporary files.
        student: A graph that was cut before. All `consumers`, which are layers of `model` too, are fitted then.
            Default: `model` itself, without the inputs in `removed`.
        ridges: Candidates for the ridge, as parts of the mean second moment; see `ridge_of`. Default: `RIDGES`.
        memory: Bytes of activations that are kept in memory. Others wait on disk. Default: 1 GiB.
        advance: Called with 1 after each layer. Default: nothing is called.

    Returns:
        Weights by initializer, in the shape from before the cut, zero where inputs are removed. And for each fitted
        layer its path, the number of inputs that it keeps, the ridge, and its error before and after, as parts of its
        target's energy.
    """
    sums: dict[str, list[Regression]] = {}
    calls: dict[str, int] = {}
    report: list[FittedLayer] = []

    def keep_of(linear: Linear) -> NDArray[np.int64]:
        gone = removed.get(linear.path, np.zeros(0, np.int64))
        return np.delete(np.arange(linear.shape[1]), gone)

    def observer(linear: Linear, x: NDArray[np.float32], target: NDArray[np.float32]) -> None:
        keep = keep_of(linear)
        count = calls[linear.path] = calls.get(linear.path, 0) + 1
        halves = sums.setdefault(linear.path, [])
        if len(halves) < 2:
            halves.append(Regression(len(keep), linear.shape[0]))
        bias = _array(linear.bias) if linear.bias is not None else np.float32(0)
        halves[(count - 1) % 2].add(np.ascontiguousarray(x[..., keep]), target - bias)

    def solve(linear: Linear) -> NDArray[np.float32]:
        halves = sums.pop(linear.path)
        keep, weight = keep_of(linear), weight_of(linear)
        both = halves[0] + halves[1] if len(halves) == 2 else halves[0]
        fitted = np.zeros_like(weight)
        ridge = ridge_of(halves, weight[:, keep], ridges)
        if len(keep):
            fitted[:, keep] = both.fit(weight[:, keep], ridge)
        if not np.isfinite(fitted).all():
            raise not_finite(linear.path)
        before, after = (round(both.error(matrix[:, keep]), 6) for matrix in (weight, fitted))
        report.append(FittedLayer(path=linear.path, kept=len(keep), ridge=ridge, before=before, after=after))
        return fitted

    weights: Weights = {}
    paths = {linear.path for linear in consumers}
    with StagedRun(folder, memory=memory, advance=advance, trim=False) as run:
        whole, cut = (_Side(run, linear, windows, paths) for linear in (model, student or model))
        differs = student is not None
        for at, stage in run.over(cut.graph.stages):
            differs = differs or stage.path in removed
            linear = cut.linears.get(stage.path) if differs else None
            here: Weights = {}
            if linear is None:
                whole.graph.run(at)
            else:
                target = whole.linears[stage.path]
                compare = partial(_compare, observer, whole, cut, linear, target)
                whole.graph.run(at, also=[str(target.y.name)], observer=compare)
                solved = solve(linear)
                here[str(linear.weight.name)] = as_stored(solved, linear)
                weights |= here
                if linear.bias is not None and not solved.any():  # a block that goes whole, bias and all
                    here[str(linear.bias.name)] = np.zeros(linear.shape[0], np.float32)
            cut.graph.run(at, here)
    return weights, report


class _Side:
    """The whole model, or the one that is cut, in stages that begin with the layers to fit.

    Attributes:
        linears: Those layers, by path.
        graph: The graph as it runs.
    """

    def __init__(
        self, run: StagedRun, model: ir.Model, windows: Sequence[NDArray[np.int64]], paths: Collection[str]
    ) -> None:
        self.linears = {linear.path: linear for linear in linears(model) if linear.path in paths}
        begins = {linear.node: path for path, linear in self.linears.items()}
        texts = [inputs_of(model, window) for window in windows]
        self.graph = run.graph(model, texts, stages(model, lambda node: begins.get(node, "")))


def _compare(
    observer: Callable[[Linear, NDArray[np.float32], NDArray[np.float32]], None], whole: _Side, cut: _Side,
    linear: Linear, target: Linear, text: int, made: Values,
) -> None:  # fmt: skip
    """Shows what a layer reads in the cut model, and what it should give there.

    Args:
        observer: Gets the layer, what it reads, and what it should give.
        whole: The whole model.
        cut: The model that is cut.
        linear: The layer in the model that is cut.
        target: The layer in the whole model.
        text: Place of the text.
        made: What the whole model makes in this stage.
    """
    exact, own = whole.graph.values[text], cut.graph.values[text]
    output = made[str(target.y.name)]
    exact_stream, own_stream = _stream_of(target), _stream_of(linear)
    if exact_stream in exact and own_stream in own:
        output = output + (exact[str(exact_stream)] - own[str(own_stream)])
    observer(linear, own[str(linear.x.name)], output)


def _stream_of(linear: Linear) -> str | None:
    """Returns the name of the value that a layer's output is added to: the residual stream. None: there is none."""
    add = only_user(linear.y)
    if add is None or add.op_type != "Add":
        return None
    other = add.inputs[1] if add.inputs[0] is linear.y else add.inputs[0]
    return None if other is None or other.is_initializer() else str(other.name)


def _array(value: ir.Value) -> NDArray[np.float32]:
    if value.const_value is None:
        raise ValueError(f"{value.name} has no data")
    return np.asarray(value.const_value.numpy(), np.float32)
