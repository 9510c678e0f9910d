"""Runs graphs of the dialect over texts, a stage at a time.

One stage's weights are in memory, and activations within a bound. Several graphs, or variants of one, run side by side.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.cores import lanes, part_of_cores
from leptonc.calibrate.stage_session import Change, StageSession, Values, Weights, open_stage
from leptonc.calibrate.stages import Stage, linear_stages
from leptonc.calibrate.store import Store
from leptonc.ir import edit
from leptonc.ir.types import fill_types
from leptonc.memory import dropping_cycles, give_back

Text = Mapping[str, NDArray[Any]]  # a graph's inputs for one text, by name
SMALL = 2**25  # bytes of a stage's weights; see `_is_small`
MEMORY = 2**30  # bytes of activations that are kept in memory where nothing else is asked for


class StagedRun:
    """Runs graphs over texts side by side, a stage at a time; a context that the values of the graphs live in.

    ::

        with StagedRun(folder) as run:
            graph = run.graph(model, texts, cut)
            for at, stage in run.over(cut):
                graph.run(at)

    Args:
        folder: For temporary files. None: the system's folder.
        memory: Bytes of activations that are kept in memory. Others wait on disk. Default: 1 GiB.
        advance: Called with 1 after each stage. Default: nothing is called.
        trim: Whether memory that was freed goes back to the system after each stage. It need not where every stage
            takes as much again, and page faults would cost time. Default: it does.

    Attributes:
        folder: A temporary folder, which is gone afterwards.
        store: Holds the values of all graphs.
    """

    folder: Path
    store: Store

    def __init__(
        self, folder: Path | None, *, memory: int = MEMORY, advance: Callable[[int], Any] = lambda _: None,
        trim: bool = True,
    ) -> None:  # fmt: skip
        self._parent, self._memory, self._advance, self._trim = folder, memory, advance, trim
        self._graphs: list[GraphRun] = []
        self._stack = ExitStack()

    def __enter__(self) -> StagedRun:
        place = self._stack.enter_context(tempfile.TemporaryDirectory(dir=self._parent, prefix=".staged-run."))
        self.folder = Path(place)
        self.store = Store(self._memory, self.folder)
        self.drop_cycles = self._stack.enter_context(dropping_cycles())
        return self

    def __exit__(self, *_: object) -> None:
        self._graphs.clear()
        self._stack.close()

    def graph(
        self, model: ir.Model, texts: Sequence[Text], cut: Sequence[Stage], *, keep: Sequence[str] = (),
        change: Change | None = None,
    ) -> GraphRun:  # fmt: skip
        """Adds a graph, or a variant of one.

        Args:
            model: A graph of the dialect. Its values get their types, nothing else changes.
            texts: The graph's inputs for each text.
            cut: The stages that run. No value is kept for others.
            keep: Names of values that stay after their last reader. Default: none.
            change: Changes each stage's own graph before it runs; see `open_stage`. Default: nothing changes.
        """
        fill_types(model.graph)
        added = GraphRun(self, model, texts, cut, keep, change)
        self._graphs.append(added)
        return added

    def over(self, cut: Sequence[Stage]) -> Iterator[tuple[int, Stage]]:
        """Yields each stage with its place. After each, values that no later stage reads are dropped."""
        for at, stage in enumerate(cut):
            yield at, stage
            for graph in self._graphs:
                graph.drop(at)
            self.drop_cycles()
            if self._trim:
                give_back()
            self._advance(1)


class GraphRun:
    """One graph that runs over all texts; `StagedRun.graph` makes it.

    Attributes:
        stages: The stages that run.
        values: Of each text, by name: the graph's inputs, and the values that later stages read.
    """

    def __init__(
        self, run: StagedRun, model: ir.Model, texts: Sequence[Text], cut: Sequence[Stage], keep: Sequence[str],
        change: Change | None,
    ) -> None:  # fmt: skip
        self._run, self._model, self._keep, self._change = run, model, keep, change
        self.stages = cut
        self.values: list[Values] = [dict(text) for text in texts]
        self._inputs = frozenset(name for text in texts for name in text)
        self._last_reader = {name: at for at, stage in enumerate(cut) for name in stage.inputs}

    def needed(self, at: int) -> list[str]:
        """Returns the names of the values that a stage makes for later ones, or that are kept."""
        stage = self.stages[at]
        made = stage.made if self._keep else set()
        read_later = [name for name in stage.outputs if self._last_reader.get(name, -1) > at]
        return list(dict.fromkeys((*read_later, *(name for name in self._keep if name in made))))

    def open(
        self, at: int, names: Sequence[str], weights: Weights | None = None, change: Change | None = None, *,
        once: bool = False, joined: bool = False, beside: bool = False,
    ) -> StageSession:  # fmt: skip
        """Opens a session over a stage that returns the values `names`; see `open_stage` and `StageSession`.

        Args:
            at: Place of the stage.
            names: What the session returns.
            weights: Weights by initializer. Default: the graph's own.
            change: Changes the stage's own graph. Default: what the graph was added with.
            once: Whether the session runs a single time.
            joined: Whether short texts may run at once.
            beside: Whether the session runs beside other work. Default: texts run side by side.
        """
        alone = beside or once or (len(self.values) < 2 and not joined)
        stage, runs = self.stages[at], 1 if alone else lanes()
        opened = open_stage(
            self._model, stage, names, weights or {}, self._run.folder, change or self._change, once=once,
            threads=part_of_cores() if beside or runs > 1 else 0,
        )  # fmt: skip
        return StageSession(opened, stage, names, joined=joined, runs=runs)

    def run(
        self, at: int, weights: Weights | None = None, *, also: Sequence[str] = (),
        observer: Callable[[int, Values], None] | None = None, beside: bool = False,
    ) -> None:  # fmt: skip
        """Runs a stage over all texts, and stores the values that later stages read.

        A stage does not run where nothing is needed of it.

        Args:
            at: Place of the stage.
            weights: Weights by initializer that it runs with. Default: the graph's own.
            also: Names of further values that `observer` gets. Default: none.
            observer: Called for each text with its place, and with what the stage reads and returns. `self.values`
                does not have the stage's values yet. Default: nothing is called.
            beside: Whether it runs beside other work, in a thread of its own.
        """
        needed, stage = self.needed(at), self.stages[at]
        names = list(dict.fromkeys((*needed, *also)))
        if not names:
            return
        session = self.open(at, names, weights, beside=beside)
        # What a stage reads stays in place while it runs, whatever is stored.
        for text, (values, results) in enumerate(zip(self.values, session(self.values), strict=True)):
            if observer is not None:
                observer(text, {**{name: values[name] for name in stage.inputs}, **results})
            self.store(text, {name: results[name] for name in needed})

    def store(self, text: int, results: Values) -> None:
        """Stores values of a text for later stages."""
        self.values[text].update({name: self._run.store.put(array) for name, array in results.items()})

    def read(self, name: str) -> Iterator[NDArray[Any]]:
        """Yields a value of each text that an earlier stage made."""
        for values in self.values:
            yield values[name]
            self._run.store.used(values[name].nbytes)

    def drop(self, at: int) -> None:
        """Forgets the values that no stage after this one reads."""
        for name in [name for name, last in self._last_reader.items() if last == at]:
            for values in self.values if self.is_dropped(name, at) else ():
                self._run.store.release(values.pop(name))

    def is_dropped(self, name: str, at: int) -> bool:
        """Whether a value is forgotten once a stage has run."""
        return self._last_reader.get(name, -1) <= at and name not in self._inputs and name not in self._keep

    def branch(self) -> Branch:
        """Returns a variant that has the graph's own values until it gets others."""
        return Branch(self, self._run.store)


class Branch:
    """A variant of a graph that differs from some stage on. Only the values that differ are kept.

    Args:
        graph: What it is a variant of.
        store: Holds its values.

    Attributes:
        values: Of each text, the values that differ, by name.
    """

    def __init__(self, graph: GraphRun, store: Store) -> None:
        self._graph, self._store = graph, store
        self.values: list[Values] = [{} for _ in graph.values]

    def known(self, text: int) -> Values:
        """Returns all values of a text: its own, and the graph's where they are the same."""
        return {**self._graph.values[text], **self.values[text]}

    def keep(self, at: int, text: int, results: Values, original: Values) -> None:
        """Keeps what a stage made for a text, where it differs from what the graph itself made."""
        own = self.values[text]
        for name in [name for name in own if self._graph.is_dropped(name, at)]:
            self._store.release(own.pop(name))
        differing = {name: x for name, x in results.items() if not np.array_equal(x, original[name])}
        own.update({name: self._store.put(x) for name, x in differing.items()})


def walk(
    model: ir.Model, texts: Sequence[Text], observer: Callable[..., None], solve: Callable[[Stage], Weights],
    folder: Path, *, memory: int = MEMORY, advance: Callable[[int], Any] = lambda _: None,
    solved_before: Callable[[Stage], bool] = lambda _: False, outside: bool = False, with_exact: bool = False,
) -> None:  # fmt: skip
    """Runs a graph stage by stage, each node once, up to the last stage that has a linear layer.

    Stages are those of `linear_stages`: what a stage's linear layers read is there before it runs.

    Args:
        model: A graph of the dialect. Its values get their types, nothing else changes.
        texts: Inputs of each run, by name.
        observer: Called once a text with a stage, the name of a value that its linear layers read, and that value.
        solve: Called before a stage runs. Returns the weights, by initializer, that it runs with. Later stages
            read what the stage makes with these.
        folder: For temporary files.
        memory: Bytes of activations that are kept in memory. Others wait on disk. Default: 1 GiB.
        advance: Called with 1 after each stage. Default: nothing is called.
        solved_before: Whether `observer` may leave out a stage. Default: it gets every stage.
        outside: Whether linear layers that are in no layer count; see `stages`. Default: they do not.
        with_exact: Whether the graph also runs with its own weights, and activations not rounded. `observer` then gets
            the exact value as its last argument. Default: it does not.
    """
    cut = linear_stages(model, outside=outside)
    cut = cut[: max((at for at, stage in enumerate(cut) if stage.linears), default=-1) + 1]
    with StagedRun(folder, memory=memory, advance=advance) as run:
        solved = run.graph(model, texts, cut)
        graphs = [solved, *([run.graph(model, texts, cut, change=unrounded)] if with_exact else [])]
        for at, stage in run.over(cut):
            if stage.linears:
                for name in () if solved_before(stage) else stage.linears:
                    for values in zip(*(graph.read(name) for graph in graphs), strict=True):
                        observer(stage, name, *values)
            # The exact graph knows nothing of what is solved.
            with ThreadPoolExecutor(1) as pool:
                beside = [pool.submit(graph.run, at, beside=True) for graph in graphs[1:] if _is_small(model, stage)]
                weights = solve(stage) if stage.linears else {}
                for running in beside:
                    running.result()
            solved.run(at, weights)
            for graph in graphs[1 + len(beside) :]:
                graph.run(at)


def _is_small(model: ir.Model, stage: Stage) -> bool:
    """Whether a stage's weights are few enough that it may run beside other work, which takes memory too."""
    names = {str(value.name) for node in stage.nodes for value in node.inputs if value is not None}
    weights = [model.graph.initializers[name].const_value for name in names if name in model.graph.initializers]
    return sum(weight.nbytes for weight in weights if weight is not None) <= SMALL


def unrounded(graph: ir.Graph) -> None:
    """Takes the rounding of activations, QuantizeLinear and DequantizeLinear, out of a stage's graph."""
    for node in list(graph):
        quantize = edit.producer(node.inputs[0], "QuantizeLinear") if node.op_type == "DequantizeLinear" else None
        if quantize is not None and (x := quantize.inputs[0]) is not None:
            (same,) = edit.insert(node, "Identity", [x], name=f"{x.name}/unrounded")
            node.outputs[0].replace_all_uses_with(same, replace_graph_outputs=True)
