"""Graphs of artifacts: operators that lowerings make and no others; inputs and outputs that the manifest says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import runtime_edge
from runtime_edge import graph
from runtime_edge.errors import ArtifactError, LeptonError, RequestError
from tests.runtime_edge import tiny
from tests.runtime_edge.test_verify import edit, relist

Change = Callable[[onnx.ModelProto], object]


@pytest.fixture
def root(tiny_artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_artifact, tmp_path / "m.lepton"))


def change(root: Path, how: Change, name: str = "cpu.onnx") -> None:
    model = onnx.load(str(root / name), load_external_data=False)
    how(model)
    (root / name).write_bytes(model.SerializeToString())
    relist(root, name)


def add(*nodes: onnx.NodeProto) -> Change:
    return lambda model: model.graph.node.extend(nodes)


def subgraph() -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Add", ["a", "a"], ["b"])], "inner", [], [])


def loop(model: onnx.ModelProto) -> None:
    """One that never ends: its condition stays true."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["more"], ["again"])],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("more", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("again", TensorProto.BOOL, [])],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "forever"))
    model.graph.node.append(helper.make_node("Loop", ["", "forever"], [], body=body))


def function(model: onnx.ModelProto) -> None:
    model.functions.append(helper.make_function("own", "F", ["x"], ["y"], [helper.make_node("Abs", ["x"], ["y"])], []))


def large(operator: str, sizes: list[int]) -> Change:
    def make(model: onnx.ModelProto) -> None:
        shape = helper.make_tensor("wide", TensorProto.INT64, [len(sizes)], sizes)
        model.graph.initializer.append(shape)
        inputs = ["wide"] if operator == "ConstantOfShape" else ["logits", "wide"]
        model.graph.node.append(helper.make_node(operator, inputs, ["much"]))

    return make


def large_constant(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["wide"], value_ints=[2**20, 2**20]))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["wide"], ["much"]))


GRAPHS: dict[str, tuple[Change, str]] = {
    "an endless loop": (loop, "'Loop'"),
    "a condition": (
        add(helper.make_node("If", ["x"], ["y"], then_branch=subgraph(), else_branch=subgraph())),
        "'If'",
    ),
    "a scan": (add(helper.make_node("Scan", ["x"], ["y"], body=subgraph(), num_scan_inputs=1)), "'Scan'"),
    "a sequence": (add(helper.make_node("SequenceMap", ["x"], ["y"], body=subgraph())), "'SequenceMap'"),
    "a graph in another operator": (add(helper.make_node("Add", ["x", "x"], ["y"], body=subgraph())), "graphs in them"),
    "a list of graphs": (add(helper.make_node("Add", ["x", "x"], ["y"], body=[subgraph()])), "graphs in them"),
    "text": (add(helper.make_node("StringConcat", ["x", "x"], ["y"])), "'StringConcat'"),
    "another domain": (add(helper.make_node("Tokenizer", ["x"], ["y"], domain="ai.onnx.contrib")), "contrib.Tokenizer"),
    "an operator of ONNX elsewhere": (add(helper.make_node("Add", ["x"], ["y"], domain="com.microsoft")), "soft.Add"),
    "a function": (function, "functions"),
    "a training": (lambda model: model.training_info.add(), "a training"),
    "zeros": (large("ConstantOfShape", [2**20, 2**20]), "ConstantOfShape of more"),
    "many dimensions": (large("ConstantOfShape", [64] * 8), "ConstantOfShape of more"),
    "expanded": (large("Expand", [2**40]), "Expand of more"),
    "tiled": (large("Tile", [1, 2**15, 2**15]), "Tile of more"),
    "zeros of a constant": (large_constant, "ConstantOfShape of more"),
    "logits of text": (
        lambda model: model.graph.output[0].type.CopyFrom(
            helper.make_tensor_type_proto(TensorProto.STRING, [1, 1, 300])
        ),
        "logits: expected float32",
    ),
    "logits of a sequence": (
        lambda model: model.graph.output[0].type.CopyFrom(
            helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
        ),
        "logits: expected float32 .*, found no tensor",
    ),
    "logits of another number": (
        lambda model: setattr(model.graph.output[0].type.tensor_type, "elem_type", TensorProto.DOUBLE),
        "logits: expected float32",
    ),
    "logits without a type": (lambda model: model.graph.output[0].ClearField("type"), "logits: expected float32"),
    "logits of another vocabulary": (
        lambda model: setattr(model.graph.output[0].type.tensor_type.shape.dim[2], "dim_value", 301),
        r"logits: expected float32 \['\?', '\?', 300\] .*301",
    ),
    "logits of another rank": (
        lambda model: model.graph.output[0].type.tensor_type.shape.dim.add(),
        "logits: expected float32",
    ),
    "a cache of bfloat16": (
        lambda model: setattr(model.graph.input[3].type.tensor_type, "elem_type", TensorProto.BFLOAT16),
        "past_key_values.0.key: expected float32 .*found bfloat16",
    ),
    "a cache of other heads": (
        lambda model: setattr(model.graph.input[4].type.tensor_type.shape.dim[1], "dim_value", 3),
        "past_key_values.0.value: expected float32",
    ),
    "ids of another type": (
        lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", TensorProto.INT32),
        "input_ids: expected int64",
    ),
    "an input more": (
        lambda model: model.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])),
        r"1 unknown \['x'\]",
    ),
    "an output less": (lambda model: model.graph.output.pop(), "1 missing"),
    "an output twice": (lambda model: model.graph.output.append(model.graph.output[0]), "'logits' twice"),
    "no graph": (lambda model: model.ClearField("graph"), "expected one graph, found 0"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_that_no_artifact_has_is_refused(name: str, root: Path) -> None:
    how, message = GRAPHS[name]
    change(root, how)
    for action in (runtime_edge.verify, runtime_edge.load):
        with pytest.raises(ArtifactError, match=message) as caught:
            action(root)
        assert caught.value.hint
        assert caught.value.message.startswith("cpu.onnx: ")


def _buffers(axes: dict[int, int] | None = None, dtype: str = "float32") -> Callable[[dict[str, Any]], None]:
    """Gives buffers of states other sizes and another type: keys alone where the last axis is meant."""

    def change(data: dict[str, Any]) -> None:
        for state in data["parts"][0]["states"]:
            for at, buffer in enumerate(state["buffers"]):
                for axis, size in (axes or {}).items():
                    if axis != 3 or at == 0:
                        buffer["dims"][axis] = size
                buffer["dtype"] = dtype

    return change


def _vocabulary(size: int) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["parts"][0]["outputs"][0]["dims"].__setitem__(-1, size)


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a cache of bfloat16": (_buffers(dtype="bfloat16"), "expected a cache of float32, float16, int8"),
    "a cache of float16": (_buffers(dtype="float16"), "past_key_values.0.key: expected float16"),
    "a huge cache": (_buffers({1: 2**31 - 1}), "at most 67108864 bytes for a token"),
    "huge keys": (_buffers({1: 2**31 - 1, 3: 2**31 - 1}), "at most 67108864 bytes for a token"),
    "wide keys": (_buffers({3: 32}), "past_key_values.0.key: expected float32"),
    "other heads": (_buffers({1: 4}), "past_key_values.0.key: expected float32"),
    "a huge vocabulary": (_vocabulary(2**31 - 1), "logits: expected float32"),
    "a layer less": (lambda data: data["parts"][0]["states"].pop(), "unknown"),
    "a huge pad token": (lambda data: data["tokenizer"].update(pad_token_id=2**62), "pad_token_id: expected ids below"),
    "a negative pad token": (
        lambda data: data["tokenizer"].update(pad_token_id=-1),
        "pad_token_id: expected ids below",
    ),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_that_is_not_the_graphs_is_refused(name: str, root: Path) -> None:
    how, message = MANIFESTS[name]
    edit(root, how)
    with pytest.raises(ArtifactError, match=message):
        runtime_edge.load(root)


@pytest.mark.parametrize(("vocab_size", "token"), [(None, 2**64 - 1), (None, -1), (6, 6)])
def test_an_encoders_ids_are_bounded_too(vocab_size: int | None, token: int, tmp_path: Path) -> None:
    tiny.write_encoder(tmp_path)
    edit(tmp_path, lambda data: data["tokenizer"].update(pad_token_id=token, vocab_size=vocab_size))
    with pytest.raises(ArtifactError, match=r"tokenizer\.pad_token_id: expected ids below"):
        runtime_edge.load(tmp_path)


def test_huge_length_is_no_fault_until_it_is_asked_for(root: Path) -> None:
    edit(root, lambda data: data["settings"].update(max_seq_len=2**31 - 1))
    with runtime_edge.load(root, threads=1) as model:
        assert len(model.generate([1, 2, 3], max_new_tokens=2).token_ids) == 2


def test_cache_that_memory_does_not_hold_is_our_error() -> None:
    from runtime_edge.cache import KVCache
    from runtime_edge.manifest import CacheLayer

    layers = (CacheLayer(kv_heads=2**12, key_dim=2**12, value_dim=2**12),)
    cache = KVCache(tiny.decoder(9, 2**31 - 1, layers))
    with pytest.raises(RequestError, match="expected memory for"):
        cache.reserve(2**31 - 1)


def test_encoder_of_another_width_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "e.lepton"
    root.mkdir()
    tiny.write_encoder(root)
    assert runtime_edge.verify(root)
    edit(root, lambda data: data["parts"][0]["outputs"][0].update(dims=["batch", 7]))
    with pytest.raises(ArtifactError, match=r"embeddings: expected float32 \['\?', 7\] .*found float32 \['\?', 6\]"):
        runtime_edge.load(root)


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "tensorrt-x", ""])
def test_variant_for_a_backend_that_is_none(backend: str, root: Path) -> None:
    edit(root, lambda data: data["variants"][0].update(backend=backend))
    for wanted in (None, "onnxruntime-cuda", "onnxruntime", "tensorrt"):
        with pytest.raises(LeptonError, match="variants: expected one for") as caught:
            runtime_edge.load(root, backend=wanted)
        assert caught.value.hint


INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT
LEAST, MINUS = np.array([-(2**63)]), np.array([-1])
node = helper.make_node
# By their name: constants of a graph, nodes that make `divided`, and whether the graph is right.
DIVISIONS: dict[str, tuple[dict[str, np.ndarray], list[onnx.NodeProto], bool]] = {
    "the least by -1": ({"a": LEAST, "b": MINUS}, [node("Div", ["a", "b"], ["divided"])], False),
    "by -1 of a run": (
        {"a": LEAST, "b": MINUS, "zero": np.array([0])},
        [
            node("Mul", ["past_length", "zero"], ["c"]),
            node("Add", ["c", "b"], ["d"]),
            node("Div", ["a", "d"], ["divided"]),
        ],
        False,
    ),
    "by zero": ({"a": LEAST, "b": np.array([0])}, [node("Div", ["a", "b"], ["divided"])], False),
    "32 bits": (
        {"a": np.array([-(2**31)], np.int32), "b": np.array([-1], np.int32)},
        [node("Div", ["a", "b"], ["divided"])],
        False,
    ),
    "a cast to integers that names itself otherwise": (
        {"a": LEAST, "b": MINUS},
        [node("Cast", ["a"], ["c"], to=INT64, saturate=1), node("Div", ["c", "b"], ["divided"])],
        False,
    ),
    "a constant named by another tensor": (
        {"a": LEAST, "b": MINUS, "shape": np.array([1])},
        [
            node("ConstantOfShape", ["shape"], ["c"], value=numpy_helper.from_array(np.array([5]), "b")),
            node("Div", ["a", "b"], ["divided"]),
        ],
        False,
    ),
    "in no order": (
        {"a": LEAST, "b": MINUS},
        [node("Div", ["c", "b"], ["divided"]), node("Identity", ["a"], ["c"])],
        False,
    ),
    "a circle": ({"b": MINUS}, [node("Div", ["c", "b"], ["divided"]), node("Identity", ["c"], ["c"])], False),
    "a length by a constant": ({"b": np.array([2])}, [node("Div", ["past_length", "b"], ["divided"])], True),
    "floating point": (
        {"b": np.array([-1], np.float32)},
        [node("Cast", ["past_length"], ["c"], to=FLOAT), node("Div", ["c", "b"], ["divided"])],
        True,
    ),
}


@pytest.mark.parametrize("name", DIVISIONS)
def test_divisions_that_end_the_process_are_refused(name: str, root: Path) -> None:
    constants, nodes, is_right = DIVISIONS[name]

    def how(model: onnx.ModelProto) -> None:
        model.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in constants.items())
        model.graph.node.extend(nodes)

    change(root, how)
    if is_right:
        with runtime_edge.load(root, threads=1) as model:
            assert len(model.generate([1, 2, 3], max_new_tokens=2).token_ids) == 2
    else:
        with pytest.raises(ArtifactError, match=r"expected integers divided by a positive constant, found 'a|'c"):
            runtime_edge.load(root)


def test_a_constant_twice_is_refused(root: Path) -> None:
    values = [np.array([5]), MINUS]
    change(root, lambda model: model.graph.initializer.extend(numpy_helper.from_array(each, "b") for each in values))
    with pytest.raises(ArtifactError, match="expected each constant once, found 'b' twice"):
        runtime_edge.load(root)


def test_operators_are_those_of_the_dialect_and_the_lowerings() -> None:
    dialect = pytest.importorskip("leptonc.ir.dialect", reason="the compiler is not installed")
    assert dialect.STANDARD_OPS <= graph.STANDARD  # those of earlier artifacts stay
    assert not graph.STANDARD & {"If", "Loop", "Scan", "SequenceMap"}
    backends = Path(dialect.__file__).parent.parent / "backends" / "onnxruntime"
    sources = "".join(path.read_text() for path in backends.glob("*.py"))
    assert all(f'"{operator}"' in sources for operator in graph.CONTRIB)
