"""The operators of the dialect on torch tensors: a small differentiable function for each.

A function gets the node, for its attributes, and its inputs as tensors (None where one is left out); it returns one
tensor, or a tuple for several outputs. Semantics are ONNX's at opset 24.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from leptonc.ir.dialect import DOMAIN, attribute

Inputs = Sequence[Any]  # tensors, and None
Function = Callable[[ir.Node, Inputs], Any]
TABLE: dict[tuple[str, str], Function] = {}

DTYPES = {
    ir.DataType.FLOAT: torch.float32, ir.DataType.DOUBLE: torch.float64, ir.DataType.FLOAT16: torch.float16,
    ir.DataType.INT64: torch.int64, ir.DataType.INT32: torch.int32, ir.DataType.BOOL: torch.bool,
}  # fmt: skip


def implements(*names: str, domain: str = "") -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        TABLE.update({(domain, name): function for name in names})
        return function

    return register


def _elementwise(function: Callable[..., Any]) -> Function:
    return lambda _, inputs: function(*inputs)


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Add": torch.add, "And": torch.logical_and, "Cos": torch.cos, "Equal": torch.eq,
    "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "Greater": torch.gt, "GreaterOrEqual": torch.ge,
    "Identity": lambda x: x, "Less": torch.lt, "LessOrEqual": torch.le, "Log": torch.log, "MatMul": torch.matmul,
    "Mul": torch.mul, "Neg": torch.neg, "Not": torch.logical_not, "Or": torch.logical_or, "Pow": torch.pow,
    "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid,
    "Sign": torch.sign, "Sin": torch.sin, "Softplus": F.softplus, "Sqrt": torch.sqrt, "Sub": torch.sub,
    "Tanh": torch.tanh, "Where": torch.where,
}  # fmt: skip
TABLE.update({("", name): _elementwise(function) for name, function in _ELEMENTWISE.items()})


@implements("Div")
def _div(_: ir.Node, inputs: Inputs) -> Tensor:
    x, y = inputs
    return torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc")


@implements("Mod")
def _mod(node: ir.Node, inputs: Inputs) -> Any:
    return torch.fmod(*inputs) if attribute(node, "fmod", 0) else torch.remainder(*inputs)


@implements("Max", "Min")
def _extreme(node: ir.Node, inputs: Inputs) -> Any:
    join = torch.maximum if node.op_type == "Max" else torch.minimum
    extreme = inputs[0]
    for other in inputs[1:]:
        extreme = join(extreme, other)
    return extreme


@implements("Swish")
def _swish(node: ir.Node, inputs: Inputs) -> Any:
    alpha = float(attribute(node, "alpha", 1.0))
    return F.silu(inputs[0]) if alpha == 1 else inputs[0] * torch.sigmoid(alpha * inputs[0])


@implements("Gelu")
def _gelu(node: ir.Node, inputs: Inputs) -> Tensor:
    return F.gelu(inputs[0], approximate=_text(node, "approximate", "none"))


@implements("Clip")
def _clip(_: ir.Node, inputs: Inputs) -> Any:
    x, low, high = [*inputs, None, None][:3]
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


@implements("Cast")
def _cast(node: ir.Node, inputs: Inputs) -> Any:
    return inputs[0].to(DTYPES[ir.DataType(node.attributes["to"].value)])


# Shapes and constants


@implements("Constant")
def _constant(node: ir.Node, _: Inputs) -> Tensor:
    (stored,) = node.attributes.values()
    value = stored.value
    if stored.name == "value":
        return torch.from_numpy(value.numpy().copy())
    return torch.tensor(value, dtype=torch.float32 if "float" in stored.name else torch.int64)


@implements("ConstantOfShape")
def _constant_of_shape(node: ir.Node, inputs: Inputs) -> Any:
    fill = node.attributes.get("value")
    value = torch.from_numpy(fill.value.numpy().copy()) if fill is not None else torch.zeros(1)
    return value.reshape(()).expand(inputs[0].tolist())


@implements("Shape")
def _shape(node: ir.Node, inputs: Inputs) -> Tensor:
    end = node.attributes.get("end")
    return torch.tensor(list(inputs[0].shape)[int(attribute(node, "start", 0)) : end.value if end else None])


@implements("Range")
def _range(_: ir.Node, inputs: Inputs) -> Tensor:
    return torch.arange(*(bound.item() for bound in inputs), dtype=inputs[0].dtype)


@implements("Reshape")
def _reshape(node: ir.Node, inputs: Inputs) -> Any:
    x, shape = inputs[0], inputs[1].tolist()
    if not attribute(node, "allowzero", 0):
        shape = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(shape)


@implements("Expand")
def _expand(_: ir.Node, inputs: Inputs) -> Any:
    return inputs[0].expand(np.broadcast_shapes(tuple(inputs[0].shape), tuple(inputs[1].tolist())))


@implements("Tile")
def _tile(_: ir.Node, inputs: Inputs) -> Tensor:
    return torch.tile(inputs[0], tuple(inputs[1].tolist()))


@implements("Transpose")
def _transpose(node: ir.Node, inputs: Inputs) -> Any:
    perm = node.attributes.get("perm")
    return inputs[0].permute(list(perm.value) if perm else list(reversed(range(inputs[0].dim()))))


@implements("Unsqueeze")
def _unsqueeze(_: ir.Node, inputs: Inputs) -> Any:
    x, axes = inputs[0], inputs[1].tolist()
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


@implements("Squeeze")
def _squeeze(_: ir.Node, inputs: Inputs) -> Any:
    return torch.squeeze(inputs[0], tuple(inputs[1].tolist())) if len(inputs) > 1 else torch.squeeze(inputs[0])


@implements("Concat")
def _concat(node: ir.Node, inputs: Inputs) -> Any:
    return torch.cat(list(inputs), int(attribute(node, "axis")))


@implements("Split")
def _split(node: ir.Node, inputs: Inputs) -> tuple[Tensor, ...]:
    x, axis, parts = inputs[0], int(attribute(node, "axis", 0)), len(node.outputs)
    if len(inputs) > 1:
        return torch.split(x, inputs[1].tolist(), axis)
    return torch.split(x, -(-x.shape[axis] // parts), axis)


@implements("Slice")
def _slice(_: ir.Node, inputs: Inputs) -> Any:
    x, starts, ends = inputs[0], inputs[1].tolist(), inputs[2].tolist()
    axes = inputs[3].tolist() if len(inputs) > 3 and inputs[3] is not None else range(len(starts))
    steps = inputs[4].tolist() if len(inputs) > 4 else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        taken = range(x.shape[axis])[slice(start, end if end >= -x.shape[axis] else None, step)]
        if step == 1:
            x = x.narrow(axis, taken.start, len(taken)) if taken else x.narrow(axis, 0, 0)
        else:
            x = x.index_select(axis, torch.tensor(list(taken), dtype=torch.int64))
    return x


@implements("Gather")
def _gather(node: ir.Node, inputs: Inputs) -> Any:
    x, ids = inputs
    axis = int(attribute(node, "axis", 0)) % x.dim()
    ids = torch.where(ids < 0, ids + x.shape[axis], ids)
    rows = x.index_select(axis, ids.reshape(-1))
    return rows.reshape(*x.shape[:axis], *ids.shape, *x.shape[axis + 1 :])


@implements("GatherElements")
def _gather_elements(node: ir.Node, inputs: Inputs) -> Tensor:
    x, ids = inputs
    axis = int(attribute(node, "axis", 0))
    return torch.gather(x, axis, torch.where(ids < 0, ids + x.shape[axis], ids))


@implements("TensorScatter")
def _tensor_scatter(node: ir.Node, inputs: Inputs) -> Tensor:
    past, update, start = inputs
    if _text(node, "mode", "linear") != "linear":
        raise NotImplementedError("a circular TensorScatter")
    axis = int(attribute(node, "axis", -2)) % past.dim()
    rows = []
    for row, new, at in zip(past, update, start.tolist(), strict=True):
        after = at + new.shape[axis - 1]
        parts = [row.narrow(axis - 1, 0, at), new, row.narrow(axis - 1, after, row.shape[axis - 1] - after)]
        rows.append(torch.cat(parts, axis - 1))
    return torch.stack(rows)


@implements("Trilu")
def _trilu(node: ir.Node, inputs: Inputs) -> Tensor:
    cut = torch.triu if attribute(node, "upper", 1) else torch.tril
    return cut(inputs[0], int(inputs[1]) if len(inputs) > 1 else 0)


# Reductions and norms


def _axes(node: ir.Node, inputs: Inputs) -> list[int]:
    if len(inputs) > 1 and inputs[1] is not None and inputs[1].numel():
        return [int(a) for a in inputs[1].tolist()]
    return [] if attribute(node, "noop_with_empty_axes", 0) else list(range(inputs[0].dim()))


_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceMax": torch.amax, "ReduceMean": torch.mean, "ReduceMin": torch.amin, "ReduceSum": torch.sum,
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep),
}  # fmt: skip


@implements(*_REDUCTIONS)
def _reduce(node: ir.Node, inputs: Inputs) -> Tensor:
    axes = _axes(node, inputs)
    return _REDUCTIONS[node.op_type](inputs[0], axes, bool(attribute(node, "keepdims", 1))) if axes else inputs[0]


@implements("CumSum")
def _cumsum(node: ir.Node, inputs: Inputs) -> Tensor:
    x, axis = inputs[0], int(inputs[1])
    flipped = bool(attribute(node, "reverse", 0))
    x = x.flip(axis) if flipped else x
    sums = torch.cumsum(x, axis)
    sums = sums - x if attribute(node, "exclusive", 0) else sums
    return sums.flip(axis) if flipped else sums


@implements("TopK")
def _topk(node: ir.Node, inputs: Inputs) -> tuple[Tensor, ...]:
    largest = bool(attribute(node, "largest", 1))
    top = torch.topk(inputs[0], int(inputs[1]), int(attribute(node, "axis", -1)), largest)
    return top.values, top.indices


@implements("Softmax")
def _softmax(node: ir.Node, inputs: Inputs) -> Tensor:
    return torch.softmax(inputs[0], int(attribute(node, "axis", -1)))


@implements("LayerNormalization")
def _layer_norm(node: ir.Node, inputs: Inputs) -> Tensor:
    x, scale, bias = [*inputs, None][:3]
    shape = x.shape[int(attribute(node, "axis", -1)) % x.dim() :]
    return F.layer_norm(x, shape, scale.expand(shape), bias, float(attribute(node, "epsilon", 1e-5)))


@implements("RMSNormalization")
def _rms_norm(node: ir.Node, inputs: Inputs) -> Tensor:
    x, scale = inputs
    shape = x.shape[int(attribute(node, "axis", -1)) % x.dim() :]
    return F.rms_norm(x, shape, scale.expand(shape), float(attribute(node, "epsilon", 1e-5)))


@implements("DequantizeLinear")
def _dequantize(node: ir.Node, inputs: Inputs) -> Any:
    codes, scale, zero = [*inputs, None][:3]
    codes = codes.to(scale.dtype)
    axis, size = int(attribute(node, "axis", 1)) % codes.dim(), int(attribute(node, "block_size", 0))

    def spread(part: Tensor) -> Tensor:
        if size:
            return part.repeat_interleave(size, axis).narrow(axis, 0, codes.shape[axis])
        return part if part.dim() == 0 else part.reshape([-1 if i == axis else 1 for i in range(codes.dim())])

    return (codes if zero is None else codes - spread(zero.to(scale.dtype))) * spread(scale)


# Attention


@implements("RotaryEmbedding")
def _rotary(node: ir.Node, inputs: Inputs) -> Tensor:
    """X [batch, heads, length, dim], tables [positions, half], position_ids [batch, length]; maybe a part of dim."""
    x, cos, sin, at = [*inputs, None][:4]
    if x.dim() != 4:
        raise NotImplementedError("RotaryEmbedding of inputs that are not split in heads")
    cos, sin = (table[at].unsqueeze(1) if at is not None else table.unsqueeze(1) for table in (cos, sin))
    width = int(attribute(node, "rotary_embedding_dim", 0)) or x.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    pairs = attribute(node, "interleaved", 0)
    left, right = (turned[..., 0::2], turned[..., 1::2]) if pairs else turned.chunk(2, -1)
    both = (left * cos - right * sin, left * sin + right * cos)
    turned = torch.stack(both, -1).flatten(-2) if pairs else torch.cat(both, -1)
    return turned if width == x.shape[-1] else torch.cat([turned, rest], -1)


@implements("Attention")
def _attention(node: ir.Node, inputs: Inputs) -> Tensor:
    """Heads first; the mask is bool, or is added."""
    q, k, v, mask = [*inputs, None][:4]
    if q.dim() != 4 or any(extra is not None for extra in inputs[4:]) or len(node.outputs) > 1:
        raise NotImplementedError("Attention that splits heads or has a cache itself")
    scale = attribute(node, "scale", q.shape[-1] ** -0.5)
    softcap, causal = float(attribute(node, "softcap", 0.0)), bool(attribute(node, "is_causal", 0))
    return attend(q, k, v, mask, float(scale), softcap, causal)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float, causal: bool = False
) -> Tensor:
    """Attention of q [batch, heads, new, dim] to k, v [batch, kv_heads, all, dim], as ONNX has it.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        mask: Bool (True: seen) or numbers that are added, broadcast to [batch, heads, new, all]; or None.
        scale: Of the products.
        softcap: Logits x become softcap * tanh(x / softcap), where it is not zero.
        causal: Whether query i sees keys up to i, with no mask.
    """
    if not softcap:
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=grouped)
    groups = q.shape[1] // k.shape[1]
    k, v = (states.repeat_interleave(groups, 1) for states in (k, v))
    logits = softcap * torch.tanh(q @ k.transpose(-1, -2) * scale / softcap)
    if causal:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    return torch.softmax(logits, -1) @ v


@implements("CachedAttention", domain=DOMAIN)
def _cached_attention(node: ir.Node, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """As the function's body has it; a cache that the new tokens fill from its start is not copied."""
    q, k, v, past_key, past_value, past = inputs
    new, capacity = q.shape[2], past_key.shape[2]
    window = int(attribute(node, "window", 0))
    if capacity == new:
        keys, values = k, v
    else:
        keys, values = (_tensor_scatter(_SCATTER, [c, x, past]) for c, x in ((past_key, k), (past_value, v)))
    plain = capacity == new and (not window or new <= window)
    mask = None
    if not plain:
        query_at = past.reshape(-1, 1, 1, 1) + torch.arange(new).reshape(1, 1, -1, 1)
        distance = query_at - torch.arange(capacity)
        mask = (distance >= 0) & (distance < window) if window else distance >= 0
    y = attend(q, keys, values, mask, float(attribute(node, "scale")), float(attribute(node, "softcap", 0.0)), plain)
    return y, keys, values


_SCATTER = ir.node("TensorScatter", [], {"axis": 2})


def _text(node: ir.Node, name: str, default: str) -> str:
    text = node.attributes.get(name)
    return default if text is None else str(text.value)
