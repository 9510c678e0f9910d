"""Changes of weights that are computed when the weights are read, so that none is held; and new linear layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.ir import edit
from leptonc.ir.dialect import MODULE_KEY
from leptonc.ir.structure import Linear

# Key of a weight's metadata: its name in the checkpoint, "" where its values are others. Constants have no such key.
SOURCE_KEY = "lepton.source"
Reader = Callable[[], NDArray[np.float32]]


def tensor_of(value: ir.Value) -> Any:
    """Returns an initializer's tensor."""
    if value.const_value is None:
        raise ValueError(f"{value.name} has no data")
    return value.const_value


def count_weights(model: ir.Model) -> int:
    """Returns the number of a graph's weights, without constants."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(tensor.size for tensor in tensors if isinstance(tensor, ir.LazyTensor))


def change(value: ir.Value, read: Reader) -> None:
    """Gives an initializer the values that `read` returns, in the place of the checkpoint's. Each reading calls it."""
    metadata = {SOURCE_KEY: ""} if SOURCE_KEY in tensor_of(value).metadata_props else {}
    value.const_value = lazy(str(value.name), read, list(value.shape or ()), metadata)


def lazy(name: str, read: Reader, shape: Sequence[Any], metadata: dict[str, str]) -> ir.LazyTensor:
    """Returns a float32 tensor that is computed when it is read."""
    return ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(read(), dtype=np.float32)), dtype=ir.DataType.FLOAT,
        shape=ir.Shape(shape), name=name, cache=False, metadata_props=metadata,
    )  # fmt: skip


def add_bias(graph: ir.Graph, linear: Linear, bias: NDArray[np.float32]) -> None:
    """Adds float32 [out] to a linear layer's bias, or gives it one."""
    if linear.bias is not None:
        old = tensor_of(linear.bias)
        change(linear.bias, lambda: old.numpy() + bias)
        return
    y, name = linear.node.outputs[0], f"{linear.path}.bias"
    edit.append(linear.node, "Add", [y, edit.initializer(graph, name, ir.tensor(bias, name=name))],
                name=f"{linear.node.name}/Add")  # fmt: skip


def append_linear(
    graph: ir.Graph, after: ir.Node, path: str, weight: Reader, size: int, bias: Reader | None = None
) -> None:  # fmt: skip
    """Inserts a linear layer [size, size] after a node. All readers of the node's output read the layer's."""
    if f"{path}.weight" in graph.initializers:
        raise ValueError(f"{path} is there already")
    metadata = {SOURCE_KEY: f"{path}.weight"}
    y, name = after.outputs[0], f"{after.name}/linear"
    value = edit.initializer(graph, f"{path}.weight", lazy(f"{path}.weight", weight, [size, size], metadata))
    made = edit.append(after, "MatMul", [y, value], name=name)
    node = made.producer()
    assert node is not None
    (turned,) = edit.insert(node, "Transpose", [value], {"perm": [1, 0]}, module=path)
    node.replace_input_with(1, turned)
    node.metadata_props[MODULE_KEY] = path
    turned.shape, turned.type = value.shape, value.type
    if bias is not None:
        name = f"{path}.bias"
        value = edit.initializer(graph, name, lazy(name, bias, [size], {SOURCE_KEY: name}))
        edit.append(node, "Add", [made, value], name=f"{node.name}/Add")
