"""The pass that quantizes the weights of linear layers and of the embedding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Mapping
from functools import cached_property, partial
from typing import Any

import numpy as np
import onnx_ir as ir

from leptonc.errors import InputError
from leptonc.ir import edit
from leptonc.ir.structure import Linear, linears, lookups
from leptonc.passes.base import Config, Pass
from leptonc.passes.quantize.blocks import Codes, Format, Quantized, dequantize, round_to_nearest
from leptonc.passes.quantize.channels import channel_codes
from leptonc.passes.quantize.methods import METHODS

# Chooses codes of linear layers by running the graph over a text; returns them by the name of the weight. The second
# argument returns the format of a layer, or None where its weights stay as they are.
Solve = Callable[[ir.Model, Callable[[Linear], Format | None]], Mapping[str, Codes]]
# Returns codes of some rows of a weight, float32 [n, in], for the step between the rows.
Some = Callable[[np.ndarray[Any, Any], int], Codes]
BLOCK_SIZES = (0, 16, 32, 64, 128, 256)
ROWS = 96  # rows of a weight, evenly spread, on which the error of rounding is measured
KEPT = 32  # bits of weights that stay as they are
RAISED_SIZE = 64  # block size of weights in 8 bits among weights in 4: smaller blocks gain nothing that shows
KEY = "lepton.quantized"
_FLOAT8_MAX = 448


@dataclasses.dataclass(frozen=True)
class LayerFormat:
    """The format of some linear layers, where it is not that of all others.

    Attributes:
        bits: 2, 4 or 8. 32: the weights stay as they are.
        block_size: As in `QuantizeWeightsConfig`.
        symmetric: As in `QuantizeWeightsConfig`.
        paths: Module paths of the layers.
    """

    bits: int
    block_size: int
    symmetric: bool
    paths: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class QuantizeWeightsConfig(Config):
    """How weights are stored.

    Attributes:
        bits: 2, 4 or 8.
        block_size: Weights along the input that share a scale: a power of two from 16 to 256. 0: an output channel.
            Unsigned blocks of an embedding are halved until they, and the bytes of zero points, fill its rows, because
            kernels look up such rows without dequantizing all of them.
        symmetric: Whether the zero point is the middle code, and not stored.
        signed: Whether codes are signed integers with scales above zero, as TensorRT takes them. They are symmetric
            then, and a layer that blocks do not divide keeps its weights.
        floating: Whether codes are float8 (E4M3, as OCP specifies it), with one scale above zero for an output channel.
            It goes with bits 8, block_size 0 and signed. Default: codes are integers.
        embeddings: Whether embedding tables, and a head tied to one, are quantized.
        method: Method that chooses codes. "rtn" is round to nearest. "gptq" uses the inputs of the layers; see
            `leptonc.passes.quantize.gptq`. "awq" uses them too, after `SmoothLinears` folded its scales.
        embedding_bits: Bits of embedding tables, and of a head tied to one. Default: `bits`, and 4 at least.
        layers: Formats of linear layers that differ. Default: none.
        channels: Module paths of linear layers whose weights are signed integers of 8 bits with one scale an output
            channel, for products with 8-bit activations; see `leptonc.passes.quantize.channels`. Default: none.
        half_scales: Whether scales are numbers that float16 holds, for backends that store them so.
        skip: Module paths, and parts of them, whose weights stay float32. Default: none.
    """

    bits: int = 4
    block_size: int = 32
    symmetric: bool = True
    signed: bool = False
    floating: bool = False
    embeddings: bool = True
    method: str = "rtn"
    embedding_bits: int = 0
    layers: tuple[LayerFormat, ...] = ()
    channels: tuple[str, ...] = ()
    half_scales: bool = False
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8) or self.embedding_bits not in (0, 4, 8):
            raise InputError(
                f"expected weights of 2, 4 or 8 bits and embeddings of 4 or 8, found {self.bits} and "
                f"{self.embedding_bits}"
            )
        for size in (self.block_size, *(layer.block_size for layer in self.layers)):
            if size not in BLOCK_SIZES:
                raise InputError(f"expected a block size of 16, 32, 64, 128 or 256, found {size}")
        if self.signed and not self.symmetric:
            raise InputError("expected symmetric weights for signed codes, found asymmetric ones")
        if self.floating and (self.bits, self.block_size, self.signed) != (8, 0, True):
            raise InputError("expected 8 signed bits and whole channels for float8 weights, found other settings")
        if self.method not in METHODS:
            raise InputError(f"expected a method among {', '.join(METHODS)}, found {self.method!r}")

    def form(self, columns: int, *, table: bool = False, path: str = "") -> Format:
        """Returns the format of a weight with so many inputs: an embedding's with `table`, or that of layer `path`."""
        if path in self.channels:
            return Format(8, columns, True, positive=True, paired=not self.signed)
        if table:
            return self._table(columns)
        own = self._own.get(path)
        if own is not None:
            return self._format(own.bits, own.block_size or columns, own.symmetric)
        return self._format(self.bits, self.block_size or columns, self.symmetric)

    def _table(self, columns: int) -> Format:
        bits = self.embedding_bits or max(4, self.bits)
        raised = bits == 8 > self.bits
        form = self.raised(columns) if raised else self._format(bits, self.block_size or columns, self.symmetric)
        if self.signed:
            return form
        smaller = (dataclasses.replace(form, size=size) for size in BLOCK_SIZES[:0:-1] if size <= form.size)
        return next((smaller_form for smaller_form in smaller if smaller_form.fills(columns)), form)

    def raised(self, columns: int) -> Format:
        """Returns the format of a weight of 8 bits among others of 4: symmetric, in blocks of `RAISED_SIZE` that fit.

        Signed codes have one block a channel.
        """
        return self._format(8, self._raised_size(columns) or columns, True)

    def raised_layers(self, columns: Mapping[str, int]) -> tuple[LayerFormat, ...]:
        """Returns the raised formats of linear layers, for the numbers of their inputs by path."""
        sizes = {path: self._raised_size(count) for path, count in columns.items()}
        return tuple(
            LayerFormat(8, size, True, tuple(path for path in sizes if sizes[path] == size))
            for size in sorted(set(sizes.values()))
        )

    def _raised_size(self, columns: int) -> int:
        if self.signed:
            return 0
        return self.block_size if columns % RAISED_SIZE else max(RAISED_SIZE, self.block_size)

    def form_of(self, linear: Linear, tables: Container[ir.Value | None] = ()) -> Format | None:
        """Returns the format of a linear layer, or None where its weights stay as they are.

        `tables` has the tables of embeddings.
        """
        table = linear.weight in tables
        if self.keeps(linear.path) or (table and not self.embeddings):
            return None
        return self.form(linear.shape[1], table=table, path=linear.path)

    def keeps(self, path: str) -> bool:
        """Whether the weights at a module path stay as they are."""
        own = self._own.get(path)
        return any(part in path for part in self.skip) or (own is not None and own.bits == KEPT)

    def ragged(self, path: str, columns: int) -> bool:
        """Whether signed blocks of a layer with so many inputs would end in a short one, which TensorRT refuses."""
        return self.signed and not self.keeps(path) and bool(columns % self.form(columns, path=path).size)

    @cached_property
    def _own(self) -> dict[str, LayerFormat]:
        return {path: layer for layer in self.layers for path in layer.paths}

    def _format(self, bits: int, size: int, symmetric: bool) -> Format:
        return Format(bits, size, symmetric, self.signed, self.half_scales)


class QuantizeWeights(Pass):
    """Puts codes and DequantizeLinear in the place of the weights of linear layers and embeddings.

    1. A weight that several nodes read (a tied head) stays one weight.
    2. The graph stays in the dialect: it computes with the dequantized weights.

    Args:
        config: How weights are stored.
        solve: Chooses codes, for every method but rtn. Default: none, for rtn.
        importance: Weight of each input's squared error, [in], by path, for layers of `channels`. Default: 1 for all.
    """

    name = "quantize-weights"
    version = 7  # GPTQ searches its damping
    config: QuantizeWeightsConfig

    def __init__(
        self, config: QuantizeWeightsConfig, solve: Solve | None = None,
        importance: Mapping[str, np.ndarray[Any, Any]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(config)
        self._importance = importance or {}
        if (config.method == "rtn") != (solve is None):
            raise ValueError("the inputs of the layers belong to other methods than rtn")
        self._solve = solve
        self._solved: Mapping[str, Codes] = {}
        self._tables: set[str] = set()
        # By path, the error of rounding a weight that a pass made; known once its codes are.
        self.off: dict[str, float] = {}
        # Quantized linear layers by path. Where a weight is the source's own, also a function for codes of some rows.
        self.made: dict[str, tuple[tuple[int, int], Format, Some | None]] = {}
        self.kept: list[str] = []  # linear layers whose weights stay as they are, because blocks do not divide them

    def run(self, model: ir.Model) -> int:
        done: dict[str, ir.Value] = {}
        tables = lookups(model)
        self._tables = {str(table.name) for table in tables if table is not None}
        form_of = partial(self.config.form_of, tables=tables)
        self._solved = self._solve(model, form_of) if self._solve is not None else {}
        for linear in linears(model):
            if linear.weight in tables and not self.config.embeddings:
                continue
            if linear.dequantize is None and self.config.ragged(linear.path, linear.shape[1]):
                self.kept.append(linear.path)
                continue
            if linear.dequantize is None and not self.config.keeps(linear.path):
                self._linear(model.graph, linear, done)
        for node in tables.values() if self.config.embeddings else ():
            table = node.inputs[0]
            if table is not None and table.is_initializer() and not self.config.keeps(node.name or ""):
                node.replace_input_with(0, self._codes(model.graph, table, True, done))
        return len(done)

    def _linear(self, graph: ir.Graph, linear: Linear, done: dict[str, ir.Value]) -> None:
        first = linear.node
        if linear.transposed:
            turn = edit.producer(linear.node.inputs[1])
            if turn is None:
                raise ValueError(f"{linear.path} has no Transpose")
            turn.replace_input_with(0, self._codes(graph, linear.weight, True, done, linear.path))
        else:
            codes = self._codes(graph, linear.weight, False, done, linear.path)
            (turned,) = edit.insert(first, "Transpose", [codes], {"perm": [1, 0]})
            first.replace_input_with(1, turned)

    def _codes(
        self, graph: ir.Graph, weight: ir.Value, by_rows: bool, done: dict[str, ir.Value], path: str = ""
    ) -> ir.Value:
        """Returns the dequantized weight [out, in], which is made once a weight, before all its readers."""
        name = str(weight.name)
        if name in done:
            return done[name]
        tensor = weight.const_value
        rows, columns = (int(d) for d in weight.shape or ())  # type: ignore[arg-type]
        shape = (rows, columns) if by_rows else (columns, rows)
        form = self.config.form(shape[1], table=name in self._tables, path=path)

        def read() -> np.ndarray[Any, Any]:
            array = tensor.numpy()  # type: ignore[union-attr]
            return array if by_rows else np.ascontiguousarray(array.T)

        own = tensor is not None and tensor.metadata_props.get("lepton.source")

        def codes_of() -> Codes:
            if (codes := self._solved.get(name)) is None:
                codes = self._round(path, weight := read(), form)
                if not own:
                    self.off[path] = _part_off(weight, codes, form)
            return codes

        if self.config.floating:
            done[name] = float8(graph, read, shape, name, graph[0])
            return done[name]
        self.made[path] = (shape, form, partial(self._some, path, name, form) if own else None)
        quantized = Quantized(shape, form, name, codes_of)
        build = signed if self.config.signed or path in self.config.channels else dequantized
        value = build(graph, quantized, name, graph[0])
        done[name] = value
        return value

    def _round(self, path: str, weight: np.ndarray[Any, Any], form: Format) -> Codes:
        if path in self.config.channels:
            return channel_codes(weight, form, self._importance.get(path))
        return round_to_nearest(weight, form)

    def _some(self, path: str, name: str, form: Format, rows: np.ndarray[Any, Any], step: int) -> Codes:
        """Returns the codes of every `step`-th row of a weight; `rows` are these rows."""
        codes = self._solved.get(name)
        if codes is None:
            return self._round(path, rows, form)
        return Codes(*(None if part is None else part[::step] for part in codes))  # type: ignore[arg-type]


def _part_off(weight: np.ndarray[Any, Any], codes: Codes, form: Format) -> float:
    """Returns the error of rounding some rows of a weight, as a part of their energy."""
    step = max(1, len(weight) // ROWS)
    rows, row_codes = weight[::step], Codes(*(None if part is None else part[::step] for part in codes))  # type: ignore[arg-type]
    off = np.square(rows - dequantize(row_codes, form), dtype=np.float64).sum()
    return float(off / max(np.square(rows, dtype=np.float64).sum(), np.finfo(np.float64).tiny))


def dequantized(graph: ir.Graph, weight: Quantized, name: str, before: ir.Node) -> ir.Value:
    """Registers a quantized weight's lazy parts, inserts its DequantizeLinear, and returns the value [out, in]."""
    form, (rows, columns) = weight.form, weight.shape
    kind = ir.DataType.UINT8 if form.bits == 8 else ir.DataType.UINT4  # codes of 2 bits too, until they are packed
    blocks = -(-columns // form.size)
    codes = _part(graph, f"{name}.codes", kind, (rows, columns), lambda: weight.parts().codes)
    scales = _part(graph, f"{name}.scales", ir.DataType.FLOAT, (rows, blocks), lambda: weight.parts().scales)

    def zeros() -> np.ndarray[Any, Any]:
        stored = weight.parts().zeros
        return stored if stored is not None else np.full((rows, blocks), form.middle, np.uint8)

    zero = _part(graph, f"{name}.zeros", kind, (rows, blocks), zeros)
    codes.meta[KEY] = weight
    return _dequantize(before, name, [codes, scales, zero], {"axis": 1, "block_size": form.size}, weight.shape)


def signed(graph: ir.Graph, weight: Quantized, name: str, before: ir.Node) -> ir.Value:
    """Like `dequantized`, with signed codes and scales above zero. Scales of output channels are stored as one axis.

    Zero points are zeros, because TensorRT up to 10.3 takes the type of codes from them. It refuses scales of zero.
    """
    form, (rows, columns) = weight.form, weight.shape
    kind = ir.DataType.INT4 if form.bits == 4 else ir.DataType.INT8
    blocks = -(-columns // form.size)

    def codes() -> np.ndarray[Any, Any]:
        signed_codes: np.ndarray[Any, Any] = weight.parts().codes.astype(np.int16) - form.middle
        return signed_codes

    stored = _part(graph, f"{name}.codes", kind, (rows, columns), codes)
    stored.meta[KEY] = weight
    by_channel = blocks == 1 and form.bits == 8  # int4 has blocks, even where there is one a row
    shape: tuple[int, ...] = (rows,) if by_channel else (rows, blocks)

    def scales() -> np.ndarray[Any, Any]:
        stored_scales = weight.parts().scales
        # A block of zeros is zero with any scale.
        return np.where(stored_scales > 0, stored_scales, np.float32(1)).reshape(shape)

    parts = [
        stored, _part(graph, f"{name}.scales", ir.DataType.FLOAT, shape, scales),
        _part(graph, f"{name}.zeros", kind, shape, lambda: np.zeros(shape, np.int8)),
    ]  # fmt: skip
    attributes = {"axis": 0} if by_channel else {"axis": 1, "block_size": form.size}
    return _dequantize(before, name, parts, attributes, weight.shape)


def float8(
    graph: ir.Graph, read: Callable[[], np.ndarray[Any, Any]], shape: tuple[int, int], name: str, before: ir.Node
) -> ir.Value:
    """Registers a weight [out, in] as float8 E4M3 with a scale for each output channel, and returns the value.

    The largest magnitude of a channel becomes 448, the largest number of the format. Each part reads the weight anew.
    """
    kind = ir.DataType.FLOAT8E4M3FN

    def scales() -> np.ndarray[Any, Any]:
        largest = np.abs(read()).max(1).astype(np.float32)
        return np.where(largest > 0, largest / np.float32(_FLOAT8_MAX), np.float32(1))

    parts = [
        _part(graph, f"{name}.codes", kind, shape, lambda: read() / scales()[:, None]),
        _part(graph, f"{name}.scales", ir.DataType.FLOAT, shape[:1], scales),
        _part(graph, f"{name}.zeros", kind, shape[:1], lambda: np.zeros(shape[0], np.float32)),
    ]
    return _dequantize(before, name, parts, {"axis": 0}, shape)


def _part(
    graph: ir.Graph, name: str, dtype: ir.DataType, shape: tuple[int, ...], read: Callable[[], np.ndarray[Any, Any]]
) -> ir.Value:
    """Registers an initializer that is computed when it is written."""

    def tensor() -> ir.TensorProtocol:
        return ir.Tensor(read().astype(dtype.numpy()), dtype=dtype)

    return edit.initializer(
        graph, name, ir.LazyTensor(tensor, dtype=dtype, shape=ir.Shape(shape), name=name, cache=False)
    )


def _dequantize(
    before: ir.Node, name: str, parts: list[ir.Value], attributes: dict[str, Any], shape: tuple[int, int]
) -> ir.Value:
    (value,) = edit.insert(before, "DequantizeLinear", parts, attributes, name=f"{name}/DequantizeLinear", module="")
    value.shape, value.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
    return value


def quantized_of(linear_weight: ir.Value) -> Quantized | None:
    """Returns the quantized weight whose codes an initializer holds, or None."""
    quantized: Quantized | None = linear_weight.meta.get(KEY)
    return quantized
