"""ONNX graphs, changed as messages: numbers, names, types and lists of any field, and nodes that ask for much."""

from __future__ import annotations

import functools
import random
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.fuzzing import mutate

_INTEGERS = [n for n in mutate.NUMBERS if isinstance(n, int)]
_NAMES = ("", "input_ids", "logits", "stream0", "embedding", "past_length", "past_key_values.0.key", "a", "x" * 3000)
_OPS = ("Add", "MatMul", "Gather", "Identity", "Reshape", "Loop", "If", "Scan", "Attention", "GroupQueryAttention",
"MatMulNBits",
        "MatMulIntegerToFloat", "ConstantOfShape", "Tile", "Resize", "NoSuch")  # fmt: skip


@functools.lru_cache(maxsize=8)
def _parsed(data: bytes) -> onnx.ModelProto:
    return onnx.load_from_string(data)


def _scalar(rng: random.Random, field: Any, old: Any) -> Any:
    """Returns a value for a field that is no message."""
    bits = {field.TYPE_INT32: 31, field.TYPE_UINT32: 32, field.TYPE_UINT64: 64}.get(field.type, 63)
    if field.type == field.TYPE_ENUM:
        return rng.choice([value.number for value in field.enum_type.values])
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return rng.choice((0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), -float("inf")))
    if field.type == field.TYPE_STRING:
        return rng.choice((*_NAMES, old + "x", old[:-1], old))
    if field.type == field.TYPE_BYTES:
        return mutate.mutate(rng, old) if old else rng.randbytes(8)
    low = 0 if field.type in (field.TYPE_UINT32, field.TYPE_UINT64) else -(2**bits)
    value = rng.choice((*_INTEGERS, *_INTEGERS, old + 1, old - 1, 2 * old))
    return min(max(value, low), 2**bits - 1)


def _change(rng: random.Random, message: Any) -> None:
    """Changes one field, somewhere in a message."""
    while True:
        fields = message.ListFields()
        if not fields:
            return
        field, value = rng.choice(fields)
        if field.type != field.TYPE_MESSAGE:
            break
        if field.is_repeated:
            how = rng.randrange(12)
            if how == 0:
                del value[rng.randrange(len(value))]
                return
            if how == 1:
                value.add().CopyFrom(rng.choice(value))
                return
            if how == 2:
                rng.choice(value).CopyFrom(rng.choice(value))
                return
            message = rng.choice(value)
        else:
            message = value
    if not field.is_repeated:
        if rng.random() < 0.15:
            message.ClearField(field.name)
        else:
            setattr(message, field.name, _scalar(rng, field, value))
        return
    at, how = rng.randrange(len(value)), rng.randrange(6)
    if how == 0:
        del value[at]
    elif how == 1:
        value.extend([value[at]] * rng.choice((1, 2, 40)))
    else:
        value[at] = _scalar(rng, field, value[at])


def _greedy(rng: random.Random, model: onnx.ModelProto) -> None:
    """Puts in a node that takes much time or memory, or another operator's name, before what makes the output."""
    graph, size = model.graph, rng.choice((2**20, 2**28, 2**31, 2**40, 2**62, -1))
    how = rng.randrange(4)
    if how == 0:
        node = rng.choice(graph.node)
        node.op_type = rng.choice(_OPS)
        return
    graph.initializer.append(numpy_helper.from_array(np.array([size], np.int64), "many"))
    if how == 1:
        made = helper.make_node("ConstantOfShape", ["many"], ["much"])
    elif how == 2:
        graph.initializer.append(numpy_helper.from_array(np.zeros(9, np.float32), "few"))
        made = helper.make_node("Tile", ["few", "many"], ["much"])
    else:
        graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
        inner = helper.make_graph(
            [helper.make_node("Identity", ["on"], ["still"])], "body",
            [helper.make_tensor_value_info("at", TensorProto.INT64, []), helper.make_tensor_value_info("on",
            TensorProto.BOOL, [])],
            [helper.make_tensor_value_info("still", TensorProto.BOOL, [])],
        )  # fmt: skip
        made = helper.make_node("Loop", ["", "yes"] if size < 0 else ["many", "yes"], [], body=inner)
    graph.node.insert(0, made)
    if made.output:  # else nobody needs it, and it is left out
        first = next(node for node in graph.node if node.op_type in ("Add", "Mul", "MatMul") and len(node.input) > 1)
        graph.node.insert(1, helper.make_node("ReduceSum", ["much"], ["one"], keepdims=0))
        graph.node.insert(2, helper.make_node("Identity" if rng.random() < 0.5 else "Cast", ["one"], ["same"]))
        first.input[0] = rng.choice((first.input[0], "same", "much"))


def changed(rng: random.Random, data: bytes) -> bytes:
    """Returns a graph with one to three changes."""
    model = onnx.ModelProto()
    model.CopyFrom(_parsed(data))
    if rng.random() < 0.1:
        _greedy(rng, model)
    else:
        for _ in range(rng.choice((1, 1, 2, 3))):
            _change(rng, rng.choice((model, model.graph, rng.choice(model.graph.node))) if model.graph.node else model)
    return bytes(model.SerializeToString())
