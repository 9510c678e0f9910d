"""Directories that `build --emit onnx` wrote: what is read, and what is said of damaged and hostile ones."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from leptonc.build.to_onnx import emit
from leptonc.errors import InputError
from leptonc.frontend.capture import capture
from leptonc.options import BuildOptions
from leptonc.sources import open_source
from tests.leptonc import models

Change = Callable[[onnx.ModelProto], object]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("emitted") / "llama"
    return emit(BuildOptions("sample:tiny-llama", out=out, check=False)).path


@pytest.fixture
def model(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "llama")


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def read(path: Path) -> Any:
    with open_source(str(path)) as source:
        return capture(source, max_seq_len=4096)


def outside(proto: onnx.ModelProto) -> onnx.TensorProto:
    return next(t for t in proto.graph.initializer if t.external_data)


def entry(tensor: onnx.TensorProto, key: str) -> Any:
    return next(each for each in tensor.external_data if each.key == key)


def test_what_is_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is the captured one, its weights lazy and its constants not, and nothing is traced."""
    monkeypatch.setattr("torch.export.export", None)
    monkeypatch.setattr("leptonc.frontend.capture.build_model", None)
    with open_source("sample:tiny-llama") as original, open_source(str(model)) as source:
        for name in ("config", "tokenizer_json", "chat_template", "generation_config", "modules"):
            assert getattr(source, name) == getattr(original, name), name
        assert original.tokenizer_config.items() <= source.tokenizer_config.items()
        digest = hashlib.sha256((model / "model.onnx").read_bytes()).hexdigest()
        assert source.origin == {
            "kind": "emitted", "id": "llama", "sha256": digest, "from_kind": "sample", "from_id": "tiny-llama",
            "licence": "apache-2.0",
        }  # fmt: skip
        found = capture(source, max_seq_len=4096)
        monkeypatch.undo()
        wanted = capture(original, max_seq_len=4096)
        assert (found.task, found.parameters, found.max_seq_len) == (wanted.task, wanted.parameters, wanted.max_seq_len)
        assert found.parts == wanted.parts
        mine, theirs = (list(map(ir.serde.serialize_node, each.model.graph)) for each in (found, wanted))
        assert mine == theirs
        for name, value in wanted.model.graph.initializers.items():
            stored: Any = found.model.graph.initializers[name].const_value
            made: Any = value.const_value
            assert isinstance(stored, ir.LazyTensor) == isinstance(made, ir.LazyTensor), name
            assert dict(stored.metadata_props) == dict(made.metadata_props)
            assert np.array_equal(stored.numpy(), made.numpy())


def test_fewer_positions_than_it_has(model: Path) -> None:
    with open_source(str(model)) as source:
        assert capture(source, max_seq_len=64).max_seq_len == 64


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format_version": 2}, "expected lepton-graph of version 1, found lepton-graph of version 2"),
        ({"format": "other"}, "found other of version 1"),
        ({"format": None, "format_version": [[1] * 999]}, "found None of version"),
        ({"parameters": -1}, "expected what describes an emitted graph, found: .*parameters"),
        ({"max_seq_len": 2**40}, "found: .*max_seq_len"),
        ({"max_seq_len": 2000}, "expected tables for 2000 positions, found: ones for 1024"),
        ({"origin": {"kind": 1}}, "found: .*origin"),
        ({"more": 1}, "found: .*more"),
        ({"passes": [{"name": "x"}]}, "found: .*passes"),
        ({"task": "text-embedding"}, "expected a graph for text-generation, as its config says, found: one for"),
    ],
)
def test_a_record_that_is_wrong(model: Path, fields: dict[str, Any], message: str) -> None:
    edit(model / "lepton.json", **fields)
    with pytest.raises(InputError, match=message) as caught:
        read(model)
    assert caught.value.hint


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_record_that_is_no_json(model: Path, data: bytes) -> None:
    (model / "lepton.json").write_bytes(data)
    with pytest.raises(InputError, match=r"lepton\.json: expected"):
        read(model)


@pytest.mark.parametrize("name", ["model.onnx", "config.json", "tokenizer.json"])
def test_a_file_that_is_missing(model: Path, name: str) -> None:
    (model / name).unlink()
    with pytest.raises(InputError, match=f"expected .*{name}, found"):
        read(model)


def test_blobs_that_are_missing_linked_cut_or_changed(model: Path, tmp_path: Path) -> None:
    blob = max((model / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    data = blob.read_bytes()
    for changed in (data[:-1], data + b"\0", b"\1" + data[1:]):
        blob.write_bytes(changed)
        with pytest.raises(InputError, match="expected its sha256 to be its name, found another"):
            read(model)
    blob.write_bytes(b"")
    with pytest.raises(InputError, match="found an empty file"):
        read(model)
    blob.unlink()
    with pytest.raises(InputError, match=f"expected the file blobs/{blob.name}, found none"):
        read(model)
    (tmp_path / "elsewhere").write_bytes(data)
    blob.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"expected the file blobs/{blob.name}, found none"):
        read(model)


def test_a_folder_of_blobs_that_is_elsewhere(model: Path, tmp_path: Path) -> None:
    (model / "blobs").rename(tmp_path / "elsewhere")
    (model / "blobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="expected the file blobs/"):
        read(model)


@pytest.mark.parametrize("data", [b"not a model", b"\x08", b"\xff" * 100])
def test_a_graph_that_is_none(model: Path, data: bytes) -> None:
    (model / "model.onnx").write_bytes(data)
    with pytest.raises(InputError, match=r"model\.onnx: expected an ONNX model, found"):
        read(model)


def place(key: str, value: str) -> Change:
    return lambda proto: setattr(entry(outside(proto), key), "value", value)


def hide(proto: onnx.ModelProto) -> None:
    """An external tensor where nobody looks for weights."""
    node = next(n for n in proto.graph.node if n.op_type == "Transpose")
    attribute = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    attribute.t.CopyFrom(outside(proto))


def node_of(op: str, **fields: str) -> Change:
    def change(proto: onnx.ModelProto) -> None:
        node = next(n for n in proto.graph.node if n.op_type == op)
        for name, value in fields.items():
            setattr(node, name, value)

    return change


def shape_of(name: str, axis: int, size: int) -> Change:
    def change(proto: onnx.ModelProto) -> None:
        value = next(v for v in (*proto.graph.input, *proto.graph.output) if v.name == name)
        value.type.tensor_type.shape.dim[axis].dim_value = size

    return change


def turned(proto: onnx.ModelProto) -> None:
    """A weight whose shape is another of as many numbers."""
    tensor = next(t for t in proto.graph.initializer if t.name.endswith("down_proj.weight"))
    tensor.dims[:] = tensor.dims[::-1]


def first_output_gone(proto: onnx.ModelProto) -> None:
    del proto.graph.output[0]


def inline(proto: onnx.ModelProto) -> onnx.TensorProto:
    return next(t for t in proto.graph.initializer if not t.external_data and len(t.raw_data) > 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (place("location", "/etc/passwd"), r"in blobs/<sha256>, found it at '/etc/passwd'"),
        (place("location", "../blobs/" + "0" * 64), "found it at '../blobs/"),
        (place("location", "blobs/../config.json"), "found it at 'blobs/../config.json'"),
        (place("location", "blobs/" + "0" * 64), "expected the file blobs/0000"),
        (place("offset", "-64"), "expected .* bytes of .* within"),
        (place("offset", "9" * 18), "expected .* bytes of .* within"),
        (place("offset", "1e3"), "expected .* bytes of .* within"),
        (place("length", "4"), "found 4 from"),
        (lambda proto: setattr(outside(proto), "data_type", onnx.TensorProto.DOUBLE), "float32, int64 or bool"),
        (lambda proto: outside(proto).dims.__setitem__(0, -1), "of a known shape"),
        (lambda proto: outside(proto).dims.__setitem__(0, 2**62), "expected .* bytes of .* within"),
        (lambda proto: setattr(inline(proto), "raw_data", b"\0" * 3), "expected"),
        (hide, "expected weights among the initializers alone, found some in value"),
        (turned, "expected shapes that go together, found"),
        (node_of("Swish", op_type="Hardmax"), "expected a graph of the dialect, found: .*Hardmax"),
        (node_of("CachedAttention", op_type="Other"), "expected"),
        (node_of("MatMul", domain="elsewhere"), "expected"),
        (lambda proto: setattr(proto.opset_import[0], "version", 9), "expected"),
        (lambda proto: proto.graph.node.reverse(), "expected"),
        (lambda proto: proto.graph.ClearField("node"), "expected"),
        (first_output_gone, "expected inputs .* and outputs logits"),
        (lambda proto: setattr(proto.graph.input[0], "name", "other"), "expected"),
        (shape_of("past_key_values.0.key", 1, 7), "expected"),
        (shape_of("logits", 2, 9), "expected"),
    ],
)
def test_a_graph_that_is_wrong(model: Path, change: Change, message: str) -> None:
    path = model / "model.onnx"
    proto = onnx.load(path, load_external_data=False)
    change(proto)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match=message) as caught:
        read(model)
    assert caught.value.exit_code == 1
    assert caught.value.hint


def test_what_our_functions_do_is_not_the_files_to_say(model: Path) -> None:
    path = model / "model.onnx"
    proto = onnx.load(path, load_external_data=False)
    wanted = [node.op_type for node in proto.functions[0].node]
    del proto.functions[0].node[3:]
    path.write_bytes(proto.SerializeToString())
    (found,) = read(model).model.functions.values()
    assert [node.op_type for node in found] == wanted


def test_logits_of_another_vocabulary(model: Path) -> None:
    edit(model / "config.json", vocab_size=500)
    with pytest.raises(InputError, match="expected logits of the 500 tokens that the config has, found: 512"):
        read(model)


def test_random_damage_is_always_an_error_of_ours_or_none(model: Path) -> None:
    """Bytes of the graph flipped: it is refused, or read; never anything else."""
    path, random = model / "model.onnx", np.random.default_rng(0)
    data, refused = path.read_bytes(), 0
    for _ in range(60):
        changed = bytearray(data)
        for at in random.integers(0, len(data), 3):
            changed[at] = int(random.integers(0, 256))
        path.write_bytes(bytes(changed))
        try:
            read(model)
        except InputError:
            refused += 1
    assert refused > 10


def test_weights_that_are_not_finite(written: Path, tmp_path: Path) -> None:
    """As from a checkpoint: said when the weight is read."""
    model = shutil.copytree(written, tmp_path / "nan")
    proto = onnx.load(model / "model.onnx", load_external_data=False)
    tensor = next(t for t in proto.graph.initializer if t.name == "model.norm.weight")
    old, begin = entry(tensor, "location").value, int(entry(tensor, "offset").value)
    data = bytearray((model / old).read_bytes())
    data[begin : begin + 4] = np.float32(np.nan).tobytes()
    new = f"blobs/{hashlib.sha256(data).hexdigest()}"
    (model / old).unlink()
    (model / new).write_bytes(data)
    for each in (e for t in proto.graph.initializer for e in t.external_data if e.value == old):
        each.value = new
    (model / "model.onnx").write_bytes(proto.SerializeToString())
    with open_source(str(model)) as source:
        found = capture(source, max_seq_len=64).model.graph.initializers["model.norm.weight"].const_value
        with pytest.raises(InputError, match=r"found 1 NaN or infinite values in `model\.norm\.weight`"):
            found.numpy()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["tiny-sentence", "tiny-bert-classifier"])
def test_what_comes_with_an_encoder(name: str, tmp_path: Path) -> None:
    path = emit(BuildOptions(f"sample:{name}", out=tmp_path / "m", check=False)).path
    with open_source(f"sample:{name}") as original, open_source(str(path)) as source:
        assert (source.modules, source.config) == (original.modules, original.config)
        graph = models.Graph(capture(source, max_seq_len=64).model, tmp_path)
        given = models.padded(graph.inputs)
        found = graph(**given)[graph.outputs[0]]
        assert np.abs(found - models.reference_embeddings(name, given)).max() <= 1e-5
