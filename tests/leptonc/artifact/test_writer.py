"""The writer: an artifact is there whole or not at all, its bytes depend on nothing but what was written."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from leptonc.artifact import place as module
from leptonc.artifact.writer import ALIGNMENT, INLINE_BYTES, ArtifactWriter, check_out
from leptonc.errors import InputError
from leptonc.ir.dialect import STORAGE_KEY
from runtime_edge.files import MANIFEST_NAME


def listing(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*"))


@pytest.fixture(scope="session")
def old(tiny_artifact: Path) -> Callable[[Path], Path]:
    """Puts an artifact at a path."""
    return lambda path: Path(shutil.copytree(tiny_artifact, path))


def value(name: str, array: np.ndarray, reads: list[str] | None = None, storage: str = "") -> ir.Value:
    def read() -> ir.Tensor:
        if reads is not None:
            reads.append(name)
        return ir.Tensor(array, name=name)

    tensor = ir.LazyTensor(
        read, dtype=ir.DataType.from_numpy(array.dtype), shape=ir.Shape(array.shape), name=name, cache=False
    )
    made = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    if storage:
        made.meta[STORAGE_KEY] = storage
    return made


def model_of(*values: ir.Value) -> ir.Model:
    out = ir.node("Identity", [values[0]], name="out")
    out.outputs[0].name = "y"
    graph = ir.Graph(
        [], out.outputs, nodes=[out], initializers=values, opset_imports={"": 24}, name="m"
    )  # fmt: skip
    return ir.Model(graph, ir_version=11)


def numbers(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def test_what_is_committed_is_there_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "m.lepton"
    with ArtifactWriter(out) as writer:
        writer.add("a.txt", b"first")
        writer.add("a.txt", b"again")
        assert writer.path.parent.parent == out.parent  # on the same disk
        assert not out.exists()
        assert writer.commit() == out
    assert listing(tmp_path / "deep" / "er") == ["m.lepton", "m.lepton/a.txt"]
    assert (out / "a.txt").read_bytes() == b"again"
    (entry,) = writer.listing()
    assert (entry.path, entry.size, entry.sha256) == ("a.txt", 5, hashlib.sha256(b"again").hexdigest())
    assert out.stat().st_mode & 0o777 == 0o755


def test_what_is_not_committed_is_not_there(tmp_path: Path) -> None:
    with ArtifactWriter(tmp_path / "m.lepton") as writer:
        writer.add("a.txt", b"first")
    assert listing(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_errors_leave_nothing_and_come_through(tmp_path: Path, error: BaseException) -> None:
    def fails() -> None:
        with ArtifactWriter(tmp_path / "m.lepton") as writer:
            writer.add("a.txt", b"first")
            raise error

    with pytest.raises(type(error)) as caught:
        fails()
    assert caught.value is error
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "hint"),
    [(errno.ENOSPC, "free some space"), (errno.EDQUOT, "free some space"), (errno.EROFS, "another place")],
)
def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, hint: str) -> None:
    written: list[Path] = []

    def full(path: Path, data: bytes) -> int:
        written.append(path)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_bytes", full)

    def fails() -> None:
        with ArtifactWriter(tmp_path / "m.lepton") as writer:
            writer.add("a.txt", b"first")

    with pytest.raises(InputError) as caught:
        fails()
    assert os.strerror(code) in caught.value.message
    assert "nothing was left there" in caught.value.message
    assert hint in (caught.value.hint or "")
    assert len(written) == 1
    assert listing(tmp_path) == []


def test_a_disk_that_fills_while_weights_are_written(tmp_path: Path) -> None:
    def read() -> ir.Tensor:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    good = value("layers.0.w", numbers(1000))
    bad = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape([1000]), name="layers.1.w", cache=False)
    model = model_of(good, ir.Value(name="layers.1.w", shape=bad.shape, const_value=bad))

    def fails() -> None:
        with ArtifactWriter(tmp_path / "m.lepton") as writer:
            writer.add_graph("g.onnx", model)

    with pytest.raises(InputError, match="nothing was left there"):
        fails()
    assert listing(tmp_path) == []


# Where an artifact may be written


def test_an_artifact_is_replaced_only_when_told_so(tmp_path: Path, old: Callable[[Path], Path]) -> None:
    out = old(tmp_path / "m.lepton")
    before = listing(tmp_path)
    with pytest.raises(InputError, match=f"expected nothing at {out}, found an artifact") as caught:
        ArtifactWriter(out)
    assert "--force" in (caught.value.hint or "")
    with ArtifactWriter(out, replace=True) as writer:
        writer.add("new.txt", b"new")
        assert set(before) < set(listing(tmp_path))  # until the very end
        writer.commit()
    assert listing(tmp_path) == ["m.lepton", "m.lepton/new.txt"]


def test_a_build_that_fails_keeps_the_old_one(tmp_path: Path, old: Callable[[Path], Path]) -> None:
    out = old(tmp_path / "m.lepton")
    before = listing(tmp_path)

    def fails() -> None:
        with ArtifactWriter(out, replace=True) as writer:
            writer.add("new.txt", b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert listing(tmp_path) == before


def a_directory(out: Path) -> None:
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")


def a_file(out: Path) -> None:
    out.write_text("years of work")


def a_link(out: Path) -> None:
    (out.parent / "elsewhere").mkdir()
    (out.parent / "elsewhere" / MANIFEST_NAME).write_text("{}")
    out.symlink_to(out.parent / "elsewhere")


def a_link_to_nothing(out: Path) -> None:
    out.symlink_to(out.parent / "gone")


@pytest.mark.parametrize("make", [a_directory, a_file, a_link, a_link_to_nothing, Path.mkdir])
@pytest.mark.parametrize("replace", [False, True])
def test_what_is_no_artifact_is_never_replaced(tmp_path: Path, make: Callable[[Path], None], replace: bool) -> None:
    out = tmp_path / "m.lepton"
    make(out)
    before = listing(tmp_path)
    with pytest.raises(InputError, match="expected a place for the artifact, found something else at"):
        ArtifactWriter(out, replace=replace)
    assert listing(tmp_path) == before


def test_places_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"expected a directory that can be written to, found .*file"):
        check_out(tmp_path / "file" / "m.lepton", replace=False)
    check_out(tmp_path / "new" / "m.lepton", replace=False)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="expected a directory that can be written to"):
        check_out(tmp_path / "new" / "m.lepton", replace=False)


def test_a_directory_that_refuses_after_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> str:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(module.tempfile, "mkdtemp", refuse)
    with pytest.raises(InputError, match="cannot write the artifact in"):
        ArtifactWriter(tmp_path / "m.lepton")
    assert listing(tmp_path) == []


# Graphs


def test_weights_go_to_one_blob_a_layer_and_are_read_once(tmp_path: Path) -> None:
    reads: list[str] = []
    arrays = {name: numbers(400 + i, i) for i, name in enumerate(("layers.0.a", "layers.0.b", "layers.1.a", "head"))}
    small = ir.Value(name="small", const_value=ir.tensor(np.arange(INLINE_BYTES // 8), name="small"))
    model = model_of(*(value(n, a, reads) for n, a in arrays.items()), small)
    steps: list[int] = []
    with ArtifactWriter(tmp_path / "m.lepton") as writer:
        blobs = writer.add_graph("g.onnx", model, steps.append)
        writer.commit()
    assert sorted(reads) == sorted(arrays)
    assert sum(steps) == sum(a.nbytes for a in arrays.values())
    assert len(blobs) == 3
    for blob in blobs:
        data = (tmp_path / "m.lepton" / blob).read_bytes()
        assert blob == f"blobs/{hashlib.sha256(data).hexdigest()}"
    stored = ir.load(tmp_path / "m.lepton" / "g.onnx").graph.initializers
    for name, array in arrays.items():
        tensor = stored[name].const_value
        assert isinstance(tensor, ir.ExternalTensor)
        assert (tensor.offset or 0) % ALIGNMENT == 0
        assert np.array_equal(tensor.numpy(), array)
    assert not isinstance(stored["small"].const_value, ir.ExternalTensor)


def test_equal_bytes_are_stored_once(tmp_path: Path) -> None:
    """Within a layer by their mark; between layers, blobs of the same content are one file."""
    array, reads = numbers(999), []
    model = model_of(
        value("layers.0.w", array, reads, "same"), value("layers.0.x", array, reads, "same"),
        value("layers.1.w", array, reads), value("layers.1.x", numbers(999, 1), reads),
        value("layers.2.w", array, reads), value("layers.2.x", numbers(999, 1), reads),
    )  # fmt: skip
    with ArtifactWriter(tmp_path / "m.lepton") as writer:
        blobs = writer.add_graph("g.onnx", model)
        writer.commit()
    assert len(blobs) == 2
    assert len(reads) == 5  # layers.0.x was never asked for
    stored = ir.load(tmp_path / "m.lepton" / "g.onnx").graph.initializers
    assert np.array_equal(stored["layers.0.x"].const_value.numpy(), array)  # type: ignore[union-attr]
    sizes = [entry.size for entry in writer.listing() if entry.path in blobs]
    assert sorted(sizes) == [array.nbytes, -(-array.nbytes // ALIGNMENT) * ALIGNMENT + array.nbytes]


def test_bytes_do_not_depend_on_the_order_of_registration(tmp_path: Path) -> None:
    def written(names: list[str], out: Path) -> dict[str, bytes]:
        values = {n: value(n, numbers(300, len(n))) for n in names}
        out_value = values["layers.0.a"]
        model = model_of(out_value, *(v for n, v in values.items() if n != "layers.0.a"))
        with ArtifactWriter(out) as writer:
            writer.add_graph("g.onnx", model)
            writer.commit()
        return {p.name: p.read_bytes() for p in sorted((out / "blobs").iterdir())}

    names = ["layers.0.a", "layers.0.bbb", "layers.0.cccc"]
    assert written(names, tmp_path / "one") == written(names[::-1], tmp_path / "two")


def test_four_bit_codes_are_packed(tmp_path: Path) -> None:
    codes = (np.arange(4096) % 16).astype(ir.DataType.UINT4.numpy())
    tensor = ir.LazyTensor(
        lambda: ir.Tensor(codes, dtype=ir.DataType.UINT4), dtype=ir.DataType.UINT4, shape=ir.Shape([4096]), name="c",
        cache=False,
    )  # fmt: skip
    made = ir.Value(name="c", shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    with ArtifactWriter(tmp_path / "m.lepton") as writer:
        (blob,) = writer.add_graph("g.onnx", model_of(made))
        writer.commit()
    assert (tmp_path / "m.lepton" / blob).read_bytes()[:4] == bytes([0x10, 0x32, 0x54, 0x76])
    assert (tmp_path / "m.lepton" / blob).stat().st_size == 2048


def test_arrays_that_no_graph_has_lie_in_one_blob(tmp_path: Path) -> None:
    """Equal ones are stored once; without any there is no blob."""
    arrays = [np.arange(5, dtype=np.float16), np.ones(3, np.float32), np.arange(5, dtype=np.float16)]
    with ArtifactWriter(tmp_path / "a") as writer:
        places = writer.add_arrays(arrays)
        assert [offset for _, offset in places] == [0, 10, 0]
        ((path, file),) = writer.files.items()
        assert {blob for blob, _ in places} == {path}
        assert path == f"blobs/{file.sha256}"
        for array, (blob, offset) in zip(arrays, places, strict=True):
            found = np.fromfile(writer.path / blob, array.dtype, len(array), offset=offset)
            np.testing.assert_array_equal(found, array)
        assert writer.add_arrays([]) == []
        assert list(writer.files) == [path]
