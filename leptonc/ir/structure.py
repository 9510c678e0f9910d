"""Parts of a transformer in its graph: linear layers, embeddings, layers, named by module path."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.ir.dialect import DOMAIN, module_of
from leptonc.ir.edit import only_user, producer
from leptonc.ir.ports import input_of
from runtime_edge.part_record import TOKEN_IDS


@dataclass(frozen=True)
class Linear:
    """`y = x W^T + b` in a graph of the dialect.

    Attributes:
        node: The MatMul.
        weight: Initializer of the weight, or of its codes where it is quantized.
        dequantize: The DequantizeLinear of a quantized weight. None: it is not quantized.
        transposed: Whether the weight is [out, in] behind a Transpose. Otherwise it is [in, out].
        bias: Initializer of the bias [out], or None.
        x: Input, [..., in].
        y: Output with the bias added, [..., out].
    """

    node: ir.Node
    weight: ir.Value
    dequantize: ir.Node | None
    transposed: bool
    bias: ir.Value | None
    x: ir.Value
    y: ir.Value

    @property
    def path(self) -> str:
        return module_of(self.node)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) features."""
        rows, columns = (int(d) for d in self.weight.shape or ())  # type: ignore[arg-type]
        return (rows, columns) if self.transposed else (columns, rows)


def linear_of(node: ir.Node) -> Linear | None:
    """Returns the linear layer whose MatMul `node` is, or None."""
    if node.op_type != "MatMul" or node.domain:
        return None
    right, transposed = node.inputs[1], False
    turned = producer(right, "Transpose")
    if turned is not None:
        right, transposed = turned.inputs[0], True
    dequantize = producer(right, "DequantizeLinear")
    if dequantize is not None:
        right = dequantize.inputs[0]
    x = node.inputs[0]
    if right is None or x is None or not right.is_initializer() or right.shape is None or len(right.shape) != 2:
        return None
    y = node.outputs[0]
    add, bias = only_user(y), None
    if add is not None and add.op_type == "Add":
        other = add.inputs[1] if add.inputs[0] is y else add.inputs[0]
        if other is not None and other.is_initializer() and other.shape is not None and len(other.shape) == 1:
            bias, y = other, add.outputs[0]
    return Linear(node, right, dequantize, transposed, bias, x, y)


def weight_of(linear: Linear) -> NDArray[np.float32]:
    """Reads a linear layer's weight as float32 [out, in]."""
    tensor = linear.weight.const_value
    if tensor is None:
        raise ValueError(f"{linear.path} has no weight")
    array = np.asarray(tensor.numpy(), np.float32)
    return array if linear.transposed else np.ascontiguousarray(array.T)


def as_stored(weight: NDArray[np.float32], linear: Linear) -> NDArray[np.float32]:
    """Returns a weight [out, in] as the graph has it; the inverse of `weight_of`."""
    return weight if linear.transposed else np.ascontiguousarray(weight.T)


def linears(model: ir.Model) -> list[Linear]:
    """Returns all linear layers in graph order."""
    return [linear for node in model.graph if (linear := linear_of(node)) is not None]


def multiplications(model: ir.Model) -> int:
    """Returns the number of multiplications of linear layers for one token, with the head's."""
    return sum(rows * columns for rows, columns in (linear.shape for linear in linears(model)))


def embeddings(model: ir.Model) -> Iterator[ir.Node]:
    """Yields the look-ups of token ids: Gather of rows of a matrix of weights by a graph input."""
    token_ids = input_of(model.graph, TOKEN_IDS)
    for node in model.graph:
        table = node.inputs[0] if node.op_type == "Gather" and not node.domain else None
        dequantize = producer(table, "DequantizeLinear")
        weight = dequantize.inputs[0] if dequantize is not None else table
        ids = node.inputs[1] if table is not None else None
        reshaped = producer(ids, "Reshape")  # GPT-2's family flattens what is flat
        ids = reshaped.inputs[0] if reshaped is not None else ids
        if weight is not None and weight.is_initializer() and ids is not None and ids.name == token_ids:
            yield node


def lookups(model: ir.Model) -> dict[ir.Value | None, ir.Node]:
    """Returns the nodes of `embeddings` by the table that they read."""
    return {node.inputs[0]: node for node in embeddings(model)}


LAYER = re.compile(r"^(.*?\.\d+)(?:\.|$)")


def layer_of(path: str) -> str:
    """Returns the layer's path that a module path lies in ("model.layers.3"), or "" outside the layers."""
    match = LAYER.match(path)
    return match[1] if match else ""


@dataclass
class Layer:
    """One layer, as the report shows it.

    Attributes:
        path: Module path.
        heads: Number of query heads; 0 without attention.
        kv_heads: Number of key/value heads; 0 without attention.
        head_dim: Width of a head; 0 without attention.
        window: Tokens of a sliding window; 0 where attention reaches all tokens.
        linears: (out, in) features of each linear layer, by module path.
    """

    path: str
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    window: int = 0
    linears: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def mlp_channels(self) -> int:
        """Channels of the MLP: the widest input of its linear layers; 0 without an MLP."""
        inner = [k for p, (_, k) in self.linears.items() if "attn" not in p and "attention" not in p]
        return max(inner, default=0)


@dataclass
class Structure:
    """Layers of a model, and the width of the residual stream that runs through them."""

    layers: list[Layer]
    residual: int


def structure(*graphs: ir.Model) -> Structure:
    """Returns heads, groups, channels and the width of the residual stream of a model's graphs in the dialect."""
    layers: dict[str, Layer] = {}
    for node in (node for graph in graphs for node in graph.graph):
        path = layer_of(module_of(node))
        if not path:
            continue
        if node.op_type in ("CachedAttention", "Attention") and node.domain in ("", DOMAIN):
            layer = layers.setdefault(path, Layer(path))
            query, key = node.inputs[0], node.inputs[3 if node.domain else 1]
            if query is not None and key is not None and query.shape is not None and key.shape is not None:
                layer.heads, layer.head_dim = int(query.shape[1]), int(query.shape[3])  # type: ignore[arg-type]
                layer.kv_heads = int(key.shape[1])  # type: ignore[arg-type]
            window = node.attributes.get("window")
            layer.window = int(window.value) if window is not None else 0
        linear = linear_of(node)
        if linear is not None:
            layers.setdefault(path, Layer(path)).linears[linear.path] = linear.shape
    tables = [node.inputs[0] for graph in graphs for node in embeddings(graph)]
    width = next((int(table.shape[1]) for table in tables if table and table.shape), 0)  # type: ignore[arg-type]
    return Structure(list(layers.values()), width)
