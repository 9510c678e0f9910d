"""What a text makes of the units of blocks: means and squares of channels, and how far each layer turns its input."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.moments import Moments, finite_energy, is_sink
from leptonc.calibrate.staged_run import Batch, feed, open_stage, stages
from leptonc.calibrate.store import Store
from leptonc.ir.groups import Groups
from leptonc.ir.structure import Linear
from leptonc.ir.types import fill_types
from leptonc.memory import dropping_cycles, give_back
from leptonc.passes.feature import Feature

Values = dict[str, NDArray[Any]]


def observe(
    model: ir.Model, batches: Sequence[Batch], names: set[str], see: Callable[[Values], None], folder: Path, *,
    memory: int = 2**30, advance: Callable[[int], Any] = lambda _: None,
) -> None:  # fmt: skip
    """Runs a graph a layer at a time, with one layer's weights in memory.

    Args:
        model: A graph of the dialect; values get their types, nothing else changes.
        batches: Inputs of each run, by name.
        names: Values to see.
        see: Called for each layer and batch with what the layer reads from outside and those of `names` that it makes.
        folder: For temporary files.
        memory: Bytes of activations that are kept in memory; others wait on disk.
        advance: Called with 1 after each stage.
    """
    fill_types(model.graph)
    cut = stages(model)
    made = [{str(v.name) for node in stage.nodes for v in node.outputs} for stage in cut]
    last = max((i for i, inside in enumerate(made) if inside & names), default=-1)
    users = {name: i for i, stage in enumerate(cut[: last + 1]) for name in stage.inputs}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".observe.") as place, dropping_cycles() as drop_cycles:
        store = Store(memory, Path(place))
        values: list[Values] = [dict(batch) for batch in batches]
        for at, stage in enumerate(cut[: last + 1]):
            needed = [name for name in stage.outputs if users.get(name, -1) > at]
            wanted = sorted({*needed, *(names & made[at])})
            if wanted:
                session = open_stage(model, stage, wanted, {}, Path(place))
                for each in values:
                    given = feed(stage, each)
                    results = dict(zip(wanted, session.run(None, given), strict=True))
                    see({**given, **results})
                    each.update({name: store.put(results[name]) for name in needed})
                del session
            for name in [name for name, user in users.items() if user == at and name not in batches[0]]:
                for each in values:
                    store.release(each.pop(name))
            drop_cycles()
            give_back()
            advance(1)


class _Sums:
    """Sums over tokens; those of attention sinks apart, which count as much as all others at most (see `Moments`)."""

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
    model: ir.Model, found: Groups, batches: Sequence[Batch], folder: Path, *, memory: int = 2**30,
    advance: Callable[[int], Any] = lambda _: None,
) -> dict[str, Feature]:  # fmt: skip
    """Returns means and mean squares of what each block's consuming linear layers read, by module path.

    Raises:
        InputError: An activation is not finite.
    """
    readers = {str(linear.x.name): linear for block in found.blocks for linear in block.consumers}
    sums = {name: _Sums(linear.path, linear.shape[1]) for name, linear in readers.items()}

    def see(values: Values) -> None:
        for name in sums.keys() & values.keys():
            sums[name].add(values[name])

    observe(model, batches, set(readers), see, folder, memory=memory, advance=advance)
    return {readers[name].path: each.feature() for name, each in sums.items()}


def moments(
    model: ir.Model, linears: Sequence[Linear], batches: Sequence[Batch],
    use: Callable[[Linear, NDArray[np.float32]], None], folder: Path, *, memory: int = 2**30,
    advance: Callable[[int], Any] = lambda _: None,
) -> None:  # fmt: skip
    """Shows second moments of what linear layers read, one layer's in memory at a time.

    Args:
        model: A graph of the dialect; values get their types, nothing else changes.
        linears: The layers.
        batches: Inputs of each run, by name.
        use: Called with each layer and E[x x^T], float32 [in, in], of all batches.
        folder: For temporary files.
        memory: Bytes of activations that are kept in memory; others wait on disk.
        advance: Called with 1 after each stage.

    Raises:
        InputError: An activation is not finite.
    """
    readers: dict[str, list[Linear]] = {}
    for linear in linears:
        readers.setdefault(str(linear.x.name), []).append(linear)
    sums: dict[str, tuple[Moments, list[int]]] = {}

    def see(values: Values) -> None:
        for name in [name for name in readers if name in values]:
            known, seen = sums.setdefault(name, (Moments(readers[name][0].path, values[name].shape[-1]), []))
            known.add(values[name])
            seen.append(1)
            if len(seen) == len(batches):
                del sums[name]
                for linear in readers[name]:
                    use(linear, known.hessian() / np.float32(max(1, known.tokens)))

    observe(model, batches, set(readers), see, folder, memory=memory, advance=advance)


def influence(
    model: ir.Model, found: Groups, batches: Sequence[Batch], folder: Path, *, memory: int = 2**30,
    advance: Callable[[int], Any] = lambda _: None,
) -> dict[str, float]:  # fmt: skip
    """Returns of each layer 1 - the mean cosine between what it reads of the residual stream and what it leaves there.

    Men et al., ShortGPT, 2024: the layers that turn it least are missed least.
    """
    ends: dict[str, tuple[str, str]] = {}
    for path in found.layers:
        adds = [block.add for block in found.blocks if block.layer == path and block.add is not None]
        if adds:
            (first, at), (last, _) = adds[0], adds[-1]
            ends[path] = (str(first.inputs[1 - at].name), str(last.outputs[0].name))  # type: ignore[union-attr]
    total, tokens = dict.fromkeys(ends, 0.0), dict.fromkeys(ends, 0)

    def see(values: Values) -> None:
        for path, (before, after) in ends.items():
            if before in values and after in values:
                x, y = (values[name].reshape(-1, values[name].shape[-1]).astype(np.float64) for name in (before, after))
                lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
                total[path] += float(((x * y).sum(1) / np.maximum(lengths, 1e-30)).sum())
                tokens[path] += len(x)

    observe(model, batches, {name for pair in ends.values() for name in pair}, see, folder, memory=memory,
            advance=advance)  # fmt: skip
    return {path: 1 - total[path] / max(1, tokens[path]) for path in ends}
