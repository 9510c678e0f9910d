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

_PORTS = "lepton.ports"


def describe(model: ir.Model, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
    """Says what a captured graph's inputs and outputs are for; the graph carries it, and so do its clones.

    Args:
        model: The graph.
        inputs: A port for each input that is no state's, by name. A size that is a name here and a number in the graph
            is the number.
        outputs: The same of outputs.
    """
    model.graph.meta[_PORTS] = (tuple(inputs), tuple(outputs))


def part_of(model: ir.Model) -> Part:
    """Returns what a graph of the dialect takes, gives and keeps, at the sizes that it has now.

    Raises:
        ValueError: Nobody described the graph.
    """
    graph = model.graph
    if _PORTS not in graph.meta:
        raise ValueError("the graph carries no description of its inputs")
    inputs, outputs = graph.meta[_PORTS]
    values = {str(value.name): value for value in (*graph.inputs, *graph.outputs)}
    states = []
    for node in graph:
        if node.op_type == "CachedAttention":
            pairs = zip(node.inputs[3:5], node.outputs[1:3], strict=True)
            buffers = tuple(_buffer(past, present) for past, present in pairs)
            window = int(attribute(node, "window", 0)) or None
            states.append(State(kind=roles.KEY_VALUE, buffers=buffers, window=window))
    return Part(
        inputs=tuple(_sized(port, values[port.name]) for port in inputs),
        outputs=tuple(_sized(port, values[port.name]) for port in outputs),
        states=tuple(states),
    )


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


def input_of(graph: ir.Graph, role: str) -> str | None:
    """Returns the name of a graph's input of a role; nothing where it has none, or where nobody described it."""
    return _name(_described(graph)[0], role)


def output_of(graph: ir.Graph, role: str) -> str | None:
    """Returns the name of a graph's output of a role; nothing where it has none, or where nobody described it."""
    return _name(_described(graph)[1], role)


def _described(graph: ir.Graph) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    found: tuple[tuple[Port, ...], tuple[Port, ...]] = graph.meta.get(_PORTS, ((), ()))
    return found


def _name(ports: Sequence[Port], role: str) -> str | None:
    return next((port.name for port in ports if port.role == role), None)


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
    given, names = text_values(token_ids[None], skipped=skipped), {p.name: p.role for p in _described(model.graph)[0]}
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
