"""Measures how far rounding a linear layer moves the output, and chooses layers for more bits under a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.cores import sharing_cores
from leptonc.calibrate.output_change import OutputChange
from leptonc.calibrate.stage_session import Weights, weights_of
from leptonc.calibrate.staged_run import Branch, StagedRun
from leptonc.calibrate.stages import Stage, stages
from leptonc.ir.dialect import module_of
from leptonc.ir.ports import inputs_of
from leptonc.ir.structure import Linear, as_stored, lookups, weight_of
from leptonc.passes.last_logits import head_of
from leptonc.passes.quantize.blocks import Format, dequantize, round_to_nearest


@dataclass(frozen=True)
class Sensitivity:
    """How far rounding one linear layer moves the output.

    Attributes:
        path: Module path.
        shape: (out, in) features.
        error: Divergence of the model's output; see `output_change.divergence`.
    """

    path: str
    shape: tuple[int, int]
    error: float


@dataclass(frozen=True)
class Trial:
    """One change of a stage, whose effect on the model's output is measured.

    Attributes:
        path: Name of the trial.
        weights: Returns the weights that change, by initializer.
        change: Changes the stage's graph; see `open_stage`. Default: only weights change.
        head: Returns the head's changed weight, float32 [out, in]. Default: the head keeps its weight.
    """

    path: str
    weights: Callable[[], Weights]
    change: Callable[[ir.Graph], None] | None = None
    head: Callable[[], NDArray[np.float32]] | None = None


def sensitivities(
    model: ir.Model, windows: Sequence[NDArray[np.int64]], form: Callable[[int], Format], folder: Path, *,
    table: Format | None = None, memory: int = 2**30, advance: Callable[[int], Any] = lambda _: None,
) -> list[Sensitivity]:  # fmt: skip
    """Rounds one linear layer at a time to nearest, and measures how far the model's output moves.

    Args:
        model: A captured graph.
        windows: Token ids int64 [length] of each text. Two short texts tell layers apart well enough.
        form: Returns the format of a weight with so many inputs.
        folder: For temporary files.
        table: Format of the embedding, which is measured together with a head that is tied to it. Default: neither is
            measured.
        memory: Bytes of activations that are kept in memory. Others wait on disk. Default: 1 GiB.
        advance: Called with 1 after each stage. Default: nothing is called.

    Returns:
        The embedding, by the path of its module, and linear layers in graph order. A weight that several layers share
        is counted where it is first used.

    Raises:
        InputError: The model's output is not finite.
    """
    shapes: dict[str, tuple[int, int]] = {}
    known: set[str] = set()
    tables = lookups(model)
    head = head_of(model.graph)

    def rounded(read: Callable[[], NDArray[Any]], stored: Format) -> NDArray[np.float32]:
        weight = read()
        return dequantize(round_to_nearest(weight, stored), stored)

    def of_linear(linear: Linear) -> Trial:
        codes = partial(rounded, partial(weight_of, linear), form(linear.shape[1]))
        if head is not None and linear.weight is head.weight:
            return Trial(linear.path, dict, head=codes)
        return Trial(linear.path, lambda: {str(linear.weight.name): as_stored(codes(), linear)})

    def of_table(value: ir.Value, lookup: ir.Node) -> Trial:
        assert value.const_value is not None
        codes = partial(rounded, value.const_value.numpy, table)  # type: ignore[arg-type]
        tied = head is not None and head.weight is value
        return Trial(module_of(lookup), lambda: {str(value.name): codes()}, head=codes if tied else None)

    def trials(stage: Stage) -> list[Trial]:
        made = []
        for value, lookup in tables.items():
            if table is not None and value is not None and lookup in stage.nodes:
                made.append(of_table(value, lookup))
                shapes[module_of(lookup)] = (int(value.shape[0]), int(value.shape[1]))  # type: ignore[index, arg-type]
        for linear in chain.from_iterable(stage.linears.values()):
            if linear.weight.name not in known and linear.weight not in tables:
                known.add(str(linear.weight.name))
                made.append(of_linear(linear))
                shapes[linear.path] = linear.shape
        return made

    errors = measure(model, windows, trials, folder, memory=memory, advance=advance)
    return [Sensitivity(path, shape, errors[path]) for path, shape in shapes.items()]


def measure(
    model: ir.Model, windows: Sequence[NDArray[np.int64]], trials: Callable[[Stage], Sequence[Trial]], folder: Path, *,
    first: int = 0, memory: int = 2**30, advance: Callable[[int], Any] = lambda _: None,
) -> dict[str, float]:  # fmt: skip
    """Makes one change at a time, and measures how far the model's output moves.

    One walk over the stages does it: each change is a branch of the run, beside the unchanged model.

    Args:
        model: A captured graph.
        windows: Token ids int64 [length] of each text.
        trials: Returns the changes of a stage; called once a stage, in order.
        folder: For temporary files.
        first: Tokens at the start of each text whose logits are not compared. Default: none.
        memory: Bytes of activations that are kept in memory. Others wait on disk. Default: 1 GiB.
        advance: Called with 1 after each stage. Default: nothing is called.

    Returns:
        The mean of `divergence` over the texts, by the path of the trial.

    Raises:
        InputError: The model's output is not finite.
    """
    cut = stages(model, outside=True)
    with sharing_cores(), StagedRun(folder, memory=memory, advance=advance, trim=False) as run:
        change_of = OutputChange(model, run.folder, first=first)
        graph = run.graph(model, [inputs_of(model, window) for window in windows], cut, keep=[change_of.name])
        branches: dict[str, Branch] = {}  # by path of the trial
        heads: dict[str, Callable[[], NDArray[np.float32]]] = {}
        for at, stage in run.over(cut):
            names, here = graph.needed(at), trials(stage)
            weights = weights_of(model, stage) if here else {}  # read once for all of them
            session = graph.open(at, names, weights, joined=True)
            originals = list(session(graph.values))
            changed = [(branch, text) for branch in branches.values() for text in range(len(windows))]
            # The list of values is not bound to a name: they are freed before the trials run.
            made = session([branch.known(text) for branch, text in changed])
            for (branch, text), results in zip(changed, made, strict=True):
                branch.keep(at, text, results, originals[text])
            del made
            for trial in here:
                branches[trial.path], replaced = graph.branch(), trial.weights()
                if trial.head is not None:
                    heads[trial.path] = trial.head
                if not replaced and trial.change is None:
                    continue
                once = graph.open(at, names, {**weights, **replaced}, trial.change, once=True, joined=True)
                for text, results in enumerate(once(graph.values)):
                    branches[trial.path].keep(at, text, results, originals[text])
                del once, replaced
            for text, results in enumerate(originals):
                graph.store(text, results)
        errors, head_weights = dict.fromkeys(branches, 0.0), {path: make() for path, make in heads.items()}
        for text, values in enumerate(graph.values):
            before = values[change_of.name]
            after = {path: branch.values[text].get(change_of.name, before) for path, branch in branches.items()}
            for path, error in change_of.divergences(before, after, head_weights).items():
                errors[path] += error / len(windows)
    return errors


def raise_within(
    layers: Sequence[Sensitivity], extra: Callable[[Sensitivity], int], budget: int
) -> tuple[tuple[str, ...], int]:
    """Chooses the layers that get more bits: those with the largest error for a byte first, as long as they fit.

    Args:
        layers: The linear layers.
        extra: Returns the bytes that a layer takes more.
        budget: Bytes that may be spent.

    Returns:
        Module paths in graph order, and the bytes that are spent.
    """
    spent, chosen = 0, set()
    for layer in sorted(layers, key=lambda layer: -layer.error / max(1, extra(layer))):
        if spent + extra(layer) <= budget:
            spent += extra(layer)
            chosen.add(layer.path)
    return tuple(layer.path for layer in layers if layer.path in chosen), spent
