"""Chooses cuts by what the model says without them: a text's moments, and a few short runs of the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.compensate import compensate
from leptonc.calibrate.input_moments import Clock, InputMoments
from leptonc.calibrate.sensitivity import Trial, measure
from leptonc.calibrate.stage_session import Weights
from leptonc.calibrate.stages import Stage, stages
from leptonc.ir.groups import Block, Groups
from leptonc.ir.structure import Linear, as_stored, weight_of
from leptonc.passes.prune.choose import (
    WHOLE,
    Option,
    choose,
    columns_of,
    errors_of,
    options,
    reconstructed,
    reference,
)
from leptonc.passes.prune.plan import Cut

TRIAL = 384  # tokens that divergences are measured on: attention needs a long text
MLPS_FROM = 0.4  # a share below which whole MLPs are never the cheapest that can go, and are not tried
RIDGE = 1e-2  # of the mean second moment: how much a block's fit keeps to the weights as they were
Stay = Mapping[str, Mapping[str, NDArray[np.bool_]] | None]


def reconstruction(
    seen: InputMoments, found: Groups, share: float, *, multiple: int
) -> tuple[tuple[Cut, ...], dict[str, Any]]:  # fmt: skip
    """Cuts a share of all layers' weights where the model's output changes least, see `leptonc.passes.prune.choose`.

    Args:
        seen: What the layers read.
        found: What can be cut.
        share: Above 0 and below 1.
        multiple: What the targets' kernels like the number of channels to be a multiple of.

    Returns:
        The cuts, and what the report says of them.

    Raises:
        InputError: So much cannot go, or activations are not finite.
    """
    blocks = {block.consumers[0].path: block for block in found.blocks if len(block.consumers) == 1}
    ways: dict[str, list[Option]] = {}
    seen.gather()
    with seen.clock("prune choose", len(blocks)) as advance:
        for block in blocks.values():
            (linear,) = block.consumers
            ways[block.name] = options(block, weight_of(linear), seen[linear], multiple=multiple)
            advance(1)

    def without_some(block: Block, linear: Linear) -> Weights:
        gone = reference(block, ways[block.name]).inputs
        fit = reconstructed(weight_of(linear), seen[linear], gone)
        return {str(linear.weight.name): as_stored(fit, linear)}

    def trials(stage: Stage) -> list[Trial]:
        made = []
        for linear in (each for group in stage.linears.values() for each in group if each.path in blocks):
            block = blocks[linear.path]
            made.append(Trial(block.name, partial(without_some, block, linear)))
            if block.add is not None and (block.kind == "attention" or share >= MLPS_FROM):
                made.append(Trial(block.name + WHOLE, partial(_zeros, linear)))
        return made

    with seen.clock("prune sensitivity", len(stages(seen.model))) as advance:
        measured = measure(seen.model, _short(seen.windows), trials, seen.scratch, memory=seen.memory, advance=advance)
    cuts, expected = choose(found, ways, measured, share)
    about = {name: float(f"{value:.4g}") for name, value in measured.items()}
    return cuts, {"divergence": about, "divergence_expected": float(f"{expected:.4g}")}


def _short(windows: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """As many texts, from the middle on, as have enough tokens: one long text, or many sentences."""
    found: list[NDArray[np.int64]] = []
    for window in (*windows[len(windows) // 2 :], *windows[: len(windows) // 2]):
        found.append(window[: TRIAL - sum(map(len, found))])
        if sum(map(len, found)) >= TRIAL:
            break
    return found


def _zeros(linear: Linear) -> Weights:
    return {str(linear.weight.name): as_stored(np.zeros(linear.shape, np.float32), linear)}


def fitted(seen: InputMoments, found: Groups, stay: Stay, folder: Path) -> tuple[Weights, list[dict[str, Any]]]:
    """Lets what stays of each block that is cut make up for what goes, as the whole model's moments say.

    Blocks are fitted apart from each other: what they have to make up for is a sum of inputs that they can see, and a
    text of some thousand tokens is enough for that. `in_sequence` asks more of the text.

    Args:
        seen: What the layers read in the whole model.
        found: What can be cut.
        stay: Which units stay of each block that is cut, None where it goes whole.
        folder: Where the weights wait until they are written.

    Returns:
        Weights by initializer, in the shape that they have before the cut, zero where inputs are removed; and of each
        layer fitted its path, the inputs that it keeps, and its outputs' error before and after, as parts of them.
    """
    removed = _removed(found, stay)
    weights: Weights = {}
    report: list[dict[str, Any]] = []
    linears = [each for each in found.consumers if each.path in removed]
    if linears:
        seen.gather()
    with seen.clock("prune compensate", len(linears)) as advance:
        for linear in linears:
            gone, weight, moment = removed[linear.path], weight_of(linear), seen[linear]
            new = reconstructed(weight, moment, gone, ridge=RIDGE)
            np.save(file := folder / f"{linear.path}.npy", as_stored(new, linear))
            weights[str(linear.weight.name)] = np.load(file, mmap_mode="r")
            kept = linear.shape[1] - len(gone)
            report.append({"path": linear.path, "kept": kept, **errors_of(weight, new, moment, gone)})
            advance(1)
    return weights, report


def in_sequence(
    model: ir.Model, found: Groups, stay: Stay, windows: Sequence[NDArray[np.int64]], folder: Path, *, memory: int,
    clock: Clock,
) -> tuple[Weights, list[dict[str, Any]]]:  # fmt: skip
    """Fits one block after another to what the whole model has after it, see `compensate`; arguments as of `fitted`."""
    consumers = found.consumers
    with clock("prune compensate", len(consumers) + 1) as advance:
        return compensate(model, windows, consumers, _removed(found, stay), folder, memory=memory, advance=advance)


def _removed(found: Groups, stay: Stay) -> dict[str, NDArray[np.int64]]:
    """Inputs that consuming layers lose, by module path."""
    blocks = {name: (found.block(name), masks) for name, masks in stay.items()}
    return {linear.path: _gone(block, linear, masks) for block, masks in blocks.values() for linear in block.consumers}


def _gone(block: Block, linear: Linear, masks: Mapping[str, NDArray[np.bool_]] | None) -> NDArray[np.int64]:
    if masks is None:
        return np.arange(linear.shape[1])
    space = "channels" if block.kind == "mlp" else "heads"
    return np.sort(columns_of(block, space, linear)[~masks[space]].reshape(-1))
