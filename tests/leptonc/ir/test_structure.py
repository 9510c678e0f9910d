"""Structure and edits: layers, heads and linear layers read off real graphs; small edits on small ones."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from leptonc.ir import edit
from leptonc.ir.dialect import count_ops, module_of
from leptonc.ir.structure import layer_of, linears, structure
from tests.leptonc import models


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("model.layers.3.self_attn.q_proj", "model.layers.3"),
        ("model.layers.12", "model.layers.12"),
        ("transformer.h.0.mlp.c_fc.weight", "transformer.h.0"),
        ("model.norm", ""),
        ("lm_head", ""),
        ("", ""),
    ],
)
def test_layers_of_paths(path: str, layer: str) -> None:
    assert layer_of(path) == layer


def test_llama() -> None:
    model = models.captured("tiny-llama").model
    found = structure(model)
    assert found.residual == 64
    assert [layer.path for layer in found.layers] == [f"model.layers.{i}" for i in range(3)]
    for layer in found.layers:
        assert (layer.heads, layer.kv_heads, layer.head_dim, layer.window) == (4, 2, 16, 0)
        assert layer.mlp_channels == 160
        assert {path.rpartition(".")[2]: shape for path, shape in layer.linears.items()} == {
            "q_proj": (64, 64), "k_proj": (32, 64), "v_proj": (32, 64), "o_proj": (64, 64),
            "gate_proj": (160, 64), "up_proj": (160, 64), "down_proj": (64, 160),
        }  # fmt: skip
    assert set(found.layers[1].linears) < {path for path, _ in models.reference("tiny-llama").named_modules()}
    head = linears(model)[-1]
    assert (head.path, head.shape, head.transposed, head.bias) == ("lm_head", (512, 64), True, None)


def test_gemma3() -> None:
    found = structure(models.captured("tiny-gemma3").model)
    assert [layer.window for layer in found.layers] == [8, 8, 0, 8]
    assert {(layer.heads, layer.kv_heads, layer.head_dim) for layer in found.layers} == {(4, 1, 32)}
    assert found.residual == 64


def test_bert() -> None:
    found = structure(models.captured("tiny-bert").model)
    assert [layer.path for layer in found.layers] == [f"encoder.layer.{i}" for i in range(3)]
    assert {(layer.heads, layer.kv_heads, layer.head_dim) for layer in found.layers} == {(4, 4, 16)}
    assert {layer.mlp_channels for layer in found.layers} == {160}
    assert found.residual == 64


def test_gpt2_keeps_its_weights_turned() -> None:
    model = models.captured("tiny-gpt2").model
    by_path = {linear.path: linear for linear in linears(model)}
    qkv = by_path["transformer.h.0.attn.c_attn"]
    assert (qkv.shape, qkv.transposed) == ((192, 64), False)
    assert qkv.bias is not None
    assert qkv.bias.name == "transformer.h.0.attn.c_attn.bias"
    assert qkv.y.producer().op_type == "Add"  # type: ignore[union-attr]
    assert structure(model).layers[0].mlp_channels == 256


# Edits


def chain() -> ir.Model:
    return ir.from_onnx_text(
        """<ir_version: 11, opset_import: ["": 24]>
        agraph (float[2, 3] x) => (float[2, 3] z) <float[3] c = {1, 2, 3}> {
            [first] y = Mul (x, c)
            [second] z = Add (y, c)
            [third] unused = Neg (y)
            [fourth] again = Mul (x, c)
        }"""
    )


def nodes(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


def test_producers_users_and_constants() -> None:
    model = chain()
    x, (mul, add, neg, again) = model.graph.inputs[0], list(model.graph)
    y, z = mul.outputs[0], add.outputs[0]
    assert edit.producer(y) is mul
    assert edit.producer(y, "Mul") is mul
    assert edit.producer(y, "Add") is None
    assert edit.producer(y, "Mul", "com.microsoft") is None
    assert edit.producer(x) is None
    assert edit.producer(None) is None
    assert edit.only_user(y) is None  # Add and Neg
    assert edit.only_user(z) is None  # an output of the graph
    assert edit.only_user(again.outputs[0]) is None
    assert edit.only_user(x) is None
    neg.replace_input_with(0, again.outputs[0])
    assert edit.only_user(y) is add
    c = edit.constant(model.graph.initializers["c"])
    assert c is not None
    assert c.tolist() == [1, 2, 3]
    assert edit.constant(y) is None
    assert edit.constant(None) is None


def test_weights_are_no_constants() -> None:
    def read() -> ir.Tensor:
        raise AssertionError("a weight was read")

    lazy = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape([2]), name="w")
    assert edit.constant(ir.Value(name="w", const_value=lazy)) is None


def test_insert_and_replace() -> None:
    model = chain()
    mul, add, *_ = list(model.graph)
    mul.outputs[0].shape, mul.outputs[0].type = ir.Shape([2, 3]), ir.TensorType(ir.DataType.FLOAT)
    add.metadata_props["lepton.module"] = "layers.0"
    (double,) = edit.insert(add, "Mul", [mul.outputs[0], mul.inputs[1]], name="double")
    assert nodes(model)[:3] == ["Mul", "Mul", "Add"]
    assert module_of(double.producer()) == "layers.0"  # type: ignore[arg-type]
    assert double.name == "double"
    edit.replace(mul.outputs[0], double)
    assert add.inputs[0] is double
    assert double.shape == [2, 3]
    assert double.dtype == ir.DataType.FLOAT


def test_a_replaced_output_keeps_its_name() -> None:
    model = chain()
    add = list(model.graph)[1]
    (other,) = edit.insert(add, "Sub", list(add.inputs))
    edit.replace(add.outputs[0], other)
    assert [o.name for o in model.graph.outputs] == ["z"]
    assert model.graph.outputs[0] is other
    edit.cleanup(model)
    assert nodes(model) == ["Mul", "Sub"]


def test_insert_into_nothing() -> None:
    lone = ir.node("Neg", [ir.Value(name="x")])
    with pytest.raises(ValueError, match="in no graph"):
        edit.insert(lone, "Abs", [None])


def test_constants_are_shared() -> None:
    graph = chain().graph
    one, same, other, scalar = (edit.ints(graph, v) for v in ([1, -2], [1, -2], [1], 1))
    assert one is same
    assert len({id(v) for v in (one, other, scalar)}) == 3
    array = edit.constant(one)
    assert array is not None
    assert (array.dtype, array.tolist()) == (np.int64, [1, -2])
    assert edit.constant(scalar).shape == ()  # type: ignore[union-attr]


def test_cleanup_joins_what_is_the_same_and_drops_what_is_unread() -> None:
    model = chain()
    graph = model.graph
    mul, add, _, again = list(graph)
    (sum_,) = edit.insert(add, "Neg", [mul.outputs[0]])
    edit.initializer(graph, "unread", ir.tensor(np.zeros(2, np.float32), name="unread"))
    graph.outputs.extend([again.outputs[0], sum_])
    edit.cleanup(model)
    assert count_ops(model) == {"Add": 1, "Mul": 1, "Neg": 1}
    assert set(graph.initializers) == {"c"}
    assert [v.name for v in graph.inputs] == ["x"]
