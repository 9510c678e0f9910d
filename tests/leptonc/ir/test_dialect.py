"""The verifier: each rule of the dialect, broken in a small graph, is named with the node and what ran last."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from leptonc.ir.dialect import DOMAIN, MODULE_KEY, DialectError, attribute, count_ops, functions, module_of, verify

CACHE = ["batch", 2, "capacity", 8]


def value(name: str, shape: list[int | str], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def small() -> ir.Model:
    """One attention over a cache, and a linear layer behind it."""
    q = value("q", ["batch", 4, "length", 8])
    k, v = (value(n, ["batch", 2, "length", 8]) for n in "kv")
    past = [value(f"past_key_values.0.{kind}", CACHE) for kind in ("key", "value")]
    length = value("past_length", ["batch"], ir.DataType.INT64)
    attend = ir.node(
        "CachedAttention", [q, k, v, *past, length], {"scale": 0.5, "softcap": 0.0, "window": 0},
        domain=DOMAIN, num_outputs=3, name="attend",
    )  # fmt: skip
    attend.metadata_props[MODULE_KEY] = "layers.0.attn"
    for output, name in zip(attend.outputs, ("y", "present.0.key", "present.0.value"), strict=True):
        output.name = name
    weight = value("w", [8, 3])
    weight.const_value = ir.tensor(np.ones((8, 3), np.float32), name="w")
    linear = ir.node("MatMul", [attend.outputs[0], weight], name="linear")
    linear.outputs[0].name = "logits"
    graph = ir.Graph(
        [q, k, v, length, *past], [linear.outputs[0], *attend.outputs[1:]], nodes=[attend, linear],
        initializers=[weight], opset_imports={"": 24, DOMAIN: 1}, name="small",
    )  # fmt: skip
    return ir.Model(graph, ir_version=11, functions=functions())


def attend_of(model: ir.Model) -> ir.Node:
    return next(n for n in model.graph if n.op_type == "CachedAttention")


def wrong_opset(model: ir.Model) -> None:
    model.graph.opset_imports[""] = 21


def no_data(model: ir.Model) -> None:
    model.graph.initializers["w"].const_value = None


def unknown_shape(model: ir.Model) -> None:
    tensor = ir.tensor(np.ones((8, 3), np.float32))
    lazy = ir.LazyTensor(lambda: tensor, dtype=ir.DataType.FLOAT, shape=ir.Shape(["n", 3]), name="w")
    model.graph.initializers["w"].const_value = lazy


def no_function(model: ir.Model) -> None:
    model.functions.clear()


def unknown_op(model: ir.Model) -> None:
    model.graph.append(ir.node("Einsum", [model.graph.inputs[0]], {"equation": "abcd->a"}, name="sum"))


def foreign_op(model: ir.Model) -> None:
    node = ir.node("QuickGelu", [model.graph.inputs[0]], domain="com.microsoft", name="gelu")
    node.metadata_props[MODULE_KEY] = "layers.0.mlp"
    model.graph.append(node)


def wrong_order(model: ir.Model) -> None:
    linear = next(n for n in model.graph if n.op_type == "MatMul")
    model.graph.remove(linear)
    model.graph.insert_before(attend_of(model), linear)


def dangling_output(model: ir.Model) -> None:
    model.graph.outputs.append(value("nothing", [1]))


def cache_of_another_name(model: ir.Model) -> None:
    model.graph.inputs[4].name = "cache_key"


def caches_swapped(model: ir.Model) -> None:
    node = attend_of(model)
    key, other = node.inputs[3], node.inputs[4]
    node.replace_input_with(3, other)
    node.replace_input_with(4, key)


def cache_of_a_node(model: ir.Model) -> None:
    node = attend_of(model)
    copy = ir.node("Identity", [node.inputs[3]], name="copy")
    model.graph.insert_before(node, copy)
    node.replace_input_with(3, copy.outputs[0])


def cache_dropped(model: ir.Model) -> None:
    model.graph.outputs.pop()


BROKEN: list[tuple[Callable[[ir.Model], None], str]] = [
    (wrong_opset, "expected opset 24, found 21"),
    (no_data, "initializer `w` has no data or an unknown shape"),
    (unknown_shape, "initializer `w` has no data or an unknown shape"),
    (no_function, "expected a function of the model, found lepton.CachedAttention at CachedAttention `attend`"),
    (unknown_op, "expected an op of the dialect, found ai.onnx.Einsum at Einsum `sum` of the graph"),
    (foreign_op, "expected an op of the dialect, found com.microsoft.QuickGelu at QuickGelu `gelu` of layers.0.mlp"),
    (wrong_order, "input `y` is used before it is made at MatMul `linear`"),
    (dangling_output, "output `nothing` is made by nobody"),
    (cache_of_another_name, "expected a cache input past_key_values.*.key, found `cache_key`"),
    (caches_swapped, "expected a cache input past_key_values.*.key, found `past_key_values.0.value`"),
    (cache_of_a_node, "expected a cache input past_key_values.*.key"),
    (cache_dropped, "expected the cache `present.0.value` of layer 0 among the outputs"),
]


def test_a_graph_of_the_dialect_passes() -> None:
    verify(small())


@pytest.mark.parametrize(("damage", "message"), BROKEN, ids=lambda p: getattr(p, "__name__", ""))
def test_each_rule(damage: Callable[[ir.Model], None], message: str) -> None:
    model = small()
    damage(model)
    with pytest.raises(DialectError) as caught:
        verify(model, after="some-pass")
    assert f"after some-pass: {message}" in caught.value.message
    assert caught.value.exit_code == 70
    assert "bug in Lepton" in (caught.value.hint or "")


def test_ops_are_counted_most_frequent_first() -> None:
    model = small()
    model.graph.append(ir.node("Abs", [model.graph.inputs[0]]))
    model.graph.append(ir.node("Abs", [model.graph.inputs[1]]))
    assert list(count_ops(model).items()) == [("Abs", 2), ("MatMul", 1), ("lepton.CachedAttention", 1)]


def test_attributes_and_modules() -> None:
    model = small()
    node = attend_of(model)
    assert attribute(node, "scale") == 0.5
    assert attribute(node, "window", 7) == 0
    assert attribute(node, "other", 7) == 7
    with pytest.raises(KeyError, match="CachedAttention has no attribute other"):
        attribute(node, "other")
    assert [module_of(n) for n in model.graph] == ["layers.0.attn", ""]


def test_functions_are_fresh_copies() -> None:
    (one,), (other,) = functions(), functions()
    assert one is not other
    assert (one.domain, one.name) == (DOMAIN, "CachedAttention")
