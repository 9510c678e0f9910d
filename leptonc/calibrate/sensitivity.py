"""How much each linear layer's rounding changes what the model says, and which to keep in more bits under a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.inputs import inputs_of
from leptonc.calibrate.output_change import OutputChange
from leptonc.calibrate.stage_session import Weights, weights_of
from leptonc.calibrate.staged_run import Branch, StagedRun
from leptonc.calibrate.stages import Stage, stages
from leptonc.ir.dialect import module_of
from leptonc.ir.structure import Linear, as_stored, lookups, weight_of
from leptonc.passes.last_logits import head_of
from leptonc.passes.quantize.blocks import Format, dequantize, round_to_nearest


@dataclass(frozen=True)
class Sensitivity:
    """What rounding one linear layer does.

    Attributes:
        path: Module path.
        shape: (out, in) features.
        error: Of the model's output, see `said.divergence`.
    """

    path: str
    shape: tuple[int, int]
    error: float


@dataclass(frozen=True)
class Trial:
    """One change of a stage, whose effect on the model's output is measured.

    Attributes:
        path: What it is called.
        weights: Returns the weights that change, by initializer.
        change: What else changes in the stage's graph, or None; see `open_stage`.
        head: Returns what the head's weight becomes, too, float32 [out, in]; or None.
    """

    path: str
    weights: Callable[[], Weights]
    change: Callable[[ir.Graph], None] | None = None
    head: Callable[[], NDArray[np.float32]] | None = None


def sensitivities(
    model: ir.Model, windows: Sequence[NDArray[np.int64]], form: Callable[[int], Format], folder: Path, *,
    table: Format | None = None, memory: int = 2**30, advance: Callable[[int], Any] = lambda _: None,
) -> list[Sensitivity]:  # fmt: skip
    """Rounds one linear layer at a time to nearest, and compares the model's output with what it was before.

    Args:
        model: A captured graph.
        windows: Token ids int64 [length] of each text; two short ones tell layers apart well enough.
        form: The format of a weight with so many inputs.
        folder: For temporary files.
        table: The format of the embedding, to be measured with a head that is tied to it; None leaves them out.
        memory: Bytes of activations kept in memory.
        advance: Called with 1 after each stage.

    Returns:
        The embedding, by the path of its module; linear layers in graph order, of which one weight that several share
        is counted where it is first used.

    Raises:
        InputError: The model's output is not finite.
    """
    found: dict[str, tuple[int, int]] = {}
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

    def of_table(value: ir.Value, look: ir.Node) -> Trial:
        assert value.const_value is not None
        codes = partial(rounded, value.const_value.numpy, table)  # type: ignore[arg-type]
        tied = head is not None and head.weight is value
        return Trial(module_of(look), lambda: {str(value.name): codes()}, head=codes if tied else None)

    def trials(stage: Stage) -> list[Trial]:
        made = []
        for value, look in tables.items():
            if table is not None and value is not None and look in stage.nodes:
                made.append(of_table(value, look))
                found[module_of(look)] = (int(value.shape[0]), int(value.shape[1]))  # type: ignore[index, arg-type]
        for linear in (each for group in stage.linears.values() for each in group):
            if linear.weight.name not in known and linear.weight not in tables:
                known.add(str(linear.weight.name))
                made.append(of_linear(linear))
                found[linear.path] = linear.shape
        return made

    errors = measure(model, windows, trials, folder, memory=memory, advance=advance)
    return [Sensitivity(path, shape, errors[path]) for path, shape in found.items()]


def measure(
    model: ir.Model, windows: Sequence[NDArray[np.int64]], trials: Callable[[Stage], Sequence[Trial]], folder: Path, *,
    first: int = 0, memory: int = 2**30, advance: Callable[[int], Any] = lambda _: None,
) -> dict[str, float]:  # fmt: skip
    """Makes one change at a time, and compares the model's output with what it was before.

    One walk does all: what a change made different goes on through the later stages beside what was not changed.

    Args:
        model: A captured graph.
        windows: Token ids int64 [length] of each text.
        trials: Returns the changes of a stage; called once a stage, in order.
        folder: For temporary files.
        first: Tokens of each text whose logits are not compared.
        memory: Bytes of activations kept in memory.
        advance: Called with 1 after each stage.

    Returns:
        The mean of `divergence` over the texts, by the path of the trial.

    Raises:
        InputError: The model's output is not finite.
    """
    cut = stages(model, outside=True)
    with StagedRun(folder, memory=memory, advance=advance) as run:
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
            known = [branch.known(text) for branch, text in changed]
            for (branch, text), results in zip(changed, session(known), strict=True):
                branch.keep(at, text, results, originals[text])
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
    found: Sequence[Sensitivity], extra: Callable[[Sensitivity], int], budget: int
) -> tuple[tuple[str, ...], int]:
    """Chooses what to keep in more bits: what gains most for a byte first, whatever still fits after it.

    Args:
        found: The linear layers.
        extra: Bytes that one takes more.
        budget: Bytes that may be spent.

    Returns:
        Module paths in graph order, and the bytes that they take.
    """
    spent, chosen = 0, set()
    for each in sorted(found, key=lambda each: -each.error / max(1, extra(each))):
        if spent + extra(each) <= budget:
            spent += extra(each)
            chosen.add(each.path)
    return tuple(each.path for each in found if each.path in chosen), spent
