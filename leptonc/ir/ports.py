"""What the inputs and outputs of a graph are for, as data that the graph carries.

A frontend says it once (`describe`). Steps and passes ask by role (`token_ids`), never by the name that a value has.
What is carried is not in the file of a graph: whoever reads one describes it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.ir.dialect import attribute
from runtime_edge import part_record as roles
from runtime_edge.part_record import Buffer, Dims, Part, Port, State

_PART, _ADDED = "lepton.part", "lepton.added"
_TYPES = {"int64": ir.DataType.INT64}


def describe(model: ir.Model, name: str, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
    """Says which part a captured graph is, and what its inputs and outputs are for; its clones carry it too.

    Args:
        model: The graph.
        name: The part's name.
        inputs: A port for each input that is no state's, by name. A size that is a name here and a number in the graph
            is the number.
        outputs: The same of outputs.
    """
    model.graph.meta[_PART] = Part(name=name, inputs=tuple(inputs), outputs=tuple(outputs))


def part_of(model: ir.Model) -> Part:
    """Returns what a graph of the dialect takes, gives and keeps, at the sizes that it has now.

    Raises:
        ValueError: Nobody described the graph.
    """
    graph = model.graph
    said = _described(graph)
    if said is None:
        raise ValueError("the graph carries no description of its inputs")
    values = {str(value.name): value for value in (*graph.inputs, *graph.outputs)}
    states = []
    for node in graph:
        if node.op_type == "CachedAttention":
            pairs = zip(node.inputs[3:5], node.outputs[1:3], strict=True)
            buffers = tuple(_buffer(past, present) for past, present in pairs)
            window = int(attribute(node, "window", 0)) or None
            states.append(State(kind=roles.KEY_VALUE, buffers=buffers, window=window))
    return Part(
        name=said.name, states=tuple(states),
        inputs=tuple(_sized(port, values[port.name]) for port in said.inputs),
        outputs=tuple(_sized(port, values[port.name]) for port in said.outputs),
    )  # fmt: skip


def _sized(port: Port, value: ir.Value) -> Port:
    return msgspec.structs.replace(port, dims=_dims(value, port.dims))


def _buffer(past: ir.Value | None, present: ir.Value) -> Buffer:
    assert past is not None  # the dialect's rule
    dims = _dims(past, (roles.BATCH, "heads", roles.CAPACITY, "width"))
    return Buffer(input=str(past.name), output=str(present.name), dtype="float32", dims=dims)


def _dims(value: ir.Value, names: Dims) -> Dims:
    """The numbers of a shape, and names where it leaves a size open."""
    sizes = tuple(value.shape or ())
    return tuple(size if isinstance(size, int) else name for size, name in zip(sizes, names, strict=True))


def add_input(graph: ir.Graph, port: Port) -> ir.Value:
    """Gives a graph an input that its part does not have, as lowerings do; returns it."""
    value = ir.Value(name=port.name, shape=ir.Shape(list(port.dims)), type=ir.TensorType(_TYPES[port.dtype]))
    graph.inputs.append(value)
    graph.meta[_ADDED] = (*added(graph), port)
    return value


def added(graph: ir.Graph) -> tuple[Port, ...]:
    """Returns the inputs that lowerings gave a graph."""
    ports: tuple[Port, ...] = graph.meta.get(_ADDED, ())
    return ports


def input_of(graph: ir.Graph, role: str) -> str | None:
    """Returns the name of a graph's input of a role; nothing where it has none, or where nobody described it."""
    said = _described(graph)
    port = None if said is None else said.input(role)
    return None if port is None else port.name


def output_of(graph: ir.Graph, role: str) -> str | None:
    """Returns the name of a graph's output of a role; nothing where it has none, or where nobody described it."""
    said = _described(graph)
    port = None if said is None else said.output(role)
    return None if port is None else port.name


def _described(graph: ir.Graph) -> Part | None:
    """The part as it was described, its states left out."""
    said: Part | None = graph.meta.get(_PART)
    return said


def text_values(token_ids: NDArray[np.int64], *, past: int = 0, skipped: int = 0) -> dict[str, NDArray[Any]]:
    """Returns what one text gives, by role.

    Args:
        token_ids: int64 [batch, length], without padding.
        past: Tokens that states hold already.
        skipped: Tokens at the start, a prompt's, that a pooling leaves out.
    """
    shape, length = token_ids.shape, token_ids.shape[1]
    places = np.broadcast_to(np.arange(length), shape)
    return {
        roles.TOKEN_IDS: token_ids, roles.PAST_LENGTH: np.full(len(token_ids), past, np.int64),
        roles.POSITIONS: (places + past).astype(np.int64), roles.ATTENTION_MASK: np.ones_like(token_ids),
        roles.SEGMENTS: np.zeros_like(token_ids), roles.POOLING_MASK: (places >= skipped).astype(np.int64),
    }  # fmt: skip


def inputs_of(model: ir.Model, token_ids: NDArray[np.int64], skipped: int = 0) -> dict[str, NDArray[Any]]:
    """Returns a captured graph's inputs for one text; its states are empty and just large enough.

    Args:
        model: The graph.
        token_ids: int64 [length].
        skipped: Tokens at the start, a prompt's, that an encoder's pooling leaves out.

    Raises:
        ValueError: The graph has an input that a text does not give.
    """
    said, given = _described(model.graph), text_values(token_ids[None], skipped=skipped)
    names = {} if said is None else {port.name: port.role for port in said.inputs}
    found: dict[str, NDArray[Any]] = {}
    for value in model.graph.inputs:
        name = str(value.name)
        if names.get(name) in given:
            found[name] = given[names[name]]
        elif name not in names and value.shape is not None and len(value.shape) == 4:  # of a key/value state
            heads, width = int(value.shape[1]), int(value.shape[3])  # type: ignore[arg-type]
            found[name] = _empty((1, heads, len(token_ids), width))
        else:
            raise ValueError(f"a text gives no input {name}")
    return found


@lru_cache(maxsize=8)
def _empty(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Zeros that all texts and layers share: a state that nothing was written to."""
    found = np.zeros(shape, np.float32)
    found.setflags(write=False)
    return found
