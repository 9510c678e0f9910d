"""Runs a captured graph in float32, one layer's weights in memory: the reference of a model that is only a graph."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.stage_session import Values, open_stage
from leptonc.calibrate.staged_run import StagedRun, Text
from leptonc.calibrate.stages import Stage, stages
from leptonc.evaluate.noise import OutputNoise
from leptonc.evaluate.reference import BLOCK_BYTES, split
from leptonc.frontend.capture import capture
from leptonc.ir import edit
from leptonc.ir.dialect import module_of
from leptonc.ir.ports import inputs_of
from leptonc.ir.structure import Linear, layer_of, linear_of, weight_of
from leptonc.memory import give_back
from leptonc.passes.last_logits import head_of
from leptonc.sources.base import Source

_HEAD = "the head"


def emitted_graph(source: Source) -> ir.Model:
    """Reads an emitted graph anew, so that passes over another reading of it do not change this one."""
    longest = source.emitted.max_seq_len if source.emitted is not None else 1
    return capture(source, max_seq_len=longest).model


class GraphReference:
    """A captured graph that runs in float32.

    Args:
        model: The graph. Its values get their types, nothing else changes.
        folder: Directory for temporary files. Default: the system's.
        noise: Observes the graph's linear layers while it runs. Default: none.
    """

    def __init__(self, model: ir.Model, folder: Path | None = None, noise: OutputNoise | None = None) -> None:
        self._model, self._folder, self._noise = model, folder, noise
        self._output = str(model.graph.outputs[0].name)
        self._head = head_of(model.graph)
        self._stages = stages_and_head(model)

    def logits(self, token_ids: list[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See `Original.logits`: the head runs over some positions at a time."""
        return self._logits([token_ids], [0])

    def likeliest(self, texts: list[list[int]], since: list[int]) -> list[list[int]]:
        """See `Original.likeliest`."""
        return split(self._logits(texts, since), texts, since)

    def _logits(self, texts: list[list[int]], since: list[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yields blocks of the logits of texts, from a position of each on, one text after the other."""
        inputs = [inputs_of(self._model, np.asarray(ids, np.int64)) for ids in texts]
        if self._head is None:
            at = 0
            for logits, start in zip(self._run(inputs, self._stages, self._output), since, strict=True):
                yield at, logits[0, start:]
                at += logits.shape[1] - start
            return
        *body, head = self._stages
        name = str(self._head.x.name)
        ran = self._run(inputs, body, name)
        hidden = np.concatenate([value[:, start:] for value, start in zip(ran, since, strict=True)], 1)
        give_back()
        self._look_at(head, 0, {name: hidden})
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".reference.") as place:
            session = open_stage(self._model, head, [self._output], {}, Path(place))
            shape = self._model.graph.outputs[0].shape
            rows = max(1, BLOCK_BYTES // (4 * int(shape[-1])))  # type: ignore[index, arg-type]
            for start in range(0, hidden.shape[1], rows):
                (logits,) = session.run(None, {name: hidden[:, start : start + rows]})
                yield start, logits[0]

    def rows(self, token_ids: list[list[int]], skipped: int = 0) -> NDArray[np.float32]:
        """See `Original.rows`."""
        texts = [inputs_of(self._model, np.asarray(ids, np.int64), skipped) for ids in token_ids]
        return np.concatenate(self._run(texts, self._stages, self._output))

    def output(self, inputs: Text) -> NDArray[np.float32]:
        """Returns the graph's first output for inputs by name, such as a batch with padding."""
        (output,) = self._run([inputs], self._stages, self._output)
        return output

    def values(self, runs: Sequence[Mapping[str, NDArray[Any]]]) -> list[NDArray[np.float32]]:
        """See `Original.values`: no emitted graph is compared by values (raises `ValueError`)."""
        raise ValueError("expected a model that is compared by its tokens or rows")

    def _run(self, texts: Sequence[Text], cut: Sequence[Stage], name: str) -> list[NDArray[Any]]:
        """Runs stages one after the other, and returns the value `name` of each text."""
        with StagedRun(self._folder, trim=False) as run:
            graph = run.graph(self._model, texts, cut, keep=[name])
            for at, stage in run.over(cut):
                outputs = stage.made
                inputs = [str(linear.x.name) for linear in self._linears(stage) if linear.x.name in outputs]
                graph.run(at, also=inputs, observer=partial(self._look_at, stage))
            return [values[name] for values in graph.values]

    def _look_at(self, stage: Stage, text: int, values: Values) -> None:
        for linear in self._linears(stage):
            self._noise.see(linear.path, values[str(linear.x.name)], partial(weight_of, linear))  # type: ignore[union-attr]

    def _linears(self, stage: Stage) -> list[Linear]:
        """Returns a stage's linear layers to observe, heads among them. Default: none, without `noise`."""
        layers = map(linear_of, stage.nodes if self._noise is not None else ())
        return [linear for linear in layers if linear is not None]


def stages_and_head(model: ir.Model) -> list[Stage]:
    """Cuts a graph into its layers, with a stage of its own for the head of a model that writes text."""
    head = head_of(model.graph)
    behind = edit.behind(head.node) if head is not None else set()
    return stages(model, partial(_place, behind))


def _place(head: set[ir.Node], node: ir.Node) -> str:
    return _HEAD if node in head else layer_of(module_of(node))
