"""The operator set that a graph for ONNX Runtime declares: no newer than what is in the graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import defs

from leptonc.backends.onnxruntime.attention import MS
from leptonc.backends.onnxruntime.opset import OLDEST, declare
from leptonc.ir import dialect

MOST_OF_1_23 = 23  # ONNX Runtime 1.23, the last for Python 3.10, refuses a newer one


def test_between_the_oldest_and_the_dialects_operators_only_grow() -> None:
    """What `declare` relies on: an older schema's attributes have the same defaults, its inputs the same places."""
    changed = []
    for name in sorted(dialect.STANDARD_OPS):
        schemas = [s for s in defs.get_all_schemas_with_history() if (s.name, s.domain) == (name, "")]
        schemas = sorted((s for s in schemas if s.since_version <= dialect.OPSET), key=lambda s: s.since_version)
        first = max((s.since_version for s in schemas if s.since_version <= OLDEST), default=0)
        used = [s for s in schemas if s.since_version >= first]
        for old, new in itertools.pairwise(used):
            same = {key: str(each.default_value) for key, each in old.attributes.items()}.items() <= {
                key: str(each.default_value) for key, each in new.attributes.items()
            }.items()
            inputs = [each.name for each in new.inputs[: len(old.inputs)]] == [each.name for each in old.inputs]
            if not (same and inputs and len(old.outputs) <= len(new.outputs)):
                changed.append(f"{name} {old.since_version} to {new.since_version}")
    assert changed == []


def model(text: str, **weights: Any) -> ir.Model:
    """A graph from its text, at the dialect's operator set, with its initializers."""
    header = f'<ir_version: 11, opset_import: ["" : {dialect.OPSET}, "{MS}" : 1, "lepton" : 1]>'
    found = ir.from_onnx_text(f"{header} g {text}")
    for name, array in weights.items():
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        found.graph.register_initializer(value)
    return found


@pytest.mark.parametrize(
    ("text", "opset", "version"),
    [
        ("(float[2] x) => (float[2] y) { y = Relu(x) }", 18, 8),
        ("(float[2] x) => (float[2] y) { y = Gelu(x) }", 20, 9),
        ("(float[2] x) => (float[2] y) { y = Swish(x) }", 24, 12),
        ("(float[2,4] x, float[4] w) => (float[2,4] y) { y = RMSNormalization(x, w) }", 23, 11),
        # Newer attributes and types count where they are used.
        ("(float[2] x) => (float16[2] y) { y = Cast <to = 10> (x) }", 18, 8),
        ("(float[2] x) => (int4[2] y) { y = Cast <to = 22> (x) }", 21, 10),
        ("(float[2] x, float s, int8 z) => (int8[2] q, float[2] y)"
         " { q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }", 18, 8),
        # The oldest of all operators is not enough for one of them.
        ("(float[2,4] x, float[4] w) => (float[2,4] y) { a = Relu(x) y = RMSNormalization(a, w) }", 23, 11),
        # Inside of a branch.
        ("(bool c, float[2] x) => (float[2] y) { y = If (c) <"
         "then_branch = t () => (float[2] a) { a = Gelu (x) }, else_branch = e () => (float[2] b) { b = Relu (x) }> }",
         20, 9),
    ],
)  # fmt: skip
def test_the_oldest_that_has_the_form(text: str, opset: int, version: int) -> None:
    graph = model(text)
    declare(graph)
    assert (graph.graph.opset_imports[""], graph.ir_version) == (opset, version)
    if opset > OLDEST:  # one less is refused by ONNX's own checker
        onnx.checker.check_model(ir.to_proto(graph), full_check=MS not in graph.graph.opset_imports)
        graph.graph.opset_imports[""] = opset - 1
        with pytest.raises((onnx.checker.ValidationError, onnx.shape_inference.InferenceError)):
            onnx.checker.check_model(ir.to_proto(graph), full_check=True)


def test_domains_that_are_not_used_go_and_codes_are_made_by_the_operator_of_onnx_runtime() -> None:
    graph = model("(float[2] x, float s, uint8 z) => (uint8[2] q) { q = QuantizeLinear (x, s, z) }")
    declare(graph)
    assert dict(graph.graph.opset_imports) == {"": OLDEST, MS: 1}
    assert [(node.domain, node.op_type) for node in graph.graph] == [(MS, "QuantizeLinear")]
    plain = model("(float[2] x) => (float[2] y) { y = Relu(x) }")
    declare(plain)
    assert dict(plain.graph.opset_imports) == {"": OLDEST}


def test_weights_of_four_bits_need_the_format_that_has_them() -> None:
    codes = ir.Value(name="w", type=ir.TensorType(ir.DataType.UINT4), shape=ir.Shape([2]))
    codes.const_value = ir.PackedTensor(np.array([0x21], np.uint8), dtype=ir.DataType.UINT4, shape=ir.Shape([2]))
    graph = model("(float[2] x) => (float[2] y) { y = Relu(x) }")
    graph.graph.register_initializer(codes)
    declare(graph)
    assert graph.ir_version == 10


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("sample:tiny-llama", {"weights": "int4"}),
        ("sample:tiny-gemma3", {"weights": "int4"}),
        ("sample:tiny-bert", {"weights": "int4"}),
        ("sample:tiny-bert", {"weights": "int8", "activations": "int8"}),
        ("sample:tiny-llama", {"weights": "int4", "prefill": "shared"}),
    ],
    ids=str,
)
def test_every_graph_of_an_artifact_opens_in_1_23(
    source: str, options: dict[str, str], artifact: Callable[..., Path]
) -> None:
    graphs = [onnx.load(path, load_external_data=False) for path in artifact(source, **options).glob("*.onnx")]
    assert len(graphs) == 1 + ("prefill" in options)
    for graph in graphs:
        sets = {each.domain: each.version for each in graph.opset_import}
        assert sets.keys() == {"", MS}
        assert sets[""] <= MOST_OF_1_23
        assert graph.ir_version <= 11
        assert not [node for node in graph.graph.node if node.op_type == "QuantizeLinear" and not node.domain]
