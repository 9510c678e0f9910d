"""Starts low-rank terms of linear layers in the directions in which the layers' inputs vary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from leptonc.calibrate.moments import is_sink
from leptonc.heal.graph import Graph, writable
from leptonc.heal.trainable import Kind, LowRank
from leptonc.ir.ports import inputs_of
from leptonc.ir.structure import linears

TEXTS = 8  # texts whose inputs are taken: enough for the main directions
ROWS = 512  # inputs that are taken, of all texts together
_LEAST = 1e-6  # part of the largest direction's energy. Directions with less do not vary


def principal(model: ir.Model, windows: Sequence[NDArray[np.int64]], trainable: Mapping[str, Kind]) -> dict[str, Kind]:
    """Starts each low-rank term with the principal directions of its layer's inputs.

    In most random directions inputs hardly vary, and a step of the same size changes the layer's output less (Paischer
    et al., One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation, 2024). Each direction is
    scaled so that inputs vary alike along all of them. Massive activations are left out: they are one direction.

    Args:
        model: The graph that learns.
        windows: Token ids int64 [length] of each text. All of them are run.
        trainable: Kind of each initializer that learns.

    Returns:
        The same kinds, low-rank terms with a start whose rows have norm 1 in the mean.
    """
    terms = {name: kind for name, kind in trainable.items() if isinstance(kind, LowRank)}
    layers = [linear for linear in linears(model) if str(linear.weight.name) in terms]
    read = {str(linear.weight.name): str(linear.x.name) for linear in layers}
    if not read:
        return dict(trainable)
    names = sorted(set(read.values()))
    graph = Graph(model, names, keep=False)
    rows_of: dict[str, list[Tensor]] = {name: [] for name in names}
    for window in windows:
        inputs = {name: writable(x) for name, x in inputs_of(model, window).items()}
        with torch.no_grad():
            for name, x in zip(names, graph(inputs), strict=True):
                rows = x.flatten(0, -2)
                rows = rows[torch.from_numpy(~is_sink(rows.square().sum(-1).numpy()))]
                rows_of[name].append(rows[:: max(1, len(rows) * len(windows) // ROWS)].clone())
    started = dict(trainable)
    for name, parts in rows_of.items():
        readers = [weight for weight, x in read.items() if x == name]
        for rank in {terms[weight].rank for weight in readers}:
            start = _whitened(torch.cat(parts).double(), rank)
            if start is not None:
                started |= {w: replace(terms[w], start=start) for w in readers if terms[w].rank == rank}
    return started


def _whitened(rows: Tensor, rank: int) -> NDArray[np.float32] | None:
    """Returns directions [rank, width] of rows [n, width]; None where rows vary in fewer than `rank` directions."""
    if min(rows.shape) < rank or not bool(torch.isfinite(rows).all()):  # the loss is measured later, and reported
        return None
    energy, left = torch.linalg.eigh(rows @ rows.T)  # ascending; fewer rows than features, or not many more
    energy, left = energy[-rank:].flip(0), left[:, -rank:].flip(1)
    if float(energy[-1]) <= _LEAST * float(energy[0]):
        return None
    scaled = (left / energy).T @ rows  # unit directions, each over the root of its energy
    scaled /= scaled.square().sum(-1).mean().sqrt()
    directions: NDArray[np.float32] = scaled.float().numpy()
    return directions
