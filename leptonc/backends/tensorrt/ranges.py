"""How large the activations of a graph get on real text, measured by running it on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from leptonc.ir import edit
from leptonc.ir.types import fill_types
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

    A copy of the graph gets `ReduceMax(Abs(x))` behind every float value and nothing else as output: the activations
    themselves are never all in memory.

    Args:
        model: A graph that ONNX Runtime runs; it is not changed.
        batches: Inputs of each run, by name.
        folder: Where a temporary copy of the weights may lie.

    Raises:
        FloatingPointError: An activation is not a number.
    """
    from leptonc.backends.tensorrt.execute import open_session

    probed = model.clone()
    values = [v for v in activations(probed.graph) if v.dtype == ir.DataType.FLOAT]
    probed.graph.outputs.clear()
    for value in values:
        (size,) = edit.insert_last(probed.graph, "Abs", [value], name=f"{value.name}/abs")
        (top,) = edit.insert_last(probed.graph, "ReduceMax", [size], {"keepdims": 0}, name=f"{value.name}{_SUFFIX}")
        top.type, top.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        probed.graph.outputs.append(top)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".ranges.") as place:
        session = open_session(probed, Path(place))
        names = [output.name.removesuffix(_SUFFIX) for output in session.get_outputs()]
        for batch in batches:
            for name, top in zip(names, session.run(None, dict(batch)), strict=True):
                found[name] = max(found.get(name, 0.0), float(top))
                if not np.isfinite(top):
                    raise FloatingPointError(f"{name}: the largest activation is {top}")
        del session
    return found
