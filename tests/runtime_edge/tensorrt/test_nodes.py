"""The nodes of a graph and their modules, read without onnx."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from runtime_edge.errors import ArtifactError
from runtime_edge.tensorrt.nodes import Node, Origins, read_nodes
from tests.runtime_edge.tensorrt.graphs import model, saved

UP, ACT = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.act_fn"


def test_reads_what_onnx_reads(tmp_path: Path) -> None:
    path = saved(tmp_path / "g.onnx", scheme="int4")
    assert read_nodes(path) == (
        Node("dq", "DequantizeLinear"),
        Node("product", "MatMul", UP),
        Node("last", "Relu", ACT),
    )
    assert [(node.name, node.op_type) for node in read_nodes(path)] == [
        (node.name, node.op_type) for node in onnx.load(path).graph.node
    ]


def test_other_metadata_is_no_module(tmp_path: Path) -> None:
    made = model()
    made.graph.node[0].metadata_props.add(key="namespace", value="elsewhere")
    onnx.save(made, tmp_path / "g.onnx")
    assert read_nodes(tmp_path / "g.onnx")[0].module == UP


def test_nodes_named_in_a_message(tmp_path: Path) -> None:
    origins = Origins(saved(tmp_path / "g.onnx", scheme="int4"), None)
    assert origins.named_in("Cannot compile operation 'last' (see product_2)") == [f"last of {ACT}"]
    assert origins.named_in("{ForeignNode[product...last]}") == [f"product of {UP}", f"last of {ACT}"]
    assert origins.named_in("dq has no module") == []
    assert origins.of("", 1) == f" of {UP}"
    assert origins.of("", 99) == ""


def test_a_file_cut_anywhere_is_refused_or_read_in_part(tmp_path: Path) -> None:
    whole = saved(tmp_path / "g.onnx", scheme="int4", block=128).read_bytes()
    messages = []
    for length in range(1, 400):
        (tmp_path / "cut.onnx").write_bytes(whole[:length])
        try:
            assert len(read_nodes(tmp_path / "cut.onnx")) <= 3
        except ArtifactError as error:
            messages.append(error.message)
    assert len(messages) > 300
    assert all(message.startswith("cut.onnx: expected an ONNX graph") for message in messages)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    data = saved(tmp_path / "g.onnx").read_bytes()
    (tmp_path / "g.onnx").write_bytes(data.replace(b"product", b"prod\xffct"))
    with pytest.raises(ArtifactError, match="names of nodes in UTF-8"):
        read_nodes(tmp_path / "g.onnx")
