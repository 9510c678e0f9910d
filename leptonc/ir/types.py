"""Element types of values that have none written down."""

from __future__ import annotations

import onnx_ir as ir

BOOL, INT64 = ir.DataType.BOOL, ir.DataType.INT64
# Ops with a result type of their own. Other results have the type of the input in `_LIKE`, or of the first input.
_RESULT = {
    **dict.fromkeys(("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or"), BOOL),
    "Shape": INT64,
}
_LIKE = {"Where": 1, "DequantizeLinear": 1, "QuantizeLinear": 2}


def fill_types(graph: ir.Graph) -> None:
    """Gives every untyped value of a graph in the dialect the type that ONNX's rules give it."""
    for node in graph:
        for value in node.outputs:
            if value.dtype is None:
                dtype = _type(node)
                value.type = ir.TensorType(dtype) if dtype is not None else None


def _type(node: ir.Node) -> ir.DataType | None:
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].value)
    if node.op_type in ("Constant", "ConstantOfShape"):
        tensor = node.attributes.get("value")
        return tensor.value.dtype if tensor is not None else None
    if node.op_type in _RESULT:
        return _RESULT[node.op_type]
    like = node.inputs[_LIKE.get(node.op_type, 0)] if node.inputs else None
    return like.dtype if like is not None else None
