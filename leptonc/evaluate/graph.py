"""A captured graph in float32, one layer's weights in memory: the reference of a model that exists as a graph alone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.code_solver import inputs_of
from leptonc.calibrate.staged_run import Batch, Stage, feed, open_stage, stages
from leptonc.evaluate.noise import OutputNoise
from leptonc.evaluate.reference import BLOCK_BYTES
from leptonc.frontend.capture import capture
from leptonc.ir import edit
from leptonc.ir.dialect import module_of
from leptonc.ir.structure import Linear, layer_of, linear_of, weight_of
from leptonc.ir.types import fill_types
from leptonc.memory import give_back
from leptonc.passes.last_logits import head_of
from leptonc.sources.base import Source

_HEAD = "the head"


def emitted_graph(source: Source) -> ir.Model:
    """Reads an emitted graph anew: what passes do to another reading of it changes nothing here."""
    longest = source.emitted.max_seq_len if source.emitted is not None else 1
    return capture(source, max_seq_len=longest).model


class GraphReference:
    """A captured graph that runs in float32.

    Args:
        model: The graph. Its values get their types, nothing else changes.
        folder: For temporary files; None for the system's.
        noise: What looks at its linear layers while it runs, or None.
    """

    def __init__(self, model: ir.Model, folder: Path | None = None, noise: OutputNoise | None = None) -> None:
        self._model, self._folder, self._noise = model, folder, noise
        fill_types(self._model.graph)
        self._output = str(self._model.graph.outputs[0].name)
        head = head_of(self._model.graph)
        self._cut = str(head.x.name) if head is not None else None
        self._stages = stages(self._model, partial(_place, edit.behind(head.node) if head is not None else set()))

    def logits(self, token_ids: list[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See `Original.logits`: the head runs over some positions at a time."""
        *body, head = self._stages
        if self._cut is None:
            body, head = self._stages, Stage("")
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".reference.") as place:
            (values,) = self._run(body, [inputs_of(self._model, np.asarray(token_ids, np.int64))], Path(place))
            give_back()
            if self._cut is None:
                yield 0, values[self._output][0]
                return
            hidden = values[self._cut]
            self._see(head, {self._cut: hidden})
            session = open_stage(self._model, head, [self._output], {}, Path(place))
            shape = self._model.graph.outputs[0].shape
            rows = max(1, BLOCK_BYTES // (4 * int(shape[-1])))  # type: ignore[index, arg-type]
            for start in range(0, len(token_ids), rows):
                (found,) = session.run(None, {self._cut: hidden[:, start : start + rows]})
                yield start, found[0]

    def rows(self, token_ids: list[list[int]], skipped: int = 0) -> NDArray[np.float32]:
        """See `Original.rows`."""
        batches = [inputs_of(self._model, np.asarray(ids, np.int64), skipped) for ids in token_ids]
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".reference.") as place:
            found = self._run(self._stages, batches, Path(place))
        return np.concatenate([values[self._output] for values in found])

    def _run(self, cut: Sequence[Stage], batches: Sequence[Batch], place: Path) -> list[dict[str, NDArray[Any]]]:
        """Runs stages one after the other; returns what is known of each batch after the last."""
        known = [dict(batch) for batch in batches]
        for at, stage in enumerate(cut):
            made = {str(value.name) for node in stage.nodes for value in node.outputs}
            passed = [*stage.outputs, *([self._output] if self._output in made else [])]
            looked = [str(each.x.name) for each in self._linears(stage) if each.x.name in made]
            names = list(dict.fromkeys((*passed, *looked)))
            if not names:
                continue
            session = open_stage(self._model, stage, names, {}, place)
            later = {name for each in self._stages[at + 1 :] for name in each.inputs} | {self._output}
            for i, values in enumerate(known):
                found = dict(zip(names, session.run(names, feed(stage, values)), strict=True))
                values.update({name: np.array(array) for name, array in found.items()})
                self._see(stage, values)
                known[i] = {name: array for name, array in values.items() if name in later}
            del session
        return known

    def _see(self, stage: Stage, values: Batch) -> None:
        for linear in self._linears(stage):
            self._noise.see(linear.path, values[str(linear.x.name)], partial(weight_of, linear))  # type: ignore[union-attr]

    def _linears(self, stage: Stage) -> list[Linear]:
        """Linear layers to look at, those outside of the layers among them."""
        found = map(linear_of, stage.nodes if self._noise is not None else ())
        return [linear for linear in found if linear is not None]


def _place(head: set[ir.Node], node: ir.Node) -> str:
    return _HEAD if node in head else layer_of(module_of(node))
