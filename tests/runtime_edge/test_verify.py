"""Every way in which an artifact can be damaged or hostile, and the message that names it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

import runtime_edge
from runtime_edge import manifest as m
from runtime_edge.errors import ArtifactError, FormatVersionError
from runtime_edge.externaldata import ExternalData, external_data
from tests.runtime_edge import tiny

Change = Callable[[Path], object]


def edit(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = root / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def edited(change: Callable[[dict[str, Any]], object]) -> Change:
    return lambda root: edit(root, change)


def entry(data: dict[str, Any], name: str) -> dict[str, Any]:
    return next(file for file in data["files"] if name in file["path"])


def blob(root: Path) -> Path:
    return next((root / "blobs").iterdir())


def relist(root: Path, name: str) -> None:
    """Makes the manifest agree with a file that was changed, so that later checks are reached."""
    data = (root / name).read_bytes()
    change = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit(root, lambda manifest: entry(manifest, name).update(change))


def flip_bit(root: Path) -> None:
    with blob(root).open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))


def link_file(root: Path) -> None:
    (root / "tokenizer.json").rename(root.parent / "elsewhere.json")
    (root / "tokenizer.json").symlink_to(root.parent / "elsewhere.json")


def link_folder(root: Path) -> None:
    (root / "blobs").rename(root.parent / "elsewhere")
    (root / "blobs").symlink_to(root.parent / "elsewhere")


def link_manifest(root: Path) -> None:
    (root / "manifest.json").rename(root.parent / "manifest.json")
    (root / "manifest.json").symlink_to(root.parent / "manifest.json")


def rename_entry(path: str) -> Change:
    def change(data: dict[str, Any]) -> None:
        entry(data, "tokenizer")["path"] = path
        data["tokenizer"]["file"] = path

    return edited(change)


def list_twice(data: dict[str, Any]) -> None:
    data["files"].append({**entry(data, "tokenizer"), "path": "Tokenizer.json"})


def drop_blob_entry(data: dict[str, Any]) -> None:
    data["files"].remove(entry(data, "blobs/"))


def nest_deeply(root: Path) -> None:
    text = (root / "manifest.json").read_text()
    config = "[" * 100_000 + "]" * 100_000
    record = f'{{"name": "p", "version": 1, "config": {{"x": {config}}}}}'
    (root / "manifest.json").write_text(f'{text[:-1]}, "passes": [{record}]}}')


def change_place(key: str, value: str) -> Change:
    """Points the graph's first external tensor elsewhere; the graph itself is listed as it then is."""

    def change(root: Path) -> None:
        graph = onnx.load(root / "cpu.onnx", load_external_data=False)
        tensor = next(one for one in graph.graph.initializer if one.data_location == TensorProto.EXTERNAL)
        next(place for place in tensor.external_data if place.key == key).value = value
        (root / "cpu.onnx").write_bytes(graph.SerializeToString())
        relist(root, "cpu.onnx")

    return change


def garble_graph(root: Path) -> None:
    (root / "cpu.onnx").write_bytes(b"\x3a\xff\xff\xff\xff\x0f" + bytes(100))
    relist(root, "cpu.onnx")


def empty_graph(root: Path) -> None:
    (root / "cpu.onnx").write_bytes(b"")
    relist(root, "cpu.onnx")


CASES: dict[str, tuple[Change, str]] = {
    "bit flipped in a blob": (flip_bit, r"blobs/\w+: expected sha256 \w+, found \w+"),
    "blob cut": (lambda root: os.truncate(blob(root), 100), r"blobs/\w+: expected \d+ bytes, found 100"),
    "blob longer": (lambda root: blob(root).open("ab").write(b"x"), r"blobs/\w+: expected \d+ bytes, found \d+"),
    "blob missing": (lambda root: blob(root).unlink(), r"blobs/\w+: expected a file of \d+ bytes, found none"),
    "tokenizer missing": (lambda root: (root / "tokenizer.json").unlink(), "tokenizer.json: expected a file"),
    "tokenizer changed": (
        lambda root: (root / "tokenizer.json").write_bytes((root / "tokenizer.json").read_bytes()[::-1]),
        "tokenizer.json: expected sha256",
    ),
    "a file more": (lambda root: (root / "blobs/run.sh").write_text("x"), "blobs/run.sh: expected only files that"),
    "a link to a file": (link_file, "tokenizer.json: expected regular files and folders, found a link"),
    "a link to a folder": (link_folder, "blobs: expected regular files and folders, found a link"),
    "manifest a link": (link_manifest, "manifest.json: expected regular files and folders, found a link"),
    "a pipe": (lambda root: os.mkfifo(root / "pipe"), "pipe: expected regular files and folders, found a pipe"),
    "path climbs": (rename_entry("../tokenizer.json"), r"`\.\.` in '\.\./tokenizer.json'"),
    "path climbs inside": (rename_entry("blobs/../tokenizer.json"), r"`\.\.` in"),
    "path absolute": (rename_entry("/etc/passwd"), "an absolute path in '/etc/passwd'"),
    "path with a backslash": (rename_entry("..\\tokenizer.json"), "a backslash in"),
    "path with a drive": (rename_entry("C:tokenizer.json"), "a colon in"),
    "path with a dot": (rename_entry("./tokenizer.json"), "an empty or `.` part in"),
    "path empty": (rename_entry(""), "an empty or `.` part in ''"),
    "path with NUL": (rename_entry("tokenizer.json\0"), "a control character in"),
    "path too long": (rename_entry("t" * 600), "a path longer than 512"),
    "manifest lists itself": (rename_entry("manifest.json"), "manifest.json itself"),
    "a file listed twice": (edited(list_twice), "files: expected each name once, found 'tokenizer.json' twice"),
    "blob not listed": (edited(drop_blob_entry), r"variant 'cpu': blobs: expected a file listed in `files`, found"),
    "unknown field": (edited(lambda data: data.update(run="rm")), "unknown field `run`"),
    "unknown field inside": (edited(lambda data: data["tokenizer"].update(x=1)), "unknown field `x`"),
    "field missing": (edited(lambda data: data.pop("tokenizer")), "missing required field `tokenizer`"),
    "size negative": (edited(lambda data: data["files"][0].update(size=-1)), r">= 0.*\$\.files\[0\]\.size"),
    "size absurd": (edited(lambda data: data["files"][0].update(size=2**60)), r"<= 70368744177664.*files\[0\]\.size"),
    "size beyond the disk": (edited(lambda data: data["files"][0].update(size=2**45)), "expected 35184372088832 bytes"),
    "sha256 malformed": (edited(lambda data: data["files"][0].update(sha256="0")), r"files\[0\]\.sha256"),
    "other format": (edited(lambda data: data.update(format="zip")), "expected format 'lepton', found 'zip'"),
    "task unknown": (edited(lambda data: data.update(task="x")), "task: expected one of text-generation, .* found 'x'"),
    "no parts": (edited(lambda data: data.update(parts=[])), "parts: expected at least one, found none"),
    "another task's parts": (
        edited(lambda data: data["parts"][0].update(outputs=[{**data["parts"][0]["outputs"][0], "role": "x"}])),
        "task text-generation: expected one part, a decoder with states, found none",
    ),
    "logits without dims": (
        edited(lambda data: data["parts"][0]["outputs"][0].update(dims=[])),
        "task text-generation: expected one part, a decoder with states, found none",
    ),
    "a part without a graph": (
        edited(lambda data: data["parts"].append({**data["parts"][0], "name": "other", "states": []})),
        "variants: expected a graph of part 'other' in one of them, found none",
    ),
    "an input twice": (
        edited(lambda data: data["parts"][0]["inputs"].append(data["parts"][0]["inputs"][0])),
        "parts.decoder: inputs: expected each name once",
    ),
    "a source that is none": (
        edited(lambda data: data["parts"][0]["inputs"][0].update(source="encoder/x")),
        "expected an output of an earlier part, of its dtype and rank, found 'encoder/x'",
    ),
    "a state of another kind": (
        edited(lambda data: data["parts"][0]["states"][0].update(kind="rnn")),
        "states: expected a kind among key_value, found 'rnn'",
    ),
    "a state of one buffer": (
        edited(lambda data: data["parts"][0]["states"][0]["buffers"].pop()),
        "states: expected keys and values",
    ),
    "a setting that is none": (edited(lambda data: data["settings"].update(run="rm")), "unknown field `run`"),
    "no variants": (edited(lambda data: data.update(variants=[])), "variants: expected at least one"),
    "eos beyond the vocabulary": (
        edited(lambda data: data["tokenizer"].update(eos_token_ids=[300])),
        "eos_token_ids: expected ids below vocab_size 300, found 300",
    ),
    "manifest not JSON": (
        lambda root: (root / "manifest.json").write_bytes(b"\x80\x04K."),
        "expected a manifest as JSON",
    ),
    "manifest not UTF-8": (
        lambda root: (root / "manifest.json").write_bytes(b'{"format": "\xff"}'),
        "expected a manifest as JSON",
    ),
    "manifest empty": (lambda root: (root / "manifest.json").write_bytes(b""), "expected a manifest as JSON"),
    "manifest huge": (
        lambda root: os.truncate(root / "manifest.json", m.MAX_MANIFEST_BYTES + 1),
        "expected at most 16777216 bytes",
    ),
    "manifest missing": (lambda root: (root / "manifest.json").unlink(), "expected manifest.json, found"),
    "manifest nested": (nest_deeply, "expected a manifest as JSON"),
    "graph reads a system file": (change_place("location", "/etc/passwd"), "found '/etc/passwd'"),
    "graph climbs": (
        change_place("location", "../secret"),
        r"cpu.onnx: expected external data in the blobs .*'\.\./se",
    ),
    "graph reads the manifest": (change_place("location", "manifest.json"), "found 'manifest.json'"),
    "graph reads memory": (change_place("location", "*/_ORT_MEM_ADDR_/*"), "_ORT_MEM_ADDR_"),
    "graph's data beyond its blob": (
        change_place("offset", str(10**9)),
        r"within the \d+ bytes of blobs/.* offset 1000",
    ),
    "graph's offset negative": (change_place("offset", "-1"), "a byte count as external data's offset, found '-1'"),
    "graph's length absurd": (change_place("length", "9" * 19), "found 9999999999999999999 bytes"),
    "graph not protobuf": (garble_graph, r"cpu.onnx: expected an ONNX graph \(protobuf\), found"),
    "graph empty": (empty_graph, "cpu.onnx: expected an ONNX graph, found"),
}


@pytest.mark.parametrize("name", CASES)
def test_refuses(artifact: Path, name: str) -> None:
    change, message = CASES[name]
    change(artifact)
    with pytest.raises(ArtifactError, match=message) as caught:
        runtime_edge.load(artifact)
    assert type(caught.value) is ArtifactError


def test_later_version_says_to_upgrade(artifact: Path) -> None:
    edit(artifact, lambda data: data.update(format_version=10, a_field_of_version_10=1))
    with pytest.raises(FormatVersionError, match="expected format_version at most 9, found 10") as caught:
        runtime_edge.verify(artifact)
    assert "upgrade" in str(caught.value.hint)


def test_verify_returns_the_manifest(built: Path) -> None:
    manifest = runtime_edge.verify(built)
    assert manifest.name == "tiny"
    assert manifest == m.decode(m.encode(manifest))


@pytest.mark.parametrize("path", ["nothing", "tokenizer.json"])
def test_names_what_is_no_artifact(built: Path, path: str) -> None:
    with pytest.raises(ArtifactError, match=f"{path}: expected an artifact's directory"):
        runtime_edge.verify(built / path)


def test_the_artifact_itself_may_be_reached_by_a_link(built: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(built)
    assert runtime_edge.verify(tmp_path / "link").name == "tiny"


def external_tensor(location: str) -> TensorProto:
    tensor = TensorProto(name="x", dims=[1], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def test_external_data_is_found_wherever_a_tensor_can_be(tmp_path: Path) -> None:
    """In initializers, sparse ones, node attributes, subgraphs, functions and training information."""

    def constant(location: str) -> onnx.NodeProto:
        return helper.make_node("Constant", [], ["c"], value=external_tensor(location))

    subgraph = helper.make_graph([constant("in-subgraph")], "s", [], [], [external_tensor("subgraph-initializer")])
    tensors = helper.make_node("Many", [], ["t"])
    tensors.attribute.add(name="all", type=onnx.AttributeProto.TENSORS, tensors=[external_tensor("in-list")])
    tensors.attribute.add(
        name="graphs",
        type=onnx.AttributeProto.GRAPHS,
        graphs=[helper.make_graph([], "l", [], [], [external_tensor("in-listed-graph")])],
    )
    sparse = onnx.SparseTensorProto(values=external_tensor("in-sparse-attribute"))
    tensors.attribute.add(name="sparse", type=onnx.AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse)
    tensors.attribute.add(name="sparses", type=onnx.AttributeProto.SPARSE_TENSORS, sparse_tensors=[sparse, sparse])
    graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=subgraph), tensors], "g", [], [])
    graph.initializer.append(external_tensor("initializer"))
    graph.sparse_initializer.add(values=external_tensor("sparse-values"), indices=external_tensor("sparse-indices"))
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opset)
    model.functions.append(helper.make_function("d", "F", [], ["c"], [constant("in-function")], opset))
    model.training_info.add().algorithm.initializer.append(external_tensor("training"))
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    found = [one.location for one in external_data(path, "m.onnx")]
    assert found.count("in-sparse-attribute") == 3
    assert set(found) == {
        "initializer", "sparse-values", "sparse-indices", "in-subgraph", "subgraph-initializer", "in-list",
        "in-function", "training", "in-listed-graph", "in-sparse-attribute",
    }  # fmt: skip


def test_every_one_of_repeated_locations_is_checked(artifact: Path) -> None:
    graph = onnx.load(artifact / "cpu.onnx", load_external_data=False)
    graph.graph.initializer[-1].external_data.insert(
        0, onnx.StringStringEntryProto(key="location", value="/etc/passwd")
    )
    (artifact / "cpu.onnx").write_bytes(graph.SerializeToString())
    relist(artifact, "cpu.onnx")
    with pytest.raises(ArtifactError, match="found '/etc/passwd'"):
        runtime_edge.verify(artifact)


def test_deep_nesting_is_bounded(tmp_path: Path) -> None:
    inner = b"\x6a\x0a\x0a\x08location"  # a tensor with the key alone
    for _ in range(200):  # Graph.node, Node.attribute, Attribute.g
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            inner = tag + onnx_varint(len(inner)) + inner
    path = tmp_path / "deep.onnx"
    path.write_bytes(b"\x3a" + onnx_varint(len(inner)) + inner)
    with pytest.raises(ArtifactError, match="at most 64 nested messages"):
        list(external_data(path, "deep.onnx"))


def onnx_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def test_truncated_graphs_never_escape_as_other_errors(tmp_path: Path, weights: tiny.Weights) -> None:
    data = tiny.decoder_graph(weights)[0]
    path = tmp_path / "cut.onnx"
    assert len(external_data_of(path, data)) == 8
    for end in range(1, len(data), 97):
        with pytest.raises(ArtifactError, match=r"cut\.onnx: expected an ONNX graph"):
            external_data_of(path, data[:end])


def external_data_of(path: Path, data: bytes) -> list[ExternalData]:
    path.write_bytes(data)
    return list(external_data(path, path.name))
