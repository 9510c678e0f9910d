"""Measures the largest magnitudes of a graph's activations on real text, by running it on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from leptonc.calibrate.observe import observe
from leptonc.calibrate.stage_session import Values
from leptonc.errors import OVERFLOWS, InputError
from leptonc.ir import edit
from leptonc.ir.dialect import module_of
from leptonc.ir.types import fill_types
from leptonc.passes.base import Pass

Batch = Mapping[str, np.ndarray[Any, Any]]


class MeasureRanges(Pass):
    """Runs the graph on a text and keeps the largest magnitude of each activation; the graph stays as it is.

    It comes before weights are quantized: else they would be quantized twice, for this run and when they are written.
    Activations differ by far less than the headroom above them.

    Args:
        as_run: Called with the graph; returns it, or a copy that computes the same and is cheaper to run.
        inputs: Called with the result; returns the inputs of each run, by name.
        scratch: Directory for a temporary copy of the weights.
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
        self.magnitudes: dict[str, float] = {}  # by value name

    def run(self, model: ir.Model) -> int:
        fill_types(model.graph)
        run = self.as_run(model)
        self.magnitudes = largest(run, self.inputs(run), self.scratch)
        return 0


def activations(graph: ir.Graph) -> list[ir.Value]:
    """Returns the values that nodes compute from the graph's inputs; values of weights alone are no activations."""
    computed: dict[ir.Value, None] = dict.fromkeys(graph.inputs)
    for node in graph:
        if any(value in computed for value in node.inputs if value is not None):
            computed.update(dict.fromkeys(node.outputs))
    return [value for value in computed if value.producer() is not None]


def largest(model: ir.Model, batches: Sequence[Batch], folder: Path) -> dict[str, float]:
    """Runs `model`, a layer at a time, and returns the largest magnitude of every float activation, by value name.

    Args:
        model: A graph that ONNX Runtime runs; values get their types, nothing else changes.
        batches: Inputs of each run, by name.
        folder: Directory for temporary files.

    Raises:
        InputError: An activation is not finite.
    """
    fill_types(model.graph)
    values = {str(v.name): v for v in activations(model.graph) if v.name and v.dtype == ir.DataType.FLOAT}
    magnitudes: dict[str, float] = {}

    def see(outputs: Values) -> None:
        for name in [name for name in values if name in outputs]:  # in the graph's order: the error names the first
            top = float(np.abs(outputs[name]).max(initial=0))
            if not np.isfinite(top):
                module = module_of(edit.producer(values[name]))  # type: ignore[arg-type]
                raise InputError(
                    f"expected finite activations on the text that ranges are measured on, found {top} in "
                    f"{module or name}",
                    hint=OVERFLOWS,
                )
            magnitudes[name] = max(magnitudes.get(name, 0.0), top)

    observe(model, batches, set(values), see, folder)
    return magnitudes
