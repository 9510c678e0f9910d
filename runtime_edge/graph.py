"""What an ONNX graph of an artifact may do, and whether it is the graph that the manifest describes.

It is an allow-list, not a list of what is forbidden: ONNX and ONNX Runtime have some 400 operators, more with each
release, among them loops that never end (`Loop`, `Scan`), nests (`If`, functions), and custom ones of any library.
Our lowerings use the few below, without subgraphs and without functions, so that the time of a graph is bounded by its
size and its inputs. Names, types and known dimensions of inputs and outputs are compared with the manifest's before
a session opens: a backend binds memory by them.

Field numbers: onnx.proto of ONNX 1.21 (IR 13). `externaldata` has checked the wire format of every message before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime_edge.divisions import Divisions
from runtime_edge.errors import ArtifactError
from runtime_edge.manifest import Graph as GraphRecord
from runtime_edge.manifest import Manifest
from runtime_edge.part_record import KEY_VALUE, Part
from runtime_edge.wire import BYTES, Wire, mapped_graph

MAX_NODES = 200_000  # SmolLM2-135M has 400
MAX_EXPANDED = 2**28  # elements that a shape in the graph itself may ask for: a causal mask of 16,384 positions

# Operators of ONNX that a captured graph or a lowering may have: those of the compiler's dialect.
STANDARD = frozenset(  # as text: one word an operator
    """
    Abs Add And Attention Cast Clip Concat Constant ConstantOfShape Cos CumSum DequantizeLinear Div Equal Erf
    Exp Expand Floor Gather GatherElements Gelu Greater GreaterOrEqual Identity LayerNormalization Less
    LessOrEqual Log MatMul Max Min Mod Mul Neg Not Or Pow QuantizeLinear RMSNormalization Range Reciprocal ReduceL2
    ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape RotaryEmbedding Round Shape Sigmoid Sign Sin Slice Softmax
    Softplus Split Sqrt Squeeze Sub Swish Tanh TensorScatter Tile TopK Transpose Trilu Unsqueeze Where
    """.split()  # noqa: SIM905
)
# Operators of ONNX Runtime and of ours that lowerings put in the place of others.
CONTRIB = frozenset(
    """
    FusedMatMul GatherBlockQuantized GroupQueryAttention MatMulIntegerToFloat MatMulNBits QuantizeLinear
    QuickGelu SkipSimplifiedLayerNormalization
    """.split()  # noqa: SIM905
)
EARLIER = frozenset({"MultiHeadAttention", "SkipLayerNormalization"})  # of formats 1 to 5
OPERATORS: Mapping[str, frozenset[str]] = {"": STANDARD, "ai.onnx": STANDARD, "com.microsoft": CONTRIB | EARLIER}
DTYPES = {1: "float32", 3: "int8", 7: "int64", 10: "float16", 16: "bfloat16"}  # TensorProto.DataType
ORT_CACHE_DTYPES = {"float32": 4, "float16": 2, "int8": 1}  # those that numpy has: the runtime owns the buffers
MAX_TOKEN_BYTES = 2**26  # of a cache, for one token: large models have 2**20

_FLOAT, _INT64 = 1, 7
_TYPED = ("Cast", "Constant", "ConstantOfShape")  # an attribute tells the type of the output
# Inputs that say how large an output is, of operators that can make much of little.
_SHAPES = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}
_REBUILD = "it was not made by this toolchain, or was changed: build it again with `leptonc build`"

Dims = tuple[int | None, ...]


@dataclass(frozen=True)
class Value:
    """An input or an output: its element type, and its dimensions, None where the graph leaves one open."""

    dtype: str
    dims: Dims | None


@dataclass(frozen=True)
class Graph:
    """The outside of a graph."""

    inputs: Mapping[str, Value]
    outputs: Mapping[str, Value]


def check_graph(path: Path, manifest: Manifest, record: GraphRecord) -> None:
    """Checks a graph's operators, and against the manifest what it takes and gives.

    Args:
        path: The `.onnx` file; `externaldata.external_data` went over it.
        manifest: The artifact's.
        record: The graph's. Engines of TensorRT check inputs and outputs as they open.

    Raises:
        ArtifactError: An operator that no artifact has, a subgraph or a function; inputs, outputs, types or dimensions
            that are not what the manifest says.
    """
    name = record.file
    graph = read_graph(path, name)
    if record.engine is not None:
        return
    part = next(part for part in manifest.parts if part.name == record.part)
    _check_states(part, name)
    past = {buffer.input: _value(buffer.dtype, buffer.dims) for buffer in part.buffers}
    present = {buffer.output: _value(buffer.dtype, buffer.dims) for buffer in part.buffers}
    inputs = {port.name: _value(port.dtype, port.dims) for port in (*part.inputs, *record.added)} | past
    outputs = {port.name: _value(port.dtype, port.dims) for port in part.outputs} | present
    for what, expected, actual in (("inputs", inputs, graph.inputs), ("outputs", outputs, graph.outputs)):
        if expected.keys() != actual.keys():
            missing, extra = sorted(expected.keys() - actual.keys()), sorted(actual.keys() - expected.keys())
            raise ArtifactError(
                f"{name}: expected the {what} that its part has, found {len(missing)} missing {missing[:3]} and "
                f"{len(extra)} unknown {extra[:3]}",
                hint=_REBUILD,
            )
        for key, value in expected.items():
            if not _agree(value, actual[key]):
                raise ArtifactError(
                    f"{name}: {key}: expected {_described(value)} as the manifest says, found "
                    f"{_described(actual[key])}",
                    hint=_REBUILD,
                )


def read_graph(path: Path, name: str) -> Graph:
    """Walks a graph and returns its outside (raises `ArtifactError` for what no artifact has)."""
    with mapped_graph(path, name) as wire:
        return _Walker(wire).model(0, len(wire.data))


class _Walker:
    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.nodes = 0
        self.constants: dict[str, list[int]] = {}
        self.divisions = Divisions()
        self.shapes: list[tuple[str, str]] = []  # operator and the name of its shape

    def model(self, start: int, end: int) -> Graph:
        graphs = []
        for number, first, last in self.messages(start, end):
            if number == 7:
                graphs.append((first, last))
            elif number in (20, 25):
                raise self.fault("a graph alone", "functions" if number == 25 else "a training")
        if len(graphs) != 1:
            raise self.fault("one graph", str(len(graphs)))
        return self.graph(*graphs[0])

    def graph(self, start: int, end: int) -> Graph:
        values: dict[int, dict[str, Value]] = {11: {}, 12: {}}
        initialized = set()
        for number, first, last in self.messages(start, end):
            if number == 1:
                self.node(first, last)
            elif number == 5:
                key, code, numbers = self.tensor(first, last)
                initialized.add(key)
                self.divisions.value(key, code)
                self.constant(key, numbers)
            elif number in values:
                key, value = self.value(first, last)
                if key in values[number]:
                    raise self.fault("each input and output once", f"{key[:80]!r} twice")
                values[number][key] = value
                if number == 11:
                    self.divisions.value(key, next((code for code, name in DTYPES.items() if name == value.dtype), 0))
        for operator, key in self.shapes:
            numbers = self.constants.get(key, [])
            count = 1
            for size in numbers:
                count = count * max(1, size) if count <= MAX_EXPANDED else count
            if count > MAX_EXPANDED:
                raise self.fault(f"at most {MAX_EXPANDED} elements of a shape in the graph", f"{operator} of more")
        for dividend, divisor in self.divisions.of_integers():
            if min(self.constants.get(divisor) or [0]) < 1:
                raise self.fault("integers divided by a positive constant", f"{dividend[:80]!r} by {divisor[:80]!r}")
        inputs = {key: value for key, value in values[11].items() if key not in initialized}
        return Graph(inputs, values[12])

    def node(self, start: int, end: int) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self.fault(f"at most {MAX_NODES} operators", "more")
        inputs: list[str] = []
        outputs: list[str] = []
        texts = {4: "", 7: ""}
        attributes = []
        for number, first, last in self.messages(start, end):
            if number == 1:
                inputs.append(self.wire.text(first, last, "names"))
            elif number == 2:
                outputs.append(self.wire.text(first, last, "names"))
            elif number in texts:
                texts[number] = self.wire.text(first, last, "names")
            elif number == 5:
                attributes.append((first, last))
        operator, domain = texts[4], texts[7]
        if operator not in OPERATORS.get(domain, ()):
            label = f"{domain}.{operator}" if domain else operator
            raise ArtifactError(
                f"{self.wire.name}: expected operators that lowerings make, found {label[:80]!r}",
                hint="control flow, and operators that no artifact of this toolchain has, are refused",
            )
        types = [self.attribute(operator, outputs, first, last) for first, last in attributes]
        self.divisions.node(operator, inputs, outputs, max(types, default=0))
        if operator in _SHAPES and len(inputs) > _SHAPES[operator]:
            self.shapes.append((operator, inputs[_SHAPES[operator]]))

    def attribute(self, operator: str, outputs: Sequence[str], start: int, end: int) -> int:
        """Notes the numbers of a constant, and returns the type of the output where the attribute tells it, else 0."""
        numbers: list[int] = []
        key, code = "", 0
        for number, _, first, last in self.wire.fields(start, end):
            if number in (6, 11):
                raise self.fault("operators without graphs in them", f"one in {operator}")
            if operator not in _TYPED or not outputs:
                continue
            if number == 1:
                key = self.wire.text(first, last, "names")
            elif number == 5:
                _, code, numbers = self.tensor(first, last)
            elif number in (2, 7):  # of floating point
                code = _FLOAT
            elif number in (3, 8):  # one number, or several
                numbers += self.integers(first, last)
        if operator == "Cast":
            return numbers[0] if key == "to" and numbers else 0
        if operator == "Constant":
            self.constant(outputs[0], numbers)
        return code or (_INT64 if numbers else 0)

    def constant(self, name: str, numbers: list[int]) -> None:
        if self.constants.setdefault(name, numbers) != numbers:
            raise self.fault("each constant once", f"{name[:80]!r} twice")

    def tensor(self, start: int, end: int) -> tuple[str, int, list[int]]:
        """Returns a tensor's name and type, and its numbers where they may be a shape: a few of int64."""
        dtype = 0
        numbers: list[int] = []
        key = ""
        for number, wire, first, last in self.wire.fields(start, end):
            if number == 2 and wire != BYTES:
                dtype = self.wire.varint(first, last)[0]
            elif number == 8:
                key = self.wire.text(first, last, "names")
            elif number == 7:
                numbers += self.integers(first, last)
            elif number == 9 and last - first <= 64:
                data = self.wire.data[first:last]
                numbers += [int.from_bytes(data[at : at + 8], "little", signed=True) for at in range(0, len(data), 8)]
        return key, dtype, numbers if dtype == _INT64 else []

    def integers(self, first: int, last: int) -> list[int]:
        """Numbers in their places one after the other: packed, or one alone."""
        values = []
        while first < last:
            value, first = self.wire.varint(first, last)
            values.append(_signed(value))
        return values

    def value(self, start: int, end: int) -> tuple[str, Value]:
        """Reads a ValueInfoProto."""
        key, dtype = "", ""
        dims: Dims | None = None
        for number, first, last in self.messages(start, end):
            if number == 1:
                key = self.wire.text(first, last, "names")
            elif number == 2:
                dtype, dims = self.type(first, last)
        return key, Value(dtype, dims)

    def type(self, start: int, end: int) -> tuple[str, Dims | None]:
        """Reads a TypeProto: anything but a tensor has no type here, and agrees with nothing."""
        dtype, dims = "no tensor", None
        for number, first, last in self.messages(start, end):
            if number != 1:
                continue
            for inner, wire, begin, stop in self.wire.fields(first, last):
                if inner == 1 and wire != BYTES:
                    code = self.wire.varint(begin, stop)[0]
                    dtype = DTYPES.get(code, f"type {code}")
                elif inner == 2 and wire == BYTES:
                    dims = tuple(self.dim(*extent) for field, *extent in self.messages(begin, stop) if field == 1)
        return dtype, dims

    def dim(self, start: int, end: int) -> int | None:
        size = None
        for number, wire, first, last in self.wire.fields(start, end):
            if number == 1 and wire != BYTES:
                size = _signed(self.wire.varint(first, last)[0])
        return size

    def messages(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        for number, wire, first, last in self.wire.fields(start, end):
            if wire == BYTES:
                yield number, first, last

    def fault(self, expected: str, actual: str) -> ArtifactError:
        error = self.wire.fault(expected, actual)
        error.hint = _REBUILD
        return error


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _check_states(part: Part, name: str) -> None:
    """Bounds what a token takes of states: the runtime owns their buffers."""
    unknown = [buffer.dtype for buffer in part.buffers if buffer.dtype not in ORT_CACHE_DTYPES]
    if unknown:
        raise ArtifactError(
            f"{name}: expected a cache of {', '.join(ORT_CACHE_DTYPES)} for ONNX Runtime, found {unknown[0]}",
            hint=_REBUILD,
        )
    size = 0
    for state in part.states:
        for buffer in state.buffers if state.kind == KEY_VALUE else ():
            _, heads, _, width = buffer.dims
            size += int(heads) * int(width) * ORT_CACHE_DTYPES[buffer.dtype]
    if size > MAX_TOKEN_BYTES:
        raise ArtifactError(
            f"{name}: expected states of at most {MAX_TOKEN_BYTES} bytes for a token, found {size}", hint=_REBUILD
        )


def _value(dtype: str, dims: Sequence[int | str]) -> Value:
    return Value(dtype, tuple(size if isinstance(size, int) else None for size in dims))


def _agree(expected: Value, actual: Value) -> bool:
    """Whether types are equal, and dimensions where both are known."""
    if expected.dtype != actual.dtype:
        return False
    if expected.dims is None or actual.dims is None:
        return True
    return len(expected.dims) == len(actual.dims) and all(
        wanted is None or size is None or wanted == size
        for wanted, size in zip(expected.dims, actual.dims, strict=True)
    )


def _described(value: Value) -> str:
    sizes = "of any shape" if value.dims is None else str([("?" if size is None else size) for size in value.dims])
    return f"{value.dtype} {sizes}"
