"""Attention for ONNX Runtime: GroupQueryAttention over a cache, ONNX's own without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.errors import InputError
from leptonc.ir import edit
from leptonc.ir.dialect import DOMAIN, attribute, module_of
from leptonc.passes.base import Config, Pass

MS = "com.microsoft"
# GroupQueryAttention's kernel takes multiples of these as widths of heads and of rotary tables.
HEAD_MULTIPLE = 8
TABLE_MULTIPLE = 8


@dataclass
class Heads:
    """The origin of queries or keys: a 3-D value that is split into heads, maybe normalized, maybe rotated.

    Attributes:
        value: [batch, length, heads * dim] before it was split.
        heads: Number of heads.
        norm: The RMSNormalization over a head, or None.
        rotary: The RotaryEmbedding, or None.
    """

    value: ir.Value
    heads: int
    norm: ir.Node | None = None
    rotary: ir.Node | None = None


def heads_of(value: ir.Value | None) -> Heads | None:
    """Walks back from [batch, heads, length, dim] to the 3-D value that it was made from, or returns None."""
    if value is None or value.shape is None or len(value.shape) != 4 or not isinstance(value.shape[1], int):
        return None
    heads, dim = value.shape[1], value.shape[3]
    rotary = edit.producer(value, "RotaryEmbedding")
    at = rotary.inputs[0] if rotary is not None else value
    norm, turned = None, False
    while at is not None and (node := at.producer()) is not None:
        if node.op_type == "RMSNormalization" and norm is None and node.inputs[1] and node.inputs[1].shape == [dim]:
            norm = node
        elif node.op_type == "Transpose" and not turned and list(node.attributes["perm"].value) == [0, 2, 1, 3]:
            turned = True
        elif node.op_type == "Reshape" and turned:
            before = node.inputs[0]
            if before is None or before.shape is None or len(before.shape) != 3 or before.shape[2] != heads * dim:
                return None
            return Heads(before, heads, norm, rotary)
        else:
            return None
        at = node.inputs[0]
    return None


def merged_output(y: ir.Value) -> ir.Value | None:
    """Returns the merged form [batch, length, heads * dim] of the attention's output, or None where it has none."""
    turn = edit.only_user(y)
    if turn is None or turn.op_type != "Transpose" or list(turn.attributes["perm"].value) != [0, 2, 1, 3]:
        return None
    reshape = edit.only_user(turn.outputs[0])
    if reshape is None or reshape.op_type != "Reshape":
        return None
    shape = reshape.outputs[0].shape
    return reshape.outputs[0] if shape is not None and len(shape) == 3 else None


@dataclass(frozen=True)
class GroupQueryConfig(Config):
    """`kv_cache`: number format of keys and values in the cache, float32 or int8."""

    kv_cache: str = "float32"


class CachedAttentionToGroupQuery(Pass):
    """Replaces `lepton.CachedAttention` by `GroupQueryAttention`, with the rotary embedding inside it.

    1. Queries and keys that are rotated by the same tables are rotated inside; others before it. Norms over a head come
       before it: the CPU kernel refuses its own inputs for them.
    2. Keys and values need the same width for the kernel; else the call stays, and runs as its body.
    3. The cache is written in place when the runtime binds one buffer as past and present.
    4. With scales, keys and values are 8-bit integers there: rounded as they are written, and read as such.
    5. Scores are not scaled: the tables of the rotary embedding are, each side by the root, and cached keys with them.
       For one query the kernel then multiplies by keys as they lie; with a scale it would pack them anew each time.

    Args:
        scales: Steps float32 [heads, width] of each cache, by the name of the graph's input. Default: a float cache.
    """

    name = "ort-group-query-attention"
    version = 3  # one head needs no axis of its own
    in_dialect = False

    def __init__(self, scales: Mapping[str, NDArray[Any]] | None = None) -> None:
        super().__init__(GroupQueryConfig("float32" if scales is None else "int8"))
        self._scales = scales

    def run(self, model: ir.Model) -> int:
        calls = [n for n in model.graph if n.op_type == "CachedAttention" and n.domain == DOMAIN]
        self._lengths: tuple[ir.Value, ir.Value] | None = None
        return sum(self._lower(model.graph, node) for node in calls)

    def _sequence_lengths(self, graph: ir.Graph, past: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Returns seqlens_k int32 [batch] (total - 1) and total_sequence_length, int32 scalar; made once."""
        if self._lengths is None:
            first = graph[0]
            ids = graph.inputs[0]
            (new,) = edit.insert(first, "Shape", [ids], {"start": 1, "end": 2}, name="lengths/Shape", module="")
            (total,) = edit.insert(first, "Add", [past, new], name="lengths/Add", module="")
            (last,) = edit.insert(first, "Sub", [total, edit.ints(graph, [1])], name="lengths/Sub", module="")
            int32 = {"to": int(ir.DataType.INT32)}
            (keys,) = edit.insert(first, "Cast", [last], int32, name="lengths/Cast", module="")
            (longest,) = edit.insert(first, "ReduceMax", [total], {"keepdims": 0}, name="lengths/Max", module="")
            (total_length,) = edit.insert(first, "Cast", [longest], int32, name="lengths/CastMax", module="")
            self._lengths = (keys, total_length)
        return self._lengths

    def _lower(self, graph: ir.Graph, node: ir.Node) -> int:
        query, key, value = (heads_of(v) for v in node.inputs[:3])
        out = merged_output(node.outputs[0])
        if query is None or key is None or value is None or out is None or value.norm or value.rotary:
            return self._left(node)
        q_shape, past_key, past_value = node.inputs[0].shape, node.inputs[3], node.inputs[4]  # type: ignore[union-attr]
        dim = int(q_shape[3])  # type: ignore[index, arg-type]
        if past_value.shape[3] != dim or dim % HEAD_MULTIPLE:  # type: ignore[union-attr, index]
            return self._left(node)
        rotary = self._shared_rotary(query, key)
        # A file stores single precision: rounded here too, a graph gives the same tables before and after writing.
        window, scale = int(attribute(node, "window", 0)), float(np.float32(attribute(node, "scale")))
        tables, root = _tables(graph, rotary, dim, scale)
        attributes: dict[str, Any] = {
            "num_heads": query.heads, "kv_num_heads": key.heads, "scale": scale if root == 1 else 1.0,
            "local_window_size": window if window else -1, "softcap": float(attribute(node, "softcap", 0.0)),
        }  # fmt: skip
        if rotary is not None:
            attributes |= {"do_rotary": 1, "rotary_interleaved": int(attribute(rotary, "interleaved", 0))}
        lengths = self._sequence_lengths(graph, node.inputs[5])  # type: ignore[arg-type]
        parts = [_prepared(graph, node, h, dim, rotary is not None) for h in (query, key, value)]
        inputs = [*parts, past_key, past_value, *lengths, *tables]
        if self._scales is not None:
            inputs += [None, None, None]  # position ids, a bias and sinks come before
            inputs += [self._integers(graph, past_key, root), self._integers(graph, past_value)]  # type: ignore[arg-type]
            attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        while inputs[-1] is None:
            inputs.pop()
        y, *presents = edit.insert(node, "GroupQueryAttention", inputs, attributes, domain=MS, outputs=3)
        y.type, y.shape = out.type, out.shape
        edit.replace(out, y)
        for old, new in zip(node.outputs[1:], presents, strict=True):
            edit.replace(old, new)
            if self._scales is not None:
                new.type = ir.TensorType(ir.DataType.INT8)
        return 1

    def _integers(self, graph: ir.Graph, past: ir.Value, times: float = 1.0) -> ir.Value:
        """Makes a cache's elements integers; returns their steps times `times`, float32 [1, heads, 1, width]."""
        assert self._scales is not None
        past.type = ir.TensorType(ir.DataType.INT8)
        steps = self._scales[str(past.name)][None, :, None] * np.float32(times)
        return edit.initializer(graph, f"{past.name}.scale", ir.tensor(steps, name=f"{past.name}.scale"))

    def _left(self, node: ir.Node) -> int:
        """Leaves a call as it is: it runs as its body, over a float cache."""
        if self._scales is not None:
            raise InputError(
                "expected attention that GroupQueryAttention can do for an int8 cache, found other in "
                f"{module_of(node)}",
                hint="leave out --kv-cache",
            )
        return 0

    @staticmethod
    def _shared_rotary(query: Heads, key: Heads) -> ir.Node | None:
        if query.rotary is None or key.rotary is None:
            return None
        same = all(a is b for a, b in zip(query.rotary.inputs[1:], key.rotary.inputs[1:], strict=True))
        alike = attribute(query.rotary, "interleaved", 0) == attribute(key.rotary, "interleaved", 0)
        table = query.rotary.inputs[1]
        fits = table is not None and table.shape is not None and int(table.shape[1]) % TABLE_MULTIPLE == 0  # type: ignore[arg-type]
        return query.rotary if same and alike and fits else None


def _tables(graph: ir.Graph, rotary: ir.Node | None, dim: int, scale: float) -> tuple[Sequence[ir.Value | None], float]:
    """Returns cosines and sines [positions, width / 2] for the attention, and the factor that they contain.

    The factor is the root of `scale` where every feature of a head is rotated and the tables are constants. Else it is
    1, and the tables are as they were.
    """
    if rotary is None:
        return (None, None), 1.0
    tables = [table for table in rotary.inputs[1:3] if table is not None]
    if scale <= 0 or scale == 1 or any(edit.constant(t) is None or 2 * int(t.shape[1]) != dim for t in tables):  # type: ignore[index, arg-type]
        return tables, 1.0
    return [_times(graph, table, scale**0.5) for table in tables], scale**0.5


def _times(graph: ir.Graph, table: ir.Value, factor: float) -> ir.Value:
    """Returns a constant times a factor, registered once for all users."""
    name = f"{table.name}.times_" + f"{factor:.9g}".replace(".", "_")  # a number after a dot would be a layer's
    if name in graph.initializers:
        return graph.initializers[name]
    array = edit.constant(table)
    assert array is not None
    return edit.initializer(graph, name, ir.tensor(array * array.dtype.type(factor), name=name))


def _prepared(graph: ir.Graph, before: ir.Node, heads: Heads, dim: int, rotated_inside: bool) -> ir.Value:
    """Returns the 3-D value, its heads normalized, and rotated where the attention does not rotate them."""
    value = heads.value
    if heads.norm is not None:
        stem, attributes = heads.norm.name, {"axis": -1, "epsilon": float(attribute(heads.norm, "epsilon"))}
        several = heads.heads > 1  # one head's features are the last axis already
        if several:
            shape = edit.ints(graph, [0, 0, heads.heads, dim])
            (value,) = edit.insert(before, "Reshape", [value, shape], name=f"{stem}/heads")
        (value,) = edit.insert(
            before, "RMSNormalization", [value, heads.norm.inputs[1]], attributes, name=f"{stem}/each"
        )
        if several:
            merged = edit.ints(graph, [0, 0, heads.heads * dim])
            (value,) = edit.insert(before, "Reshape", [value, merged], name=f"{stem}/merged")
    if heads.rotary is not None and not rotated_inside:
        attributes = {"num_heads": heads.heads, "interleaved": int(attribute(heads.rotary, "interleaved", 0))}
        if "rotary_embedding_dim" in heads.rotary.attributes:
            attributes["rotary_embedding_dim"] = int(attribute(heads.rotary, "rotary_embedding_dim"))
        (value,) = edit.insert(
            before, "RotaryEmbedding", [value, *heads.rotary.inputs[1:]], attributes, name=f"{heads.rotary.name}/merged"
        )
    value.type, value.shape = heads.value.type, heads.value.shape
    return value


@dataclass(frozen=True)
class WholeScoresConfig(Config):
    """`tokens`: the most that a run has; `length`: tokens of the cache, those of the run among them."""

    tokens: int
    length: int


class WholeScores(Pass):
    """Lets GroupQueryAttention compute all scores of a run at once, where they take `BYTES` at most.

    Its other way, in tiles, needs less memory; it packs the keys anew at each head, which is most of one token's time
    there, and half of a prompt's. It is left where an attention sink is given (a number that each row's softmax counts
    too): one of minus infinity changes nothing else. An int8 cache is read as fast in tiles.
    """

    name = "ort-whole-scores"
    version = 2  # a bound on memory
    in_dialect = False
    config: WholeScoresConfig
    SINK = 11  # the kernel's input
    BYTES = 2**27

    def run(self, model: ir.Model) -> int:
        graph, count = model.graph, 0
        for node in [n for n in graph if n.op_type == "GroupQueryAttention"]:
            heads = int(attribute(node, "num_heads"))
            if len(node.inputs) > self.SINK or 4 * heads * self.config.tokens * self.config.length > self.BYTES:
                continue
            name = f"no_sink_{heads}"
            sink = edit.initializer(graph, name, ir.tensor(np.full(heads, -np.inf, np.float32), name=name))
            node.resize_inputs(self.SINK + 1)
            node.replace_input_with(self.SINK, sink)
            count += 1
        return count


class PackQueryKeyValue(Pass):
    """Hands GroupQueryAttention one packed value where queries, keys and values lie side by side already.

    They do behind a Split or Slices, in that order, of one value, as joined linear layers, Phi-3 and GPT-2 give it.
    """

    name = "ort-pack-qkv"
    in_dialect = False

    def run(self, model: ir.Model) -> int:
        count = 0
        for node in [n for n in model.graph if n.op_type == "GroupQueryAttention"]:
            whole = self._whole(list(node.inputs[:3]))
            if whole is not None:
                node.replace_input_with(0, whole)
                node.replace_input_with(1, None)
                node.replace_input_with(2, None)
                count += 1
        return count

    @staticmethod
    def _whole(parts: list[ir.Value | None]) -> ir.Value | None:
        makers = [p.producer() if p is not None else None for p in parts]
        first = makers[0]
        if first is None or any(m is None or m.inputs[0] is not first.inputs[0] for m in makers):
            return None
        whole = first.inputs[0]
        if whole is None or whole.shape is None:
            return None
        if first.op_type == "Split":
            return whole if first.outputs == tuple(parts) or list(first.outputs) == parts else None
        at = 0
        for part, maker in zip(parts, makers, strict=True):
            if maker is None or maker.op_type != "Slice" or part is None or part.shape is None:
                return None
            start, axis = edit.constant(maker.inputs[1]), edit.constant(maker.inputs[3])
            if start is None or axis is None or int(start[0]) != at or int(axis[0]) != len(part.shape) - 1:
                return None
            at += int(part.shape[-1])  # type: ignore[arg-type]
        return whole if at == whole.shape[-1] else None


class AttentionOfMerged(Pass):
    """Makes an encoder's `Attention` read and write heads side by side, and add its mask as numbers.

    ONNX Runtime's `Attention` takes about two thirds of the time of its `MultiHeadAttention` where there is a mask, and
    adding numbers less than choosing by truth values. Heads that are normalized or rotated by themselves stay apart.
    """

    name = "ort-attention"
    in_dialect = False

    def run(self, model: ir.Model) -> int:
        graph, count = model.graph, 0
        added: dict[ir.Value, ir.Value] = {}
        for node in [n for n in graph if n.op_type == "Attention" and not n.domain]:
            mask = node.inputs[3] if len(node.inputs) > 3 else None
            if mask is not None and mask.dtype == ir.DataType.BOOL:
                if mask not in added:
                    added[mask] = _added(graph, node, mask)
                node.replace_input_with(3, added[mask])
            heads, out = [heads_of(value) for value in node.inputs[:3]], merged_output(node.outputs[0])
            plain = [h for h in heads if h is not None and h.norm is None and h.rotary is None]
            if len(plain) != 3 or out is None or any(use is not None for use in node.inputs[4:]):
                continue
            counts = {"q_num_heads": plain[0].heads, "kv_num_heads": plain[1].heads}
            attributes = {key: attr.value for key, attr in node.attributes.items()} | counts
            inputs = [*(h.value for h in plain), *node.inputs[3:4]]
            (y,) = edit.insert(node, "Attention", inputs, attributes, name=f"{node.name}/merged")
            edit.replace(out, y)
            count += 1
        return count + len(added)


def _added(graph: ir.Graph, node: ir.Node, mask: ir.Value) -> ir.Value:
    """Returns a boolean mask as numbers to add to scores: 0, or the least float32, which softmax maps to 0."""
    zero, least = (
        edit.initializer(graph, name, ir.tensor(np.float32(value), name=name))
        for name, value in (("mask.zero", 0), ("mask.least", np.finfo(np.float32).min))
    )
    (bias,) = edit.insert(node, "Where", [mask, zero, least], name=f"{mask.name}/added")
    bias.shape, bias.type = mask.shape, ir.TensorType(ir.DataType.FLOAT)
    return bias
