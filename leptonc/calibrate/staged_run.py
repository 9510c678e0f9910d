"""Runs a graph of the dialect in stages: a stage's weights are in memory, and activations within a bound."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.store import Store
from leptonc.ir import edit
from leptonc.ir.dialect import module_of
from leptonc.ir.structure import Linear, layer_of, linear_of
from leptonc.ir.types import fill_types
from leptonc.memory import dropping_cycles, give_back

TOGETHER = 512  # tokens of short texts that run at once
LOGITS = 2**24  # numbers of a run's output, at most

Batch = Mapping[str, NDArray[Any]]
Weights = dict[str, NDArray[np.float32]]


@dataclass
class Stage:
    """Nodes that run together: what comes before the layers, each layer, and what comes after.

    Attributes:
        path: The layer's module path, "" before the first.
        inputs: Values from outside that the nodes read; outputs: values that later stages read.
        linears: Linear layers among the nodes, by the name of the value that they read.
    """

    path: str
    nodes: list[ir.Node] = field(default_factory=list)
    inputs: dict[str, ir.Value] = field(default_factory=dict)
    outputs: dict[str, ir.Value] = field(default_factory=dict)
    linears: dict[str, list[Linear]] = field(default_factory=dict)


def _layer(node: ir.Node) -> str:
    return layer_of(module_of(node))


def stages(
    model: ir.Model, stage_of: Callable[[ir.Node], str] = _layer, *, outside: bool = False
) -> list[Stage]:  # fmt: skip
    """Cuts a graph into stages; a node runs as early as its inputs and its layer allow.

    What depends on no input (the transposed weight of a head) belongs to whatever reads it, and is in no stage.

    Args:
        model: The graph.
        stage_of: Names the stage that a node is in at the earliest, "" for any; by default its layer.
        outside: Whether linear layers that are in no layer, as a head is, are among those of their stages.
    """
    found = [Stage("")]
    index: dict[str, int] = {}
    at: dict[ir.Value, int] = dict.fromkeys(model.graph.inputs, -1)
    for node in model.graph:
        path = stage_of(node)
        if path and path not in index:
            index[path] = len(found)
            found.append(Stage(path))
        known = [at[v] for v in node.inputs if v is not None and v in at]
        if not known:
            continue
        where = max([index.get(path, 0), *known])
        stage = found[where]
        stage.nodes.append(node)
        at.update(dict.fromkeys(node.outputs, where))
        for value in node.inputs:
            if value is not None and value in at and at[value] < where:
                stage.inputs[str(value.name)] = value
                if at[value] >= 0:
                    found[at[value]].outputs[str(value.name)] = value
        linear = linear_of(node)
        if linear is not None and (outside or layer_of(linear.path)):
            stage.linears.setdefault(str(linear.x.name), []).append(linear)
    return found


def linear_stages(model: ir.Model, *, outside: bool = False) -> list[Stage]:
    """Cuts a graph into stages that begin with linear layers: what these read, the stages before them make.

    The layers that read one value, as those of a query, a key and a value do, are in one stage, whose path is the first
    one's, with its place behind it where the same layer serves again; nodes that no linear layer comes before are in
    the first stage. `outside` as for `stages`.
    """
    depths: dict[ir.Node, int] = {}
    names: dict[int, str] = {0: ""}
    for node in model.graph:
        before = [made for value in node.inputs if (made := edit.producer(value)) is not None]
        linear = linear_of(node)
        depths[node] = max((depths[made] for made in before), default=0) + (linear is not None)
        if linear is not None and (depth := depths[node]) not in names:
            names[depth] = f"{linear.path}@{depth}" if linear.path in names.values() else linear.path
    return stages(model, lambda node: names[depths[node]], outside=outside)


class _Texts:
    """What a graph makes of each text: of the stages that ran, values that later ones read, by name."""

    def __init__(
        self, model: ir.Model, batches: Sequence[Batch], store: Store, folder: Path,
        change: Callable[[ir.Graph], None] | None = None,
    ) -> None:  # fmt: skip
        self._model, self._store, self._folder, self._change = model, store, folder, change
        self._values: list[dict[str, NDArray[Any]]] = [dict(batch) for batch in batches]

    def read(self, name: str) -> Iterator[NDArray[Any]]:
        """Yields a value of each text, that a stage made before."""
        for each in self._values:
            yield each[name]
            self._store.used(each[name].nbytes)

    def run(self, stage: Stage, needed: Sequence[str], weights: Weights) -> None:
        """Runs a stage, some of its weights replaced, and keeps what is needed of it."""
        session = open_stage(self._model, stage, needed, weights, self._folder, self._change)
        for each in self._values:
            results = session.run(None, feed(stage, each))
            each.update({name: self._store.put(array) for name, array in zip(needed, results, strict=True)})

    def drop(self, name: str) -> None:
        for each in self._values:
            self._store.release(each.pop(name))


def walk(
    model: ir.Model, batches: Sequence[Batch], see: Callable[..., None], solve: Callable[[Stage], Weights],
    folder: Path, *, memory: int = 2**30, advance: Callable[[int], Any] = lambda _: None,
    solved_before: Callable[[Stage], bool] = lambda _: False, outside: bool = False, beside: bool = False,
) -> None:  # fmt: skip
    """Runs a graph stage by stage, each node once, up to the last that has a linear layer.

    Stages are those of `linear_stages`: what the linear layers of one read is there before it runs.

    Args:
        model: A graph of the dialect; values get their types, nothing else changes.
        batches: Inputs of each run, by name.
        see: Called with a stage, the name of a value that linear layers read, and that value, once a batch.
        solve: Called before a stage runs; returns weights, by initializer, that it runs with: later stages see what
            these make of the text.
        folder: For temporary files.
        memory: Bytes of activations that are kept in memory; others wait on disk.
        advance: Called with 1 after each stage.
        solved_before: Says of a stage that `solve` needs to see nothing for it.
        outside: Whether linear layers outside of the layers count, see `stages`.
        beside: Whether the graph as it was, nothing rounded, runs beside: `see` gets its value, too, behind the other.
    """
    fill_types(model.graph)
    cut = linear_stages(model, outside=outside)
    last = max((i for i, stage in enumerate(cut) if stage.linears), default=-1)
    users: dict[str, int] = {name: i for i, stage in enumerate(cut[: last + 1]) for name in stage.inputs}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".calibrate.") as place, dropping_cycles() as drop_cycles:
        store = Store(memory, Path(place))
        changes = (None, unrounded)[: 1 + beside]
        texts = [_Texts(model, batches, store, Path(place), change) for change in changes]
        for at, stage in enumerate(cut[: last + 1]):
            solved: Weights = {}
            if stage.linears:
                for name in () if solved_before(stage) else stage.linears:
                    for seen in zip(*(each.read(name) for each in texts), strict=True):
                        see(stage, name, *seen)
                solved = solve(stage)
            needed = [name for name in stage.outputs if users.get(name, -1) > at]
            for each, weights in zip(texts, (solved, {}), strict=False) if needed else ():
                each.run(stage, needed, weights)
                drop_cycles()
            for name in [name for name, user in users.items() if user == at and name not in batches[0]]:
                for each in texts:
                    each.drop(name)
            drop_cycles()  # what was solved, too
            give_back()
            advance(1)


def unrounded(graph: ir.Graph) -> None:
    """Takes the rounding of activations, QuantizeLinear and DequantizeLinear, out of a stage's graph."""
    for node in list(graph):
        quantize = edit.producer(node.inputs[0], "QuantizeLinear") if node.op_type == "DequantizeLinear" else None
        if quantize is not None and (x := quantize.inputs[0]) is not None:
            (same,) = edit.insert(node, "Identity", [x], name=f"{x.name}/unrounded")
            node.outputs[0].replace_all_uses_with(same, replace_graph_outputs=True)


def feed(stage: Stage, values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Returns what a stage reads, of all values that are known."""
    return {name: values[name] for name in stage.inputs}


class Together:
    """Runs a stage over several short texts at once where it can, which takes less time than one after the other.

    Args:
        session: Of `open_stage`.
        stage: The stage.
        names: What the session returns.
    """

    def __init__(self, session: Any, stage: Stage, names: Sequence[str]) -> None:
        self._session, self._stage, self._names = session, stage, list(names)
        made = [value for node in stage.nodes for value in node.outputs if value.name in set(names)]
        shapes = [value.shape for value in (*stage.inputs.values(), *made)]
        self._batched = all(shape is not None and len(shape) and _is_batch(shape[0]) for shape in shapes)
        self._width = max([sum(d for d in shape[1:] if isinstance(d, int)) for shape in shapes if shape], default=1)

    def __call__(self, texts: Sequence[Mapping[str, NDArray[Any]]]) -> Iterator[dict[str, NDArray[Any]]]:
        """Yields what the stage returns of each text, of the values that are known before it, in order."""
        feeds = [feed(self._stage, each) for each in texts]
        at = 0
        while at < len(feeds):
            shapes = {name: array.shape for name, array in feeds[at].items()}
            length = max((shape[1] for shape in shapes.values() if len(shape) > 1), default=1)
            most = max(1, min(TOGETHER, LOGITS // max(1, self._width)) // max(1, length)) if self._batched else 1
            few = [feeds[at]]
            for each in feeds[at + 1 : at + most]:
                if {name: array.shape for name, array in each.items()} != shapes:
                    break
                few.append(each)
            at += len(few)
            if len(few) == 1:
                yield dict(zip(self._names, self._session.run(self._names, few[0]), strict=True))
                continue
            joined = {name: np.concatenate([each[name] for each in few]) for name in shapes}
            parts = [np.split(array, len(few)) for array in self._session.run(self._names, joined)]
            yield from (dict(zip(self._names, part, strict=True)) for part in zip(*parts, strict=True))


def _is_batch(dim: Any) -> bool:
    return str(getattr(dim, "value", dim)) == "batch"


def weights_of(model: ir.Model, stage: Stage) -> Weights:
    """Returns a stage's weights, for sessions that are opened one after the other with some of them replaced."""
    names = {str(v.name) for node in stage.nodes for v in node.inputs if v is not None and v.is_initializer()}
    values = [model.graph.initializers[name] for name in sorted(names)]
    return {
        str(value.name): np.asarray(value.const_value.numpy())
        for value in values
        if value.const_value is not None and value.dtype == ir.DataType.FLOAT
    }


def open_stage(
    model: ir.Model, stage: Stage, outputs: Sequence[str], weights: Weights, folder: Path,
    change: Callable[[ir.Graph], None] | None = None, *, once: bool = False,
) -> Any:  # fmt: skip
    """Opens a session over one stage, some of its weights replaced; `folder` is for temporary files.

    `change` is called with the stage's own graph, whose values and nodes have the names that they have in the model.
    Optimizing the graph takes longer than a short text does: it is left out where the session runs but `once`.
    """
    from runtime_edge.ort import load

    ort = load()
    made = {str(value.name): value for node in stage.nodes for value in node.outputs}
    graph = ir.convenience.extract(model.graph, list(stage.inputs.values()), [made[name] for name in outputs])
    graph.opset_imports.update(model.graph.opset_imports)
    for name, array in weights.items():
        if name in graph.initializers:
            graph.initializers[name].const_value = ir.tensor(array, name=name)
    if change is not None:
        change(graph)
    part = ir.Model(graph, ir_version=model.ir_version, functions=[f.clone() for f in model.functions.values()])
    path = folder / "stage.onnx"
    (folder / "stage.data").unlink(missing_ok=True)
    ir.save(part, path, external_data="stage.data")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if once:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
