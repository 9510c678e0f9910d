"""A bound on a build's memory: what its steps take at the most, and what the bound leaves for activations."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import onnx_ir as ir

from leptonc.backends.traits import traits_of
from leptonc.calibrate.stages import Stage, linear_stages, stages
from leptonc.errors import InputError
from leptonc.formats import FORMATS
from leptonc.ir.structure import Linear, layer_of, linears, lookups
from runtime_edge.process import resident

if TYPE_CHECKING:
    from leptonc.frontend.captured import Captured
    from leptonc.variant import VariantPlan

ACTIVATIONS = 5 * 10**8  # bytes that calibration keeps in memory where nothing is asked for; others wait on disk
# What was measured, with some room (docs/measured/build.md). Temporaries of a step, whatever the model:
WRITING, CALIBRATING, CHECKING = 15 * 10**7, 25 * 10**7, 33 * 10**7
SQUARES = 40  # bytes for each product of two inputs of a layer: ten sums, factors and copies of them in float32
SPREAD = 3 * 10**7  # what is in memory before the steps differs by it from run to run


class Taken(Protocol):
    """What takes memory: see `leptonc.build.step.Need`."""

    @property
    def what(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def keeps_activations(self) -> bool: ...


class ModelSizes:
    """Sizes of a captured model, each reckoned once: bytes of float32, and what a token takes.

    Args:
        captured: The model.
        emitted: Whether it is an emitted graph, whose original was left behind.
    """

    def __init__(self, captured: Captured, *, emitted: bool = False) -> None:
        self.captured, self.emitted = captured, emitted
        graphs = captured.graphs.values()
        self._sizes = {name: _bytes(value) for graph in graphs for name, value in graph.graph.initializers.items()}

    @cached_property
    def largest(self) -> int:
        """Bytes of the largest weight."""
        return max(self._sizes.values(), default=0)

    @cached_property
    def whole(self) -> int:
        """Bytes of all weights."""
        return sum(self._sizes.values())

    @cached_property
    def tables(self) -> int:
        """Bytes of the tables of embeddings."""
        tables = [table for graph in self.captured.graphs.values() for table in lookups(graph)]
        return sum(self._sizes[str(value.name)] for value in tables if value is not None and value.name in self._sizes)

    @property
    def original(self) -> int:
        """Bytes of the original while it runs: all of an encoder's, and none of a decoder's, which runs by layers."""
        return 0 if self.captured.interface.writes_text or self.emitted else self.whole

    @cached_property
    def layer(self) -> int:
        """Bytes that calibrating the largest stage takes: its weights, and the moments of what they read."""
        graphs = self.captured.graphs.values()
        return max(self._stage(stage) for graph in graphs for stage in linear_stages(graph, outside=True))

    @cached_property
    def linears(self) -> list[Linear]:
        """The linear layers of all parts."""
        return [linear for graph in self.captured.graphs.values() for linear in linears(graph)]

    @cached_property
    def multiplications(self) -> int:
        """Multiply-adds of linear layers for a token, a head's among them; as many as they have weights."""
        return sum(math.prod(linear.shape) for linear in self.linears)

    @cached_property
    def layers(self) -> int:
        """Stages that walks over a text take one after the other."""
        return sum(len(stages(graph)) for graph in self.captured.graphs.values())

    @cached_property
    def head(self) -> int:
        """Multiply-adds for a token of linear layers that are in no layer."""
        return sum(math.prod(linear.shape) for linear in self.linears if not layer_of(linear.path))

    @cached_property
    def inputs(self) -> list[int]:
        """Widths of the values that linear layers read, each once."""
        return list({linear.x: linear.shape[1] for linear in self.linears}.values())

    @cached_property
    def squares(self) -> int:
        """Numbers of the second moments of all these values."""
        return sum(width**2 for width in self.inputs)

    @cached_property
    def cubes(self) -> int:
        """Multiply-adds that solving with all these moments takes, but for a factor."""
        return sum(width**3 for width in self.inputs)

    @cached_property
    def solved(self) -> int:
        """Multiply-adds of products of all weights with the moments of what they read."""
        return sum(rows * width**2 for rows, width in (linear.shape for linear in self.linears))

    def stored(self, plan: VariantPlan) -> float:
        """Returns about how many bytes of weights a variant of the model has.

        Embeddings' tables have a backend's least bits, as heads do that are tied to them.
        """
        least, bits = traits_of(plan.target).table_bits, _bits(plan.scheme)
        if least:
            weights, tables = (self.whole - self.tables) * bits, self.tables * max(bits, least)
            return max(plan.budget or 0, (weights + tables) / 32)
        bits = max(bits, _bits(plan.embeddings or "int4"))
        if plan.prefill is not None:
            bits += _bits("int8") * (2 if plan.prefill == "shared" else 1)
        return self.whole * bits / 32 if plan.budget is None else max(plan.budget, self.whole * bits / 32)

    def _stage(self, stage: Stage) -> int:
        read = {str(value.name) for node in stage.nodes for value in node.inputs if value is not None}
        inputs = [linear.shape[1] for group in stage.linears.values() for linear in group]
        moments = SQUARES * max(inputs, default=0) ** 2
        return CALIBRATING + moments + 2 * sum(self._sizes.get(name, 0) for name in read)


def room_for_activations(bound_gb: float | None, needs: Iterable[Taken]) -> int:
    """Returns how many bytes of activations a build may keep in memory, so that all of it stays within a bound.

    Args:
        bound_gb: Gigabytes (10^9 bytes) that the process may take. Default: no bound.
        needs: What the build's steps take.

    Raises:
        InputError: A step takes more than there is.
    """
    if bound_gb is None:
        return ACTIVATIONS
    largest = max(needs := list(needs), key=lambda need: need.bytes)
    taken, bound = resident() or 0, int(bound_gb * 1e9)
    if taken + largest.bytes > bound:
        least = math.ceil((taken + largest.bytes + SPREAD) / 1e8) / 10
        raise InputError(
            f"expected at least {least:g} GB for this model, found --memory-gb {bound_gb:g}: {taken / 1e9:.2f} GB are "
            f"taken before anything is built, and {largest.what} takes {largest.bytes / 1e9:.2f}",
            hint=f"--memory-gb {least:g}" + (", or --no-check" if largest.what == "the check" else ""),
        )
    return bound - taken - max((need.bytes for need in needs if need.keeps_activations), default=0)


def bytes_of(model: ir.Model) -> int:
    """Returns the bytes of a graph's weights, in their own formats."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def _bits(scheme: str) -> int:
    """Of a weight, and its part of a scale where it has one."""
    return FORMATS[scheme].bits + FORMATS[scheme].scaled


def _bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else 4 * value.const_value.size
