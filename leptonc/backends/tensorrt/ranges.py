"""How large the activations of a graph get on real text, measured by running it on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from leptonc.calibrate.walk import feed, open_stage, stages
from leptonc.errors import OVERFLOWS, InputError
from leptonc.ir import edit
from leptonc.ir.dialect import module_of
from leptonc.ir.types import fill_types
from leptonc.memory import dropping_cycles, give_back
from leptonc.passes.base import Pass

Batch = Mapping[str, np.ndarray[Any, Any]]
_SUFFIX = "/largest"


class MeasureRanges(Pass):
    """Runs the graph on a text and remembers how large each activation got; the graph stays as it is.

    It comes before weights are quantized: they would be quantized for this run and again when they are written, and
    activations differ by far less than the headroom that is left above them.

    Args:
        as_run: Called with the graph; returns it, or a copy that computes the same and is cheaper to run.
        inputs: Called with that; returns the inputs of each run, by name.
        scratch: Where a temporary copy of the weights may lie.
    """

    name = "tensorrt-measure-ranges"

    def __init__(
        self,
        as_run: Callable[[ir.Model], ir.Model],
        inputs: Callable[[ir.Model], Sequence[Batch]],
        scratch: Path,
    ) -> None:
        super().__init__()
        self.as_run, self.inputs, self.scratch = as_run, inputs, scratch
        self.found: dict[str, float] = {}

    def run(self, model: ir.Model) -> int:
        fill_types(model.graph)
        run = self.as_run(model)
        self.found = largest(run, self.inputs(run), self.scratch)
        return 0


def activations(graph: ir.Graph) -> list[ir.Value]:
    """Returns what nodes compute from the graph's inputs; what they compute from weights alone is no activation."""
    found: dict[ir.Value, None] = dict.fromkeys(graph.inputs)
    for node in graph:
        if any(value in found for value in node.inputs if value is not None):
            found.update(dict.fromkeys(node.outputs))
    return [value for value in found if value.producer() is not None]


def largest(model: ir.Model, batches: Sequence[Batch], folder: Path) -> dict[str, float]:
    """Runs `model` and returns the largest magnitude of every float activation, by value name.

    It runs a layer at a time, each with `ReduceMax(Abs(x))` behind every float value: neither the weights nor the
    activations are ever all in memory.

    Args:
        model: A graph that ONNX Runtime runs; values get their types, nothing else changes.
        batches: Inputs of each run, by name.
        folder: Where temporary files may lie.

    Raises:
        InputError: An activation is not finite.
    """
    fill_types(model.graph)
    modules = {str(value.name): module_of(edit.producer(value)) for value in activations(model.graph)}  # type: ignore[arg-type]
    cut, known, found = stages(model), [dict(batch) for batch in batches], dict[str, float]()
    users = {name: at for at, stage in enumerate(cut) for name in stage.inputs}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".ranges.") as place, dropping_cycles() as drop_cycles:
        for at, stage in enumerate(cut):
            made = [v for node in stage.nodes for v in node.outputs if v.name and v.dtype == ir.DataType.FLOAT]
            needed = [str(name) for name in stage.outputs]
            names = list(dict.fromkeys([*needed, *(str(value.name) for value in made)]))
            if not names:
                continue
            session = open_stage(model, stage, names, {}, Path(place), partial(_probe, needed=set(needed)))
            tops = [output.name for output in session.get_outputs()]
            for values in known:
                for name, top in zip(tops, session.run(tops, feed(stage, values)), strict=True):
                    if not name.endswith(_SUFFIX):
                        values[name] = np.array(top)
                        continue
                    value = name.removesuffix(_SUFFIX)
                    found[value] = max(found.get(value, 0.0), float(top))
                    if not np.isfinite(top):
                        raise InputError(
                            f"expected finite activations on the text that ranges are measured on, found {top} in "
                            f"{modules[value] or value}",
                            hint=OVERFLOWS,
                        )
            del session
            for name in [name for name, user in users.items() if user == at]:
                for values in known:
                    values.pop(name, None)
            drop_cycles()
            give_back()
    return found


def _probe(graph: ir.Graph, needed: Collection[str]) -> None:
    """Makes a stage return how large its float values are, and of these themselves what is needed."""
    values = list(graph.outputs)
    graph.outputs.clear()
    graph.outputs.extend(value for value in values if value.name in needed)
    for value in [value for value in values if value.dtype == ir.DataType.FLOAT]:
        (size,) = edit.insert_last(graph, "Abs", [value], name=f"{value.name}/abs")
        (top,) = edit.insert_last(graph, "ReduceMax", [size], {"keepdims": 0}, name=f"{value.name}{_SUFFIX}")
        top.type, top.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        graph.outputs.append(top)
