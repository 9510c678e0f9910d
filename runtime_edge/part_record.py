"""How a manifest describes a part of a model: what its graphs take, what they give, and what they keep between runs.

A model is a program of parts, in the order that they run. A part is an interface, as data: each input and output is a
`Port` that says what it is for (its role), and each state is a set of buffers that a graph reads and writes. A variant
has graphs for a part; all graphs of a part share its interface and its states, so that one may go on where another
ended. A port with a `source` is fed by an output of an earlier part.

Names of sizes ("batch", "length") stand for numbers that are known when a graph runs. Equal names are equal numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from runtime_edge.records import Name, Positive, Record, require, unique

# Roles: what a value is for. A task may have others of its own; what backends and steps do by a role, they do by these.
TOKEN_IDS = "token_ids"  # int64 [batch, length]
PAST_LENGTH = "past_length"  # int64 [batch]: tokens that the states hold already
POSITIONS = "positions"  # int64 [batch, length]: where each token stands in the text
ATTENTION_MASK = "attention_mask"  # int64 [batch, length]: 1 for a token, 0 for padding
SEGMENTS = "segments"  # int64 [batch, length]: which text of a pair each token belongs to
POOLING_MASK = "pooling_mask"  # int64 [batch, length]: the attention mask without the tokens of a prompt
HIDDEN_STATES = "hidden_states"  # float32 [batch, length, width]
NEXT_TOKEN_LOGITS = "next_token_logits"  # float32 [batch, positions, vocabulary]
EMBEDDINGS = "embeddings"  # float32 [batch, width]: one vector a text
LABEL_LOGITS = "label_logits"  # float32 [batch, labels]
LAST_POSITIONS = "last_positions"  # int64 [1]: how many positions, the last ones, the logits are of
CHOSEN_POSITIONS = "chosen_positions"  # int64 [n]: the positions that the logits are of

KEY_VALUE = "key_value"  # of states: keys and values of attention, a row a token
STATE_KINDS = (KEY_VALUE,)

BATCH, LENGTH, CAPACITY = "batch", "length", "capacity"
DTYPES = ("float32", "float16", "bfloat16", "int64", "int8")

Dims = Annotated[tuple[Positive | Name, ...], Meta(max_length=8)]


class Port(Record, frozen=True, kw_only=True):
    """An input or an output of a part.

    Attributes:
        name: Its name in the graphs.
        role: What it is for: `token_ids`, `past_length`, `attention_mask`, `segments`, `pooling_mask`,
            `hidden_states`, `next_token_logits`, `embeddings`, `label_logits`; a task may have others.
        dtype: The type of its elements.
        dims: Its shape: numbers, or names of sizes that a run gives. Equal names are equal numbers.
        source: `part/output` where another part's output feeds it. Default: the caller gives it.
    """

    name: Name
    role: Name
    dtype: str
    dims: Dims
    source: Name | None = None


class Buffer(Record, frozen=True, kw_only=True):
    """A tensor of a state.

    Attributes:
        input: The input that a graph reads.
        output: The output that it writes, which may be the same memory.
        dtype: The type of its elements.
        dims: Its shape.
    """

    input: Name
    output: Name
    dtype: str
    dims: Dims


class State(Record, frozen=True, kw_only=True):
    """What a layer keeps from run to run.

    Attributes:
        kind: `key_value`: keys and values of attention.
        buffers: Of `key_value` the keys and the values, [batch, heads, capacity, width].
        window: How many tokens attention looks back. Default: all.
    """

    kind: Name
    buffers: Annotated[tuple[Buffer, ...], Meta(max_length=8)]
    window: Positive | None = None


class Part(Record, frozen=True, kw_only=True):
    """A part of a model: an interface without a graph. All graphs of a part take, give and keep the same.

    Attributes:
        name: Its name.
        inputs: What its graphs take, in order.
        outputs: What they give, in order.
        states: What it keeps between runs.
    """

    name: Name
    inputs: Annotated[tuple[Port, ...], Meta(max_length=64)]
    outputs: Annotated[tuple[Port, ...], Meta(max_length=64)]
    states: Annotated[tuple[State, ...], Meta(max_length=2**12)] = ()

    def input(self, role: str) -> Port | None:
        """Returns the first input of a role; nothing where there is none."""
        return next((port for port in self.inputs if port.role == role), None)

    def output(self, role: str) -> Port | None:
        """Returns the first output of a role; nothing where there is none."""
        return next((port for port in self.outputs if port.role == role), None)

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """All buffers of the states, in order."""
        return tuple(buffer for state in self.states for buffer in state.buffers)


def check_parts(parts: Sequence[Part]) -> None:
    """Raises ArtifactError where parts contradict themselves or each other."""
    require(bool(parts), "parts: expected at least one, found none")
    unique("parts", (part.name for part in parts))
    made: dict[str, Port] = {}
    for part in parts:
        name, where = part.name, f"parts.{part.name}"
        require(bool(name) and "/" not in name, f"parts: expected names without a slash, found {name!r}")
        require(bool(part.outputs), f"{where}: outputs: expected at least one, found none")
        unique(f"{where}: inputs", [*(p.name for p in part.inputs), *(b.input for b in part.buffers)])
        unique(f"{where}: outputs", [*(p.name for p in part.outputs), *(b.output for b in part.buffers)])
        for dtype in (*(p.dtype for p in (*part.inputs, *part.outputs)), *(b.dtype for b in part.buffers)):
            require(dtype in DTYPES, f"{where}: dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")
        for state in part.states:
            _check_state(state, where)
        for port in part.outputs:
            require(port.source is None, f"{where}: {port.name}: expected no source, found {port.source!r}")
        for port in part.inputs:
            fed = port if port.source is None else made.get(port.source)
            require(
                fed is not None and (fed.dtype, len(fed.dims)) == (port.dtype, len(port.dims)),
                f"{where}: {port.name}: expected an output of an earlier part, of its dtype and rank, found "
                f"{port.source!r}",
            )
        made |= {f"{name}/{port.name}": port for port in part.outputs}


def _check_state(state: State, where: str) -> None:
    require(
        state.kind in STATE_KINDS,
        f"{where}: states: expected a kind among {', '.join(STATE_KINDS)}, found {state.kind!r}",
    )
    ok = len(state.buffers) == 2 and all(
        len(buffer.dims) == 4 and isinstance(buffer.dims[1], int) and isinstance(buffer.dims[3], int)
        for buffer in state.buffers
    )
    require(
        ok and state.buffers[0].dims[1] == state.buffers[1].dims[1],
        f"{where}: states: expected keys and values [batch, heads, capacity, width] of as many heads, found others",
    )
