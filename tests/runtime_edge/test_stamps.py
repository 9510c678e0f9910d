"""What was hashed is what is opened, and stays so: files that are exchanged, written to or cut meanwhile."""

from __future__ import annotations

import errno
import importlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import runtime_edge
from runtime_edge.errors import ArtifactError
from runtime_edge.model import Model
from tests.runtime_edge.test_verify import blob, edit, entry

loading = importlib.import_module("runtime_edge.load")  # the package has its function of that name


def renamed(path: Path) -> None:
    path.with_name("new").write_bytes(path.read_bytes())
    os.replace(path.with_name("new"), path)


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def written(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes([file.read(1)[0] ^ 1]))


def written_with_its_old_time(path: Path) -> None:
    before = path.stat()
    written(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def exchanged_and_back(path: Path) -> None:
    path.rename(path.with_name("aside"))
    path.with_name("aside").rename(path)


def removed(path: Path) -> None:
    path.unlink()


CHANGES = [renamed, linked, written, written_with_its_old_time, exchanged_and_back, removed]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["blob", "cpu.onnx", "tokenizer.json"])
def test_a_file_that_is_exchanged_between_its_hash_and_its_opening(
    change: Callable[[Path], None], name: str, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loading.check_contents

    def then_changed(root: Path, *arguments: object) -> None:
        plain(root, *arguments)
        time.sleep(0.02)  # beyond the clock's steps of the file system
        change(blob(root) if name == "blob" else root / name)

    monkeypatch.setattr(loading, "check_contents", then_changed)
    with pytest.raises(ArtifactError, match="expected"):
        runtime_edge.load(artifact).close()


def test_a_file_that_is_written_to_while_it_is_hashed(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.fstat
    seen: list[int] = []

    def fstat(handle: int) -> os.stat_result:
        found = plain(handle)
        if found.st_ino == blob(artifact).stat().st_ino and found.st_ino not in seen:
            seen.append(found.st_ino)
            time.sleep(0.02)
            written(blob(artifact))
        return found

    monkeypatch.setattr(os, "fstat", fstat)
    with pytest.raises(ArtifactError, match="found it changed while it was read"):
        runtime_edge.load(artifact)


@pytest.mark.parametrize("change", [written, lambda path: os.truncate(path, 10)], ids=["written", "cut"])
def test_a_file_that_is_changed_under_a_model(change: Callable[[Path], None], artifact: Path, tmp_path: Path) -> None:
    with runtime_edge.load(artifact, threads=1) as model:
        context = model.context()
        model.generate([1, 2], max_new_tokens=2)
        time.sleep(0.02)
        change(blob(artifact))
        calls: list[Callable[[], object]] = [
            lambda: model.generate([1, 2], max_new_tokens=2), lambda: context.generate([1, 2], max_new_tokens=2),
            lambda: model.score([1, 2, 3]), lambda: next(iter(model.stream([1, 2]))), model.context,
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(
                ArtifactError, match=r"blobs/\w+: expected the file as it was when the model was opened"
            ):
                call()


def test_an_artifact_that_is_replaced_or_removed_goes_on_in_models_that_have_it(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(artifact.parent)
    with runtime_edge.load(artifact.name, threads=1) as model:
        said = model.generate([1, 2], max_new_tokens=4).token_ids
        monkeypatch.chdir("/")
        for change in (lambda: renamed(blob(artifact)), lambda: shutil.rmtree(artifact)):
            change()
            assert model.generate([1, 2], max_new_tokens=4).token_ids == said


# Files that are none, and systems that refuse


def in_time(call: Callable[[], object]) -> BaseException | None:
    """What a call raised; it must end soon."""
    found: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    return found[0] if found else None


@pytest.mark.parametrize("name", ["tokenizer.json", "cpu.onnx", "manifest.json", "blob"])
def test_a_pipe_in_a_files_place_after_the_listing(name: str, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = loading.listing

    def then_pipes(root: Path) -> dict[str, int]:
        found: dict[str, int] = plain(root)
        path = blob(root) if name == "blob" else root / name
        path.unlink()
        os.mkfifo(path)
        return found

    monkeypatch.setattr(loading, "listing", then_pipes)
    error = in_time(lambda: runtime_edge.load(artifact))
    assert isinstance(error, ArtifactError)
    assert "expected a regular file, found a pipe" in error.message


@pytest.mark.parametrize("call", ["scandir", "open"])
@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ENAMETOOLONG, errno.EMFILE])
def test_a_system_that_refuses(call: str, code: int, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(ArtifactError, match=os.strerror(code)):
        runtime_edge.verify(artifact)


def test_reading_that_fails_midway(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __enter__(self) -> Failing:
            return self

        def __exit__(self, *_: object) -> None: ...

        def readinto(self, buffer: memoryview) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    plain = os.fdopen
    monkeypatch.setattr(os, "fdopen", lambda h, *a, **k: Failing() if k.get("buffering") == 0 else plain(h, *a, **k))
    with pytest.raises(ArtifactError, match="expected a readable file, found: Input/output error"):
        runtime_edge.verify(artifact)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("n" * 300, "File name too long"), ("a\0b", "null"), ("a\ud800", "surrogates not allowed"),
        ("loop", "symbolic links"), ("loop/x", "symbolic links"), ("file", "a file"), ("file/x", "nothing"),
        ("pipe", "a file"), ("a\udcff", "nothing"), ("/".join(["d"] * 3000), "File name too long"),
    ],
)  # fmt: skip
def test_paths_that_are_no_artifact(path: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    for call in (runtime_edge.load, runtime_edge.verify):
        error = in_time(lambda call=call: call(tmp_path / path))  # type: ignore[misc]
        assert isinstance(error, ArtifactError)
        assert "expected an artifact's directory, found" in error.message
        assert found in error.message
        error.message.encode()


def test_a_name_that_is_no_text(artifact: Path) -> None:
    (artifact / "a\udcff").write_text("")
    with pytest.raises(ArtifactError, match=r"a\\udcff: expected only files that manifest\.json lists") as caught:
        runtime_edge.verify(artifact)
    str(caught.value).encode()


def test_a_link_that_leads_to_itself(artifact: Path) -> None:
    (artifact / "loop").symlink_to("loop")
    with pytest.raises(ArtifactError, match="loop: expected regular files and folders, found a link"):
        runtime_edge.verify(artifact)


def test_folders_that_are_too_deep(artifact: Path) -> None:
    here = os.open(artifact, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=here)
        here, last = os.open("d" * 200, os.O_RDONLY, dir_fd=here), here
        os.close(last)
    os.close(here)
    with pytest.raises(ArtifactError, match="expected a directory that can be read, found: File name too long"):
        runtime_edge.verify(artifact)
    shutil.rmtree(artifact, ignore_errors=True)


def test_a_manifest_of_very_many_files(artifact: Path) -> None:
    def many(data: dict[str, object]) -> None:
        one = entry(data, "tokenizer")
        data["files"] += [{**one, "path": f"f{i}"} for i in range(100_000)]  # type: ignore[operator]

    edit(artifact, many)
    begun = time.perf_counter()
    with pytest.raises(ArtifactError, match=r"f\d+: expected a file of \d+ bytes, found none|at most 16777216 bytes"):
        runtime_edge.verify(artifact)
    assert time.perf_counter() - begun < 10


def test_a_model_has_its_weights_watched(model: Model) -> None:
    assert {path for _, path, _ in model._watched._files} == set(model.variant.blobs)
