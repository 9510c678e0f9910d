"""Where the low-rank terms of linear layers begin: in the directions that their inputs vary in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from leptonc.calibrate.inputs import inputs_of
from leptonc.calibrate.moments import is_sink
from leptonc.heal.graph import Graph, writable
from leptonc.heal.trainable import Kind, LowRank
from leptonc.ir.structure import linears

TEXTS = 8  # that inputs are taken of: enough for their main directions
ROWS = 512  # so many, of all texts together
_LEAST = 1e-6  # of the largest direction's energy: what is below does not vary


def principal(
    model: ir.Model, windows: Sequence[NDArray[np.int64]], trainable: Mapping[str, Kind]
) -> dict[str, Kind]:
    """Lets the part of each low-rank term that reads a layer's inputs begin with their principal directions.

    Random ones are mostly directions in which the inputs hardly vary, and a step of the same size changes less of what
    the layer says (Paischer et al., One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation,
    2024). Each direction is scaled so that all of them vary alike. Massive activations are left out: they have one.

    Args:
        model: The graph that learns.
        windows: Token ids int64 [length] of each text; all of them are run.
        trainable: What is learned, by initializer.

    Returns:
        The same, low-rank terms with a start of norm 1 a row, in the mean.
    """
    terms = {name: kind for name, kind in trainable.items() if isinstance(kind, LowRank)}
    read = {str(each.weight.name): str(each.x.name) for each in linears(model) if str(each.weight.name) in terms}
    if not read:
        return dict(trainable)
    names = sorted(set(read.values()))
    graph = Graph(model, names, keep=False)
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    for window in windows:
        given = {name: writable(x) for name, x in inputs_of(model, window).items()}
        with torch.no_grad():
            for name, x in zip(names, graph(given), strict=True):
                rows = x.flatten(0, -2)
                rows = rows[torch.from_numpy(~is_sink(rows.square().sum(-1).numpy()))]
                seen[name].append(rows[:: max(1, len(rows) * len(windows) // ROWS)].clone())
    found = dict(trainable)
    for name, parts in seen.items():
        readers = [weight for weight, x in read.items() if x == name]
        for rank in {terms[weight].rank for weight in readers}:
            start = _whitened(torch.cat(parts).double(), rank)
            if start is not None:
                found |= {w: replace(terms[w], start=start) for w in readers if terms[w].rank == rank}
    return found


def _whitened(rows: Tensor, rank: int) -> NDArray[np.float32] | None:
    """Returns directions [rank, width] of rows [n, width], or None where they do not vary in as many."""
    if min(rows.shape) < rank or not bool(torch.isfinite(rows).all()):  # whoever measures the loss says why
        return None
    energy, left = torch.linalg.eigh(rows @ rows.T)  # ascending; fewer rows than features, or not many more
    energy, left = energy[-rank:].flip(0), left[:, -rank:].flip(1)
    if float(energy[-1]) <= _LEAST * float(energy[0]):
        return None
    scaled = (left / energy).T @ rows  # unit directions, each over the root of its energy
    scaled /= scaled.square().sum(-1).mean().sqrt()
    found: NDArray[np.float32] = scaled.float().numpy()
    return found
