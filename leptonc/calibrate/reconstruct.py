"""Chooses cuts by how far the model's output moves: from moments of a text, and a few short runs of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.compensate import compensate
from leptonc.calibrate.cores import lanes, sharing_cores, side_by_side
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
from leptonc.report.pruning import CutReasons, FittedLayer

TRIAL = 384  # tokens that divergences are measured on: attention needs a long text
MLPS_FROM = 0.4  # smallest share at which cutting whole MLPs is tried: below it something cheaper can always go
SMALL = 2048  # inputs of layers for which the ways to cut two blocks are found side by side, each with some moments
RIDGE = 1e-2  # part of the mean second moment: how strongly a block's fit keeps to its weights
Stay = Mapping[str, Mapping[str, NDArray[np.bool_]] | None]


def reconstruction(
    moments: InputMoments, groups: Groups, share: float, *, multiple: int
) -> tuple[tuple[Cut, ...], CutReasons]:  # fmt: skip
    """Cuts a share of all layers' weights where the model's output changes least, see `leptonc.passes.prune.choose`.

    Args:
        moments: Moments of the inputs of the layers that sum over units.
        groups: What can be cut.
        share: Part of the weights that goes, above 0 and below 1.
        multiple: The number of channels that stay is a multiple of this, for the targets' kernels.

    Returns:
        The cuts, and the report's record of them.

    Raises:
        InputError: So much cannot go, or activations are not finite.
    """
    blocks = {block.consumers[0].path: block for block in groups.blocks if len(block.consumers) == 1}
    ways: dict[str, list[Option]] = {}
    moments.gather()

    def ways_of(block: Block) -> list[Option]:
        (linear,) = block.consumers
        return options(block, weight_of(linear), moments[linear], multiple=multiple)

    runs = lanes() if all(block.consumers[0].shape[1] <= SMALL for block in blocks.values()) else 1
    with moments.clock("prune choose", len(blocks)) as advance, sharing_cores():
        for block, cuttable in zip(blocks.values(), side_by_side(ways_of, blocks.values(), runs), strict=True):
            ways[block.name] = cuttable
            advance(1)

    def without_some(block: Block, linear: Linear) -> Weights:
        gone = reference(block, ways[block.name]).inputs
        fit = reconstructed(weight_of(linear), moments[linear], gone)
        return {str(linear.weight.name): as_stored(fit, linear)}

    def trials(stage: Stage) -> list[Trial]:
        made = []
        for linear in (one for group in stage.linears.values() for one in group if one.path in blocks):
            block = blocks[linear.path]
            made.append(Trial(block.name, partial(without_some, block, linear)))
            if block.add is not None and (block.kind == "attention" or share >= MLPS_FROM):
                made.append(Trial(block.name + WHOLE, partial(_zeros, linear)))
        return made

    with moments.clock("prune sensitivity", len(stages(moments.model))) as advance:
        measured = measure(
            moments.model, _short(moments.windows), trials, moments.scratch, memory=moments.memory, advance=advance
        )
    cuts, expected = choose(groups, ways, measured, share)
    divergence = {name: float(f"{value:.4g}") for name, value in measured.items()}
    return cuts, CutReasons(divergence=divergence, divergence_expected=float(f"{expected:.4g}"))


def _short(windows: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Returns texts, from the middle on, until they have `TRIAL` tokens: one long text, or many sentences."""
    texts: list[NDArray[np.int64]] = []
    for window in (*windows[len(windows) // 2 :], *windows[: len(windows) // 2]):
        texts.append(window[: TRIAL - sum(map(len, texts))])
        if sum(map(len, texts)) >= TRIAL:
            break
    return texts


def _zeros(linear: Linear) -> Weights:
    return {str(linear.weight.name): as_stored(np.zeros(linear.shape, np.float32), linear)}


def fitted(moments: InputMoments, groups: Groups, stay: Stay, folder: Path) -> tuple[Weights, list[FittedLayer]]:
    """Fits what stays of each cut block to the block's old output, by the moments of the whole model.

    Blocks are fitted independently. Each fit predicts removed inputs from inputs that stay, and some thousand tokens of
    text are enough for that. `in_sequence` needs more text.

    Args:
        moments: Moments of the layers' inputs in the whole model.
        groups: What can be cut.
        stay: Which units stay, for each block that is cut; None where it goes whole.
        folder: Holds the weights until they are written.

    Returns:
        Weights by initializer, in the shape from before the cut, zero where inputs are removed. And for each fitted
        layer its path, the number of inputs that it keeps, and the error of its outputs before and after, as parts of
        their energy.
    """
    removed = _removed(groups, stay)
    weights: Weights = {}
    report: list[FittedLayer] = []
    linears = [linear for linear in groups.consumers if linear.path in removed]
    if linears:
        moments.gather()
    with moments.clock("prune compensate", len(linears)) as advance, sharing_cores():
        for linear in linears:
            gone, weight, moment = removed[linear.path], weight_of(linear), moments[linear]
            new = reconstructed(weight, moment, gone, ridge=RIDGE)
            np.save(file := folder / f"{linear.path}.npy", as_stored(new, linear))
            weights[str(linear.weight.name)] = np.load(file, mmap_mode="r")
            inputs_kept = linear.shape[1] - len(gone)
            report.append(FittedLayer(path=linear.path, kept=inputs_kept, **errors_of(weight, new, moment, gone)))
            advance(1)
    return weights, report


def in_sequence(
    model: ir.Model, groups: Groups, stay: Stay, windows: Sequence[NDArray[np.int64]], folder: Path, *, memory: int,
    clock: Clock,
) -> tuple[Weights, list[FittedLayer]]:  # fmt: skip
    """Fits one block after another to the whole model's values after it; see `compensate`. Arguments as of `fitted`."""
    consumers = groups.consumers
    with clock("prune compensate", len(consumers) + 1) as advance:
        return compensate(model, windows, consumers, _removed(groups, stay), folder, memory=memory, advance=advance)


def _removed(groups: Groups, stay: Stay) -> dict[str, NDArray[np.int64]]:
    """Returns the inputs that consuming layers lose, by module path."""
    blocks = {name: (groups.block(name), masks) for name, masks in stay.items()}
    return {linear.path: _gone(block, linear, masks) for block, masks in blocks.values() for linear in block.consumers}


def _gone(block: Block, linear: Linear, masks: Mapping[str, NDArray[np.bool_]] | None) -> NDArray[np.int64]:
    if masks is None:
        return np.arange(linear.shape[1])
    space = "channels" if block.kind == "mlp" else "heads"
    return np.sort(columns_of(block, space, linear)[~masks[space]].reshape(-1))
