"""Builds a graph in the IR dialect from an exported torch program, one torch node after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from leptonc.errors import CaptureError
from leptonc.ir.dialect import DOMAIN, MODULE_KEY, OPSET, functions

DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float64: ir.DataType.FLOAT,
    torch.int64: ir.DataType.INT64,
    torch.int32: ir.DataType.INT64,
    torch.bool: ir.DataType.BOOL,
}
NUMPY = {ir.DataType.FLOAT: np.float32, ir.DataType.INT64: np.int64, ir.DataType.BOOL: np.bool_}


class Builder:
    """Holds the graph being built, the values of torch nodes, and the symbolic sizes.

    Attributes:
        values: The result of each torch node: an `ir.Value`, a list of them, or a plain Python object.
        module: Path of the module whose nodes are being converted.
        dims: Names of the symbolic sizes, by their torch expression.
    """

    def __init__(self) -> None:
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET, DOMAIN: 1}, name="model")
        self.values: dict[torch.fx.Node, Any] = {}
        self.module = ""
        self.dims: dict[str, str] = {}
        self.sizes: dict[str, ir.Value] = {}
        self.cached: list[ir.Value] = []
        self._constants: dict[tuple[Any, ...], ir.Value] = {}
        self._count = 0

    # Nodes

    def op(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any] | None = None,
        *,
        like: Any = None,
    ) -> ir.Value:
        """Appends a node and returns its only output, which gets the shape and dtype of the torch value `like`."""
        return self.ops(op, inputs, attributes, like=[like])[0]

    def ops(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any] | None = None,
        *,
        outputs: int = 1,
        domain: str = "",
        like: Sequence[Any] = (),
    ) -> list[ir.Value]:
        """Appends a node and returns its outputs, which get the shapes and dtypes of the torch values `like`."""
        node = ir.node(op, inputs, attributes or {}, domain=domain, num_outputs=outputs)
        self._count += 1
        node.name = f"{op}_{self._count}"
        for i, value in enumerate(node.outputs):
            value.name = f"{node.name}_{i}" if i else node.name
        if self.module:
            node.metadata_props[MODULE_KEY] = self.module
        self.graph.append(node)
        for value, tensor in zip(node.outputs, like, strict=False):
            if isinstance(tensor, torch.Tensor):
                self.describe(value, tensor)
        return list(node.outputs)

    def describe(self, value: ir.Value, tensor: torch.Tensor) -> None:
        """Gives a value the shape and dtype of a traced tensor."""
        value.shape = ir.Shape([d if isinstance(d, int) else self.dims.get(str(d)) for d in tensor.shape])
        value.type = ir.TensorType(self.dtype(tensor.dtype))

    def dtype(self, dtype: torch.dtype) -> ir.DataType:
        if dtype not in DTYPES:
            raise CaptureError(f"{self.module}: expected float32, int64 or bool values, found {dtype}")
        return DTYPES[dtype]

    # Constants and inputs

    def const(self, value: Any, dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
        """Returns an initializer that holds a scalar or a list; equal constants are one initializer."""
        array: np.ndarray[Any, Any] = np.asarray(value, dtype=NUMPY[dtype])
        key = (dtype, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"const_{len(self._constants)}"
            self._constants[key] = self.initializer(ir.tensor(array, name=name), name)
        return self._constants[key]

    def initializer(self, tensor: Any, name: str) -> ir.Value:
        """Registers a tensor (lazy or not) under `name`, once."""
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        value = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(list(shape)), type=ir.TensorType(dtype))
        self.graph.inputs.append(value)
        return value

    # Torch arguments

    def value(self, arg: Any, like: ir.DataType | None = None) -> ir.Value:
        """Returns the value of a tensor argument; a Python number becomes a constant of dtype `like`."""
        if isinstance(arg, torch.fx.Node):
            converted = self.values[arg]
            if isinstance(converted, ir.Value):
                # Sizes are kept as [1]; as an operand of arithmetic they broadcast all the same.
                return converted
            arg = converted
        if isinstance(arg, bool):
            return self.const(arg, like or ir.DataType.BOOL)
        if isinstance(arg, (int, float)):
            default = ir.DataType.INT64 if isinstance(arg, int) else ir.DataType.FLOAT
            return self.const(arg, like or default)
        raise CaptureError(f"{self.module}: expected a tensor or a number, found {type(arg).__name__}")

    def number(self, arg: Any) -> int | ir.Value:
        """Returns a size: a Python int where it is known, else an int64 value of shape [1]."""
        if isinstance(arg, torch.fx.Node):
            symbolic = arg.meta.get("val")
            if isinstance(symbolic, int):
                return symbolic
            size: int | ir.Value = self.values[arg]
            return size
        if isinstance(arg, torch.SymInt):
            return self.size(str(arg))
        return int(arg)

    def size(self, expression: str) -> ir.Value:
        """Returns a graph input's symbolic size as int64 [1]."""
        if expression not in self.sizes:
            raise CaptureError(f"{self.module}: the size {expression} is not one of a graph input")
        return self.sizes[expression]

    def vector(self, args: Sequence[Any]) -> ir.Value:
        """Returns sizes as one int64 vector, computed where any is symbolic."""
        numbers = [self.number(a) for a in args]
        if all(isinstance(n, int) for n in numbers):
            return self.const(numbers)
        parts = [self.const([n]) if isinstance(n, int) else n for n in numbers]
        return parts[0] if len(parts) == 1 else self.op("Concat", parts, {"axis": 0})

    def scalar(self, arg: Any) -> ir.Value:
        """Returns a size as an int64 scalar (rank 0)."""
        number = self.number(arg)
        if isinstance(number, int):
            return self.const(number)
        return self.op("Reshape", [number, self.const([])])

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Returns `value` in `dtype`. A value that has this dtype is returned itself."""
        return value if value.dtype == dtype else self.op("Cast", [value], {"to": int(dtype)})

    def finish(self) -> ir.Model:
        """Returns the model, with our domain's functions where they are called."""
        used = {n.op_type for n in self.graph if n.domain == DOMAIN}
        return ir.Model(self.graph, ir_version=11, functions=[f for f in functions() if f.name in used])


Handler = Callable[..., Any]
