"""Chooses cuts by what the model says without them: a text's moments, and a few short runs of the whole model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.compensate import compensate
from leptonc.calibrate.observe import moments
from leptonc.calibrate.sensitivity import Trial, measure
from leptonc.calibrate.solve import as_stored, inputs_of
from leptonc.calibrate.walk import Stage, Weights, stages
from leptonc.ir.groups import Block, Groups
from leptonc.ir.structure import Linear, weight_of
from leptonc.passes.prune.choose import WHOLE, Option, choose, columns_of, options, reconstructed, reference
from leptonc.passes.prune.plan import Cut

TRIALS, TRIAL = 2, 384  # texts, and tokens of each, that divergences are measured on: attention needs long ones
RIDGE = 1e-2  # of the mean second moment: how much a block's fit keeps to the weights as they were
Clock = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
Stay = Mapping[str, Mapping[str, NDArray[np.bool_]] | None]


def reconstruction(
    model: ir.Model, found: Groups, windows: Sequence[NDArray[np.int64]], share: float, folder: Path, *,
    multiple: int, memory: int, clock: Clock,
) -> tuple[tuple[Cut, ...], dict[str, Any]]:  # fmt: skip
    """Cuts a share of all layers' weights where the model's output changes least, see `leptonc.passes.prune.choose`.

    Args:
        model: The captured graph.
        found: What can be cut in it.
        windows: Token ids int64 [length] of each text.
        share: Above 0 and below 1.
        folder: For temporary files.
        multiple: What the targets' kernels like the number of channels to be a multiple of.
        memory: Bytes of activations kept in memory.
        clock: Opens a stage of progress with so many steps.

    Returns:
        The cuts, and what the report says of them.

    Raises:
        InputError: So much cannot go, or activations are not finite.
    """
    blocks = {block.consumers[0].path: block for block in found.blocks if len(block.consumers) == 1}
    ways: dict[str, list[Option]] = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".reference.") as place:

        def file(linear: Linear) -> Path:
            return Path(place) / f"{linear.path}.npy"

        def use(linear: Linear, seen: NDArray[np.float32]) -> None:
            block = blocks.get(linear.path)
            if block is not None:
                weight = weight_of(linear)
                own = ways[block.name] = options(block, weight, seen, multiple=multiple)
                np.save(file(linear), reconstructed(weight, seen, reference(block, own).inputs))

        def trials(stage: Stage) -> list[Trial]:
            made = []
            for linear in (each for group in stage.linears.values() for each in group if each.path in blocks):
                block, name = blocks[linear.path], str(linear.weight.name)
                made.append(Trial(block.name, partial(_stored, name, file(linear), linear)))
                if block.add is not None:
                    made.append(Trial(block.name + WHOLE, partial(_zeros, name, linear)))
            return made

        batches = [inputs_of(model, window) for window in windows]
        with clock("prune moments", len(stages(model))) as advance:
            moments(model, found, batches, use, folder, memory=memory, advance=advance)
        short = [window[:TRIAL] for window in windows[:: max(1, len(windows) // TRIALS)]][:TRIALS]
        with clock("prune sensitivity", len(stages(model))) as advance:
            measured = measure(model, short, trials, folder, memory=memory, advance=advance)
    cuts, expected = choose(found, ways, measured, share)
    about = {name: float(f"{value:.4g}") for name, value in measured.items()}
    return cuts, {"divergence": about, "divergence_expected": float(f"{expected:.4g}")}


def _stored(name: str, file: Path, linear: Linear) -> Weights:
    return {name: as_stored(np.load(file), linear)}


def _zeros(name: str, linear: Linear) -> Weights:
    return {name: as_stored(np.zeros(linear.shape, np.float32), linear)}


def fitted(
    model: ir.Model, found: Groups, stay: Stay, windows: Sequence[NDArray[np.int64]], folder: Path, *, memory: int,
    clock: Clock,
) -> tuple[Weights, list[dict[str, Any]]]:  # fmt: skip
    """Lets what stays of each block that is cut make up for what goes, as the whole model's moments say.

    Blocks are fitted apart from each other: what they have to make up for is a sum of inputs that they can see, and a
    text of some thousand tokens is enough for that. `in_sequence` asks more of the text.

    Args:
        model: The captured graph, uncut.
        found: What can be cut in it.
        stay: Which units stay of each block that is cut, None where it goes whole.
        windows: Token ids int64 [length] of each text.
        folder: For temporary files.
        memory: Bytes of activations kept in memory.
        clock: Opens a stage of progress with so many steps.

    Returns:
        Weights by initializer, in the shape that they have before the cut, zero where inputs are removed; and of each
        layer fitted its path, the inputs that it keeps, and its outputs' error before and after, as parts of them.
    """
    removed = _removed(found, stay)
    weights: Weights = {}
    report: list[dict[str, Any]] = []

    def use(linear: Linear, seen: NDArray[np.float32]) -> None:
        if linear.path not in removed:
            return
        gone, weight = removed[linear.path], weight_of(linear)
        new, bare = reconstructed(weight, seen, gone, ridge=RIDGE), np.array(weight)
        bare[:, gone] = 0
        weights[str(linear.weight.name)] = as_stored(new, linear)
        whole = max(float(np.vdot(weight @ seen, weight)), float(np.finfo(np.float32).tiny))
        before, after = (float(np.vdot((weight - each) @ seen, weight - each)) / whole for each in (bare, new))
        kept = linear.shape[1] - len(gone)
        report.append({"path": linear.path, "kept": kept, "before": round(before, 6), "after": round(after, 6)})

    batches = [inputs_of(model, window) for window in windows]
    with clock("prune compensate", len(stages(model))) as advance:
        moments(model, found, batches, use, folder, memory=memory, advance=advance)
    return weights, report


def in_sequence(
    model: ir.Model, found: Groups, stay: Stay, windows: Sequence[NDArray[np.int64]], folder: Path, *, memory: int,
    clock: Clock,
) -> tuple[Weights, list[dict[str, Any]]]:  # fmt: skip
    """Fits one block after another to what the whole model has after it, see `compensate`; arguments as of `fitted`."""
    consumers = [linear for block in found.blocks for linear in block.consumers]
    batches = [inputs_of(model, window) for window in windows]
    with clock("prune compensate", len(consumers) + 1) as advance:
        return compensate(model, batches, consumers, _removed(found, stay), folder, memory=memory, advance=advance)


def _removed(found: Groups, stay: Stay) -> dict[str, NDArray[np.int64]]:
    """Inputs that consuming layers lose, by module path."""
    blocks = {name: (found.block(name), masks) for name, masks in stay.items()}
    return {linear.path: _gone(block, linear, masks) for block, masks in blocks.values() for linear in block.consumers}


def _gone(block: Block, linear: Linear, masks: Mapping[str, NDArray[np.bool_]] | None) -> NDArray[np.int64]:
    if masks is None:
        return np.arange(linear.shape[1])
    space = "channels" if block.kind == "mlp" else "heads"
    return np.sort(columns_of(block, space, linear)[~masks[space]].reshape(-1))
