"""What the inputs and outputs of a graph are for, as data that the graph carries.

A frontend describes a graph once (`describe`). Steps and passes ask by role (`token_ids`), never by a value's name.
The description is not in a graph's file: a reader of the file describes the graph again.
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
    """Describes a captured graph: which part it is, and the roles of its inputs and outputs. Its clones carry that too.

    Args:
        model: The graph.
        name: The part's name.
        inputs: Ports of the inputs that are no state's. Where a size is a name here and a number in the graph, the
            number counts.
        outputs: Ports of the outputs that are no state's.
    """
    model.graph.meta[_PART] = Part(name=name, inputs=tuple(inputs), outputs=tuple(outputs))


def part_of(model: ir.Model) -> Part:
    """Returns the inputs, outputs and states of a graph of the dialect, with their sizes.

    Raises:
        ValueError: The graph was not described.
    """
    graph = model.graph
    described = _described(graph)
    if described is None:
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
        name=described.name, states=tuple(states),
        inputs=tuple(_sized(port, values[port.name]) for port in described.inputs),
        outputs=tuple(_sized(port, values[port.name]) for port in described.outputs),
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
    """Adds an input that the graph's part does not have, as lowerings do, and returns it."""
    value = ir.Value(name=port.name, shape=ir.Shape(list(port.dims)), type=ir.TensorType(_TYPES[port.dtype]))
    graph.inputs.append(value)
    graph.meta[_ADDED] = (*added(graph), port)
    return value


def added(graph: ir.Graph) -> tuple[Port, ...]:
    """Returns the inputs that lowerings added to a graph."""
    ports: tuple[Port, ...] = graph.meta.get(_ADDED, ())
    return ports


def input_of(graph: ir.Graph, role: str) -> str | None:
    """Returns the name of a graph's input of a role. None: there is none, or the graph was not described."""
    part = _described(graph)
    port = None if part is None else part.input(role)
    return None if port is None else port.name


def output_of(graph: ir.Graph, role: str) -> str | None:
    """Returns the name of a graph's output of a role. None: there is none, or the graph was not described."""
    part = _described(graph)
    port = None if part is None else part.output(role)
    return None if port is None else port.name


def _described(graph: ir.Graph) -> Part | None:
    """Returns the part as it was described, without its states; None where it was not described."""
    part: Part | None = graph.meta.get(_PART)
    return part


def text_values(token_ids: NDArray[np.int64], *, past: int = 0, skipped: int = 0) -> dict[str, NDArray[Any]]:
    """Returns the values of inputs for one text, by role.

    Args:
        token_ids: int64 [batch, length], without padding.
        past: Number of tokens that states hold. Default: none.
        skipped: Tokens of a prompt at the start, which a pooling leaves out. Default: none.
    """
    shape, length = token_ids.shape, token_ids.shape[1]
    places = np.broadcast_to(np.arange(length), shape)
    return {
        roles.TOKEN_IDS: token_ids, roles.PAST_LENGTH: np.full(len(token_ids), past, np.int64),
        roles.POSITIONS: (places + past).astype(np.int64), roles.ATTENTION_MASK: np.ones_like(token_ids),
        roles.SEGMENTS: np.zeros_like(token_ids), roles.POOLING_MASK: (places >= skipped).astype(np.int64),
    }  # fmt: skip


def inputs_of(model: ir.Model, token_ids: NDArray[np.int64], skipped: int = 0) -> dict[str, NDArray[Any]]:
    """Returns a captured graph's inputs for one text. Its states are empty, and just large enough.

    Args:
        model: The graph.
        token_ids: int64 [length].
        skipped: Tokens of a prompt at the start, which an encoder's pooling leaves out. Default: none.

    Raises:
        ValueError: The graph has an input that a text does not give.
    """
    part, text = _described(model.graph), text_values(token_ids[None], skipped=skipped)
    names = {} if part is None else {port.name: port.role for port in part.inputs}
    inputs: dict[str, NDArray[Any]] = {}
    for value in model.graph.inputs:
        name = str(value.name)
        if names.get(name) in text:
            inputs[name] = text[names[name]]
        elif name not in names and value.shape is not None and len(value.shape) == 4:  # of a key/value state
            heads, width = int(value.shape[1]), int(value.shape[3])  # type: ignore[arg-type]
            inputs[name] = _empty((1, heads, len(token_ids), width))
        else:
            raise ValueError(f"a text gives no input {name}")
    return inputs


@lru_cache(maxsize=8)
def _empty(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Returns zeros that all texts and layers share, for states that nothing is written to."""
    zeros = np.zeros(shape, np.float32)
    zeros.setflags(write=False)
    return zeros
