"""How much each linear layer's rounding changes what the model says, and which to keep in more bits under a budget."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.said import Said
from leptonc.calibrate.solve import as_stored, inputs_of
from leptonc.calibrate.walk import Stage, Store, Together, Weights, open_stage, stages, weights_of
from leptonc.ir.structure import Linear, weight_of
from leptonc.ir.types import fill_types
from leptonc.memory import dropping_cycles
from leptonc.passes.quantize.blocks import Format, dequantize, round_to_nearest

Values = dict[str, NDArray[Any]]


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
    """

    path: str
    weights: Callable[[], Weights]
    change: Callable[[ir.Graph], None] | None = None


def sensitivities(
    model: ir.Model, windows: Sequence[NDArray[np.int64]], form: Callable[[int], Format], folder: Path, *,
    memory: int = 2**30, advance: Callable[[int], Any] = lambda _: None,
) -> list[Sensitivity]:  # fmt: skip
    """Rounds one linear layer at a time to nearest, and compares the model's output with what it was before.

    Args:
        model: A captured graph.
        windows: Token ids int64 [length] of each text; two short ones tell layers apart well enough.
        form: The format of a weight with so many inputs.
        folder: For temporary files.
        memory: Bytes of activations kept in memory.
        advance: Called with 1 after each stage.

    Returns:
        Linear layers in graph order; one weight that several share is counted where it is first used.

    Raises:
        InputError: The model's output is not finite.
    """
    found: dict[str, Linear] = {}
    known: set[str] = set()

    def rounded(linear: Linear) -> Weights:
        weight = weight_of(linear)
        stored = form(weight.shape[1])
        return {str(linear.weight.name): as_stored(dequantize(round_to_nearest(weight, stored), stored), linear)}

    def trials(stage: Stage) -> list[Trial]:
        here = [each for group in stage.linears.values() for each in group if each.weight.name not in known]
        known.update(str(each.weight.name) for each in here)
        found.update({each.path: each for each in here})
        return [Trial(each.path, partial(rounded, each)) for each in here]

    errors = measure(model, windows, trials, folder, memory=memory, advance=advance)
    return [Sensitivity(path, each.shape, errors[path]) for path, each in found.items()]


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
    fill_types(model.graph)
    cut = stages(model)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".sensitivity.") as place, dropping_cycles() as drop_cycles:
        store, said = Store(memory, Path(place)), Said(model, Path(place), first=first)
        plain: list[Values] = [dict(inputs_of(model, window)) for window in windows]
        changed: dict[str, list[Values]] = {}  # by path: of each window, the values that differ
        for at, stage in enumerate(cut):
            names = [said.name] if at == len(cut) - 1 else list(stage.outputs)
            here = trials(stage)
            weights = weights_of(model, stage) if here else {}  # read once for all of them
            run = Together(open_stage(model, stage, names, weights, Path(place)), stage, names)
            results = list(run(plain))
            mixed = [(path, mine, i) for path, variants in changed.items() for i, mine in enumerate(variants)]
            for (_, mine, i), got in zip(mixed, run([{**plain[i], **mine} for _, mine, i in mixed]), strict=True):
                for name in [name for name in mine if name in stage.inputs]:
                    store.release(mine.pop(name))
                _keep(mine, got, results[i], store)
            for trial in here:
                session = open_stage(
                    model, stage, names, {**weights, **trial.weights()}, Path(place), trial.change, once=True
                )
                changed[trial.path] = [{} for _ in plain]
                found = zip(changed[trial.path], results, Together(session, stage, names)(plain), strict=True)
                for mine, theirs, got in found:
                    _keep(mine, got, theirs, store)
                del session, found
            for values, result in zip(plain, results, strict=True):
                values.update({name: np.array(x) for name, x in result.items()})
            drop_cycles()
            advance(1)
        errors = dict.fromkeys(changed, 0.0)
        for i, each in enumerate(plain):
            before = each[said.name]
            after = {path: variants[i].get(said.name, before) for path, variants in changed.items()}
            for path, error in said.divergences(before, after).items():
                errors[path] += error / len(windows)
    return errors


def _keep(mine: Values, got: Values, theirs: Values, store: Store) -> None:
    """Keeps what differs from the model's own values."""
    mine.update({name: store.put(x) for name, x in got.items() if not np.array_equal(x, theirs[name])})


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
