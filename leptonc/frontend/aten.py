"""The table of torch operators: what each becomes in the IR dialect.

A handler is called with the builder, the torch node and the node's arguments, and returns a value (or a list). The
first half are one-to-one; what follows needs a few lines each.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch

from leptonc.errors import CaptureError
from leptonc.frontend.builder import Builder, Handler

FLOAT, INT64, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL
INT_MAX = 2**63 - 1
TABLE: dict[str, Handler] = {}

UNARY = {
    "abs": "Abs", "cos": "Cos", "erf": "Erf", "exp": "Exp", "floor": "Floor", "log": "Log", "neg": "Neg",
    "logical_not": "Not", "bitwise_not": "Not", "reciprocal": "Reciprocal", "relu": "Relu", "round": "Round",
    "sigmoid": "Sigmoid", "sign": "Sign", "sin": "Sin", "sqrt": "Sqrt", "tanh": "Tanh", "silu": "Swish",
    "softplus": "Softplus",
}  # fmt: skip
BINARY = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow", "maximum": "Max", "minimum": "Min",
    "eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual",
    "logical_and": "And", "logical_or": "Or", "bitwise_and": "And", "bitwise_or": "Or", "__and__": "And",
    "__or__": "Or", "remainder": "Mod", "matmul": "MatMul", "bmm": "MatMul",
}  # fmt: skip
NOTHING = ("contiguous", "clone", "detach", "alias", "dropout", "lift_fresh_copy", "_to_copy_", "detach_")
SIZES = {operator.add: "Add", operator.sub: "Sub", operator.mul: "Mul", operator.floordiv: "Div"}


def handles(*names: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        for name in names:
            TABLE[name] = handler
        return handler

    return register


def _val(node: torch.fx.Node) -> Any:
    return node.meta["val"]


def _dtype(b: Builder, node: torch.fx.Node) -> ir.DataType:
    return b.dtype(_val(node).dtype)


def _axis(axis: int, rank: int) -> int:
    return axis + rank if axis < 0 else axis


def _unary(op: str) -> Handler:
    return lambda b, node, x, *_, **__: b.op(op, [b.value(x)], like=_val(node))


def _binary(op: str) -> Handler:
    def handler(b: Builder, node: torch.fx.Node, x: Any, y: Any, alpha: Any = 1, **rest: Any) -> ir.Value:
        if rest.get("rounding_mode"):
            raise CaptureError(f"{b.module}: rounding division is not supported")
        types = [_val(a).dtype for a in (x, y) if isinstance(a, torch.fx.Node) and isinstance(_val(a), torch.Tensor)]
        common = types[0] if len(types) == 1 else torch.promote_types(*types)
        if len(types) == 1:
            scalar = y if isinstance(x, torch.fx.Node) and isinstance(_val(x), torch.Tensor) else x
            if isinstance(scalar, float) and not common.is_floating_point:
                common = torch.float32
        if op in ("Div", "MatMul") and not common.is_floating_point:
            common = torch.float32
        dtype = b.dtype(common)
        left, right = (b.cast(b.value(a, dtype), dtype) for a in (x, y))
        if alpha != 1:
            right = b.op("Mul", [right, b.const(alpha, dtype)])
        return b.op(op, [left, right], like=_val(node))

    return handler


TABLE.update({name: _unary(op) for name, op in UNARY.items()})
TABLE.update({name: _binary(op) for name, op in BINARY.items()})
TABLE.update({name: (lambda b, node, x, *_, **__: b.value(x)) for name in NOTHING})
TABLE["rsub"] = lambda b, node, x, y, alpha=1: TABLE["sub"](b, node, y, x, alpha)
TABLE["square"] = lambda b, node, x: TABLE["mul"](b, node, x, x)


@handles("ne")
def _ne(b: Builder, node: torch.fx.Node, x: Any, y: Any) -> ir.Value:
    return b.op("Not", [TABLE["eq"](b, node, x, y)], like=_val(node))


@handles("rsqrt")
def _rsqrt(b: Builder, node: torch.fx.Node, x: Any) -> ir.Value:
    return b.op("Reciprocal", [b.op("Sqrt", [b.value(x)], like=_val(node))], like=_val(node))


@handles("to", "_to_copy", "type_as")
def _to(b: Builder, node: torch.fx.Node, x: Any, *_: Any, **__: Any) -> ir.Value:
    return b.cast(b.value(x), _dtype(b, node))


@handles("gelu")
def _gelu(b: Builder, node: torch.fx.Node, x: Any, approximate: str = "none") -> ir.Value:
    return b.op("Gelu", [b.value(x)], {"approximate": approximate}, like=_val(node))


@handles("embedding")
def _embedding(b: Builder, node: torch.fx.Node, weight: Any, ids: Any, *_: Any, **__: Any) -> ir.Value:
    return b.op("Gather", [b.value(weight), b.value(ids)], {"axis": 0}, like=_val(node))


@handles("linear")
def _linear(b: Builder, node: torch.fx.Node, x: Any, weight: Any, bias: Any = None) -> ir.Value:
    if isinstance(weight, torch.fx.Node) and str(weight.target).startswith("aten.t."):
        w = b.value(weight.args[0])  # already [in, out]
    else:
        w = b.op("Transpose", [b.value(weight)], {"perm": [1, 0]}, like=_val(weight).t())
    y = b.op("MatMul", [b.value(x), w], like=_val(node))
    return y if bias is None else b.op("Add", [y, b.value(bias)], like=_val(node))


@handles("addmm")
def _addmm(b: Builder, node: torch.fx.Node, bias: Any, x: Any, y: Any) -> ir.Value:
    return b.op("Add", [b.op("MatMul", [b.value(x), b.value(y)], like=_val(node)), b.value(bias)], like=_val(node))


@handles("layer_norm")
def _layer_norm(
    b: Builder,
    node: torch.fx.Node,
    x: Any,
    shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *_: Any,
) -> ir.Value:
    scale = b.value(weight) if weight is not None else b.const([1.0] * shape[-1], FLOAT)
    inputs = [b.value(x), scale, *([b.value(bias)] if bias is not None else [])]
    return b.op("LayerNormalization", inputs, {"axis": -len(shape), "epsilon": eps}, like=_val(node))


@handles("view", "reshape", "_unsafe_view", "flatten", "unflatten")
def _reshape(b: Builder, node: torch.fx.Node, x: Any, *_: Any) -> ir.Value:
    """Writes 0 for a copied size and -1 for one unknown size, so that most reshapes need no arithmetic on shapes."""
    before, after = list(_val(x).shape), list(_val(node).shape)
    target: list[Any] = []
    for i, size in enumerate(after):
        if isinstance(size, int):
            target.append(size)
        elif i < len(before) and str(before[i]) == str(size):
            target.append(0)
        else:
            target.append(size)
    unknown = [i for i, size in enumerate(target) if not isinstance(size, int)]
    if len(unknown) == 1:
        target[unknown[0]] = -1
    return b.op("Reshape", [b.value(x), b.vector(target)], like=_val(node))


@handles("transpose", "swapaxes")
def _transpose(b: Builder, node: torch.fx.Node, x: Any, i: int, j: int) -> ir.Value:
    perm = list(range(_val(x).dim()))
    perm[i], perm[j] = perm[j], perm[i]
    return b.op("Transpose", [b.value(x)], {"perm": perm}, like=_val(node))


@handles("permute")
def _permute(b: Builder, node: torch.fx.Node, x: Any, perm: Any) -> ir.Value:
    return b.op("Transpose", [b.value(x)], {"perm": [_axis(p, len(perm)) for p in perm]}, like=_val(node))


@handles("t")
def _t(b: Builder, node: torch.fx.Node, x: Any) -> ir.Value:
    return b.op("Transpose", [b.value(x)], {"perm": [1, 0]}, like=_val(node))


@handles("unsqueeze")
def _unsqueeze(b: Builder, node: torch.fx.Node, x: Any, axis: int) -> ir.Value:
    return b.op("Unsqueeze", [b.value(x), b.const([_axis(axis, _val(node).dim())])], like=_val(node))


@handles("squeeze")
def _squeeze(b: Builder, node: torch.fx.Node, x: Any, axis: Any = None) -> ir.Value:
    shape = _val(x).shape
    axes = range(len(shape)) if axis is None else [axis] if isinstance(axis, int) else axis
    ones = [_axis(a, len(shape)) for a in axes if shape[a] == 1]
    return b.op("Squeeze", [b.value(x), b.const(ones)], like=_val(node)) if ones else b.value(x)


@handles("expand", "expand_as", "broadcast_to")
def _expand(b: Builder, node: torch.fx.Node, x: Any, *_: Any, **__: Any) -> ir.Value:
    return b.op("Expand", [b.value(x), b.vector(list(_val(node).shape))], like=_val(node))


@handles("cat", "concat")
def _cat(b: Builder, node: torch.fx.Node, parts: Any, axis: int = 0) -> ir.Value:
    dtype = _dtype(b, node)
    return b.op("Concat", [b.cast(b.value(p), dtype) for p in parts], {"axis": axis}, like=_val(node))


@handles("stack")
def _stack(b: Builder, node: torch.fx.Node, parts: Any, axis: int = 0) -> ir.Value:
    at = b.const([_axis(axis, _val(node).dim())])
    return b.op("Concat", [b.op("Unsqueeze", [b.value(p), at]) for p in parts], {"axis": axis}, like=_val(node))


@handles("split", "split_with_sizes", "chunk", "unbind")
def _split(b: Builder, node: torch.fx.Node, x: Any, sizes: Any = 1, axis: int = 0) -> list[ir.Value]:
    parts = _val(node)
    name = str(node.target)
    if "unbind" in name:
        axis = sizes if isinstance(sizes, int) and len(node.args) > 1 else 0
        at = _axis(axis, _val(x).dim())
        return [b.op("Gather", [b.value(x), b.const(i)], {"axis": at}, like=p) for i, p in enumerate(parts)]
    lengths = [p.shape[axis] for p in parts]
    if len(lengths) == 1:
        return [b.value(x)]
    out = b.ops("Split", [b.value(x), b.vector(lengths)], {"axis": axis}, outputs=len(lengths), like=list(parts))
    return list(out)


@handles("slice")
def _slice(
    b: Builder, node: torch.fx.Node, x: Any, axis: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Any:
    if [str(d) for d in _val(x).shape] == [str(d) for d in _val(node).shape] and step == 1:
        return b.value(x)
    ends = INT_MAX if end is None else end
    inputs = [
        b.value(x),
        b.vector([start or 0]),
        b.vector([ends]),
        b.const([_axis(axis, _val(x).dim())]),
        b.const([step]),
    ]
    return b.op("Slice", inputs, like=_val(node))


@handles("select")
def _select(b: Builder, node: torch.fx.Node, x: Any, axis: int, index: Any) -> ir.Value:
    return b.op("Gather", [b.value(x), b.scalar(index)], {"axis": _axis(axis, _val(x).dim())}, like=_val(node))


@handles("index_select")
def _index_select(b: Builder, node: torch.fx.Node, x: Any, axis: int, index: Any) -> ir.Value:
    return b.op("Gather", [b.value(x), b.value(index)], {"axis": axis}, like=_val(node))


@handles("gather")
def _gather(b: Builder, node: torch.fx.Node, x: Any, axis: int, index: Any, **_: Any) -> ir.Value:
    return b.op("GatherElements", [b.value(x), b.value(index)], {"axis": axis}, like=_val(node))


@handles("index")
def _index(b: Builder, node: torch.fx.Node, x: Any, indices: Any) -> ir.Value:
    """Handles x[:, …, i, …] with one index tensor, and x[arange(batch), i], which takes a row of each batch entry."""
    indexed = [(axis, i) for axis, i in enumerate(indices) if i is not None]
    if len(indexed) == 1:
        axis, index = indexed[0]
        return b.op("Gather", [b.value(x), b.value(index)], {"axis": axis}, like=_val(node))
    if [axis for axis, _ in indexed] == [0, 1] and str(indexed[0][1].target).startswith("aten.arange"):
        rank, index = _val(x).dim(), b.value(indexed[1][1])
        at = b.op("Unsqueeze", [index, b.const(list(range(1, rank)))])
        shape = b.vector([_val(indexed[1][1]).shape[0], 1, *_val(x).shape[2:]])
        picked = b.op("GatherElements", [b.value(x), b.op("Expand", [at, shape])], {"axis": 1})
        return b.op("Squeeze", [picked, b.const([1])], like=_val(node))
    raise CaptureError(f"{b.module}: indexing with {len(indexed)} tensors is not supported")


def _reduce(op: str) -> Handler:
    def handler(b: Builder, node: torch.fx.Node, x: Any, axes: Any = None, keepdim: bool = False, **_: Any) -> ir.Value:
        value = b.cast(b.value(x), _dtype(b, node))
        over = [] if axes is None else [axes] if isinstance(axes, int) else list(axes)
        inputs = [value, *([b.const(over)] if over else [])]
        return b.op(op, inputs, {"keepdims": int(keepdim)}, like=_val(node))

    return handler


TABLE.update({"mean": _reduce("ReduceMean"), "sum": _reduce("ReduceSum"), "amax": _reduce("ReduceMax"),
              "amin": _reduce("ReduceMin")})  # fmt: skip


@handles("linalg_vector_norm")
def _vector_norm(
    b: Builder, node: torch.fx.Node, x: Any, order: Any = 2, axes: Any = None, keepdim: bool = False, **_: Any
) -> Any:
    if order != 2:
        raise CaptureError(f"{b.module}: expected an L2 norm, found order {order}")
    return _reduce("ReduceL2")(b, node, x, axes, keepdim)


@handles("softmax", "_softmax")
def _softmax(b: Builder, node: torch.fx.Node, x: Any, axis: int, *_: Any, **__: Any) -> ir.Value:
    return b.op("Softmax", [b.cast(b.value(x), FLOAT)], {"axis": axis}, like=_val(node))


@handles("cumsum")
def _cumsum(b: Builder, node: torch.fx.Node, x: Any, axis: int, **_: Any) -> ir.Value:
    return b.op("CumSum", [b.cast(b.value(x), _dtype(b, node)), b.const(axis)], like=_val(node))


@handles("argmax")
def _argmax(b: Builder, node: torch.fx.Node, x: Any, axis: int = -1, keepdim: bool = False) -> ir.Value:
    value = b.cast(b.value(x), FLOAT)
    _, at = b.ops("TopK", [value, b.const([1])], {"axis": axis}, outputs=2)
    return at if keepdim else b.op("Squeeze", [at, b.const([axis])], like=_val(node))


@handles("where")
def _where(b: Builder, node: torch.fx.Node, condition: Any, x: Any, y: Any) -> ir.Value:
    dtype = _dtype(b, node)
    return b.op("Where", [b.value(condition), *(b.cast(b.value(a, dtype), dtype) for a in (x, y))], like=_val(node))


@handles("masked_fill")
def _masked_fill(b: Builder, node: torch.fx.Node, x: Any, mask: Any, value: Any) -> ir.Value:
    return b.op("Where", [b.value(mask), b.value(value, _dtype(b, node)), b.value(x)], like=_val(node))


@handles("clamp", "clamp_min", "clamp_max")
def _clamp(b: Builder, node: torch.fx.Node, x: Any, low: Any = None, high: Any = None, **named: Any) -> ir.Value:
    if "clamp_max" in str(node.target):
        low, high = None, low
    low, high = named.get("min", low), named.get("max", high)
    dtype = _dtype(b, node)
    bounds = [None if v is None else b.value(v, dtype) for v in (low, high)]
    return b.op("Clip", [b.value(x), *bounds], like=_val(node))


@handles("repeat_interleave")
def _repeat_interleave(b: Builder, node: torch.fx.Node, x: Any, repeats: Any, dim: Any = None, **_: Any) -> ir.Value:
    rank = len(_val(x).shape)
    if not isinstance(repeats, int) or dim is None or _axis(dim, rank) != rank - 1:
        raise CaptureError(f"{b.module}: expected a number of repeats on the last axis, found {repeats} on axis {dim}")
    many = b.op("Concat", [b.op("Unsqueeze", [b.value(x), b.const([rank])])] * repeats, {"axis": rank})
    return b.op("Reshape", [many, b.const([0] * (rank - 1) + [-1])], like=_val(node))


@handles("tril", "triu")
def _trilu(b: Builder, node: torch.fx.Node, x: Any, diagonal: int = 0) -> ir.Value:
    return b.op("Trilu", [b.value(x), b.const(diagonal)], {"upper": int("triu" in str(node.target))}, like=_val(node))


@handles("arange")
def _arange(b: Builder, node: torch.fx.Node, *args: Any, **_: Any) -> ir.Value:
    start, end, step = (0, args[0], 1) if len(args) == 1 else (*args, 1)[:3]
    dtype = _dtype(b, node)
    return b.cast(b.op("Range", [b.scalar(start), b.scalar(end), b.scalar(step)], like=_val(node)), dtype)


@handles(
    "full",
    "zeros",
    "ones",
    "full_like",
    "zeros_like",
    "ones_like",
    "new_zeros",
    "new_ones",
    "new_full",
    "scalar_tensor",
)
def _full(b: Builder, node: torch.fx.Node, *args: Any, **_: Any) -> ir.Value:
    name = str(node.target)
    fill: Any = 1 if "ones" in name else 0
    if "full" in name:
        fill = args[2] if "new_full" in name else args[1]
    elif "scalar_tensor" in name:
        fill = args[0]
    value = b.value(fill, _dtype(b, node))
    return b.op("Expand", [value, b.vector(list(_val(node).shape))], like=_val(node)) if _val(node).dim() else value


@handles("sym_size")
def _sym_size(b: Builder, node: torch.fx.Node, x: Any, axis: int) -> Any:
    symbolic = _val(node)
    if isinstance(symbolic, int):
        return symbolic
    if str(symbolic) in b.sizes:
        return b.sizes[str(symbolic)]
    return b.op("Shape", [b.value(x)], {"start": axis, "end": axis + 1})


def convert_size(b: Builder, node: torch.fx.Node) -> Any:
    """Converts arithmetic on symbolic sizes into int64 values of shape [1]."""
    symbolic = node.meta.get("val")
    if isinstance(symbolic, int):
        return symbolic
    parts = [b.number(a) for a in node.args]
    return b.op(SIZES[node.target], [b.const([p]) if isinstance(p, int) else p for p in parts])  # type: ignore[index]
