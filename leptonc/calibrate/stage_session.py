"""Sessions of ONNX Runtime that run one stage of a graph, some of its weights replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.cores import side_by_side
from leptonc.calibrate.stages import Stage

JOINED_TOKENS = 512  # of short texts that run at once
LOGITS = 2**24  # numbers of a run's output, at most

Values = dict[str, NDArray[Any]]
Weights = dict[str, NDArray[np.float32]]
Change = Callable[[ir.Graph], None]  # changes a stage's own graph, whose values and nodes have the model's names


def open_stage(
    model: ir.Model, stage: Stage, outputs: Sequence[str], weights: Weights, folder: Path,
    change: Change | None = None, *, once: bool = False, threads: int = 0,
) -> Any:  # fmt: skip
    """Opens a session over one stage.

    Args:
        model: The graph that the stage is of.
        stage: The stage. The session reads all its inputs.
        outputs: Names of the values that the session returns.
        weights: Weights by initializer, in the place of the graph's own.
        folder: For temporary files.
        change: Changes the stage's own graph before the session opens. Default: nothing changes.
        once: Whether the session runs a single time. The graph is not optimized then, because that takes longer than a
            short text does. Default: the session is optimized.
        threads: Of a run. Default: one a core.
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
    for value in graph.initializers.values():  # a graph waits for the search for cycles, and its weights need not
        value.const_value = None
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if once:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def weights_of(model: ir.Model, stage: Stage) -> Weights:
    """Reads a stage's weights once, for sessions that are opened one after the other with some of them replaced."""
    names = {str(v.name) for node in stage.nodes for v in node.inputs if v is not None and v.is_initializer()}
    values = [model.graph.initializers[name] for name in sorted(names)]
    return {
        str(value.name): np.asarray(value.const_value.numpy())
        for value in values
        if value.const_value is not None and value.dtype == ir.DataType.FLOAT
    }


class StageSession:
    """Runs a stage over texts, one after the other or several short ones at once.

    Args:
        session: A session that `open_stage` opened.
        stage: The stage.
        names: Names of the values that the session returns.
        joined: Whether short texts of one length may run as one, which takes less time. Sums may then be rounded
            otherwise. Default: each text runs alone.
        runs: How many runs there are at a time. Default: 1.
    """

    def __init__(
        self, session: Any, stage: Stage, names: Sequence[str], *, joined: bool = False, runs: int = 1
    ) -> None:  # fmt: skip
        self._session, self._stage, self._names, self._runs = session, stage, list(names), runs
        wanted = set(names)
        made = [value for node in stage.nodes for value in node.outputs if value.name in wanted]
        shapes = [value.shape for value in (*stage.inputs.values(), *made)]
        self._joined = joined and all(shape is not None and len(shape) and _is_batch(shape[0]) for shape in shapes)
        self._width = max([sum(d for d in shape[1:] if isinstance(d, int)) for shape in shapes if shape], default=1)

    def __call__(self, texts: Sequence[Mapping[str, NDArray[Any]]]) -> Iterator[Values]:
        """Yields the values that the stage returns for each text, in order.

        Args:
            texts: All values known of each text. The stage reads its inputs from them.
        """
        for results in side_by_side(self._results, self._together(texts), min(self._runs, len(texts))):
            yield from results

    def _together(self, texts: Sequence[Mapping[str, NDArray[Any]]]) -> Iterator[list[Values]]:
        """Yields the inputs of the texts that run as one, in order."""
        at = 0
        while at < len(texts):
            yield (together := self._joinable(texts, at))
            at += len(together)

    def _results(self, together: Sequence[Values]) -> list[Values]:
        """Runs texts as one; returns what the stage returns for each."""
        if len(together) == 1:
            return [self._run(together[0])]
        joined = {name: np.concatenate([values[name] for values in together]) for name in together[0]}
        parts = {name: np.split(array, len(together)) for name, array in self._run(joined).items()}
        return [{name: part[i] for name, part in parts.items()} for i in range(len(together))]

    def _run(self, inputs: Values) -> Values:
        return dict(zip(self._names, self._session.run(None, inputs), strict=True))

    def _inputs(self, values: Mapping[str, NDArray[Any]]) -> Values:
        return {name: values[name] for name in self._stage.inputs}

    def _joinable(self, texts: Sequence[Mapping[str, NDArray[Any]]], at: int) -> list[Values]:
        """Returns the inputs of the text at `at`, and of those after it that run together with it."""
        together = [self._inputs(texts[at])]
        if not self._joined:
            return together
        shapes = {name: array.shape for name, array in together[0].items()}
        length = max((shape[1] for shape in shapes.values() if len(shape) > 1), default=1)
        most = max(1, min(JOINED_TOKENS, LOGITS // max(1, self._width)) // max(1, length))
        for values in texts[at + 1 : at + most]:
            inputs = self._inputs(values)
            if {name: array.shape for name, array in inputs.items()} != shapes:
                break
            together.append(inputs)
        return together


def _is_batch(dim: object) -> bool:
    return str(getattr(dim, "value", dim)) == "batch"
