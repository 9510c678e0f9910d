"""Statistics of a graph's values over texts: moments of channels, and how far a layer turns its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.cores import sharing_cores
from leptonc.calibrate.moments import Moments, finite_energy, is_sink
from leptonc.calibrate.stage_session import Values
from leptonc.calibrate.staged_run import MEMORY, StagedRun, Text
from leptonc.calibrate.stages import stages
from leptonc.ir.groups import Groups
from leptonc.ir.structure import Linear
from leptonc.passes.feature import Feature


def observe(
    model: ir.Model, texts: Sequence[Text], names: set[str], observer: Callable[[Values], None], folder: Path, *,
    memory: int = MEMORY, advance: Callable[[int], Any] = lambda _: None,
) -> None:  # fmt: skip
    """Runs a graph a layer at a time, up to the last layer that makes a value of `names`.

    Args:
        model: A graph of the dialect. Its values get their types, nothing else changes.
        texts: Inputs of each run, by name.
        names: Names of the values to observe.
        observer: Called for each layer and text with the values that the layer reads, and those of `names` that it
            makes.
        folder: For temporary files.
        memory: Bytes of activations that are kept in memory. Others wait on disk. Default: 1 GiB.
        advance: Called with 1 after each layer. Default: nothing is called.
    """
    cut = stages(model)
    cut = cut[: max((at for at, stage in enumerate(cut) if stage.made & names), default=-1) + 1]
    with StagedRun(folder, memory=memory, advance=advance) as run:
        graph = run.graph(model, texts, cut)
        for at, stage in run.over(cut):
            graph.run(at, also=sorted(names & stage.made), observer=lambda _, values: observer(values))


class _Sums:
    """Sums over tokens. Attention sinks are summed apart, and count at most as much as all others (see `Moments`)."""

    def __init__(self, path: str, width: int) -> None:
        self.path, self.tokens = path, 0
        self.sum, self.square, self.sinks = (np.zeros(width) for _ in range(3))

    def add(self, x: NDArray[Any]) -> None:
        rows = x.reshape(-1, x.shape[-1])
        sink = is_sink(finite_energy(rows, self.path))
        self.sinks += np.square(rows[sink], dtype=np.float64).sum(0)
        rows = rows[~sink]
        self.sum += rows.sum(0, dtype=np.float64)
        self.square += np.square(rows, dtype=np.float64).sum(0)
        self.tokens += len(rows)

    def feature(self) -> Feature:
        sinks, ordinary = float(self.sinks.sum()), float(self.square.sum())
        scale = min(1.0, ordinary / sinks) if sinks else 0.0
        count = max(1, self.tokens)
        return Feature(self.sum / count, (self.square + scale * self.sinks) / count)


def features(
    model: ir.Model, groups: Groups, texts: Sequence[Text], folder: Path, *, memory: int = 2**30,
    advance: Callable[[int], Any] = lambda _: None,
) -> dict[str, Feature]:  # fmt: skip
    """Returns the mean and mean square of each channel that the consuming linear layers of blocks read, by module path.

    Raises:
        InputError: An activation is not finite.
    """
    readers = {str(linear.x.name): linear for block in groups.blocks for linear in block.consumers}
    sums = {name: _Sums(linear.path, linear.shape[1]) for name, linear in readers.items()}

    def observer(values: Values) -> None:
        for name in sums.keys() & values.keys():
            sums[name].add(values[name])

    observe(model, texts, set(readers), observer, folder, memory=memory, advance=advance)
    return {readers[name].path: total.feature() for name, total in sums.items()}


def moments(
    model: ir.Model, linears: Sequence[Linear], texts: Sequence[Text],
    use: Callable[[Linear, NDArray[np.float32]], None], folder: Path, *, memory: int = 2**30,
    advance: Callable[[int], Any] = lambda _: None,
) -> None:  # fmt: skip
    """Computes second moments of the inputs of linear layers, one layer's in memory at a time.

    Args:
        model: A graph of the dialect; values get their types, nothing else changes.
        linears: The layers.
        texts: Inputs of each run, by name.
        use: Called with each layer and E[x x^T], float32 [in, in], over all texts.
        folder: For temporary files.
        memory: Bytes of activations that are kept in memory. Others wait on disk. Default: 1 GiB.
        advance: Called with 1 after each stage. Default: nothing is called.

    Raises:
        InputError: An activation is not finite.
    """
    readers: dict[str, list[Linear]] = {}
    for linear in linears:
        readers.setdefault(str(linear.x.name), []).append(linear)
    sums: dict[str, tuple[Moments, list[int]]] = {}

    def observer(values: Values) -> None:
        for name in [name for name in readers if name in values]:
            known, texts_seen = sums.setdefault(name, (Moments(readers[name][0].path, values[name].shape[-1]), []))
            known.add(values[name])
            texts_seen.append(1)
            if len(texts_seen) == len(texts):
                del sums[name]
                for linear in readers[name]:
                    use(linear, known.hessian() / np.float32(max(1, known.tokens)))

    with sharing_cores():
        observe(model, texts, set(readers), observer, folder, memory=memory, advance=advance)


def influence(
    model: ir.Model, groups: Groups, texts: Sequence[Text], folder: Path, *, memory: int = 2**30,
    advance: Callable[[int], Any] = lambda _: None,
) -> dict[str, float]:  # fmt: skip
    """Returns for each layer 1 - the mean cosine between the residual stream before it and after it.

    Men et al., ShortGPT, 2024: the layers that turn the stream least are missed least.
    """
    ends: dict[str, tuple[str, str]] = {}
    for path in groups.layers:
        adds = [block.add for block in groups.blocks if block.layer == path and block.add is not None]
        if adds:
            (first, at), (last, _) = adds[0], adds[-1]
            ends[path] = (str(first.inputs[1 - at].name), str(last.outputs[0].name))  # type: ignore[union-attr]
    total, tokens = dict.fromkeys(ends, 0.0), dict.fromkeys(ends, 0)

    def observer(values: Values) -> None:
        for path, (before, after) in ends.items():
            if before in values and after in values:
                x, y = (values[name].reshape(-1, values[name].shape[-1]).astype(np.float64) for name in (before, after))
                lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
                total[path] += float(((x * y).sum(1) / np.maximum(lengths, 1e-30)).sum())
                tokens[path] += len(x)

    observe(model, texts, {name for pair in ends.values() for name in pair}, observer, folder, memory=memory,
            advance=advance)  # fmt: skip
    return {path: 1 - total[path] / max(1, tokens[path]) for path in ends}
