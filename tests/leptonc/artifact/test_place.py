"""Places of artifacts: what others put there stays, and whatever ends a build leaves the old one or the new one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runtime_edge
from leptonc.artifact import place
from leptonc.artifact.place import Place, check_out
from leptonc.artifact.writer import ArtifactWriter
from leptonc.errors import InputError
from runtime_edge import writing
from runtime_edge.manifest import EMITTED_NAME

Tree = dict[str, bytes]
WAYS = ["at once", "in two steps"]  # of a move: with the system's renames, and where it has none


def tree(root: Path) -> Tree:
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else b"" for p in sorted(root.rglob("*"))}


@pytest.fixture
def out(tiny_artifact: Path, tmp_path: Path) -> Path:
    """An artifact that may be replaced."""
    return Path(shutil.copytree(tiny_artifact, tmp_path / "disk" / "m.lepton"))


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "in two steps":
        monkeypatch.setattr(writing, "_RENAMES", {})
    return str(request.param)


def appears_empty(at: Path) -> None:
    at.mkdir()


def appears_with_files(at: Path) -> None:
    at.mkdir()
    (at / "thesis.txt").write_text("years of work")


def appears_as_a_file(at: Path) -> None:
    at.write_text("years of work")


def appears_as_a_link(at: Path) -> None:
    at.symlink_to("nowhere")


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("appears", [appears_empty, appears_with_files, appears_as_a_file, appears_as_a_link])
def test_what_appears_during_a_build_stays(
    way: str, appears: Callable[[Path], None], replace: bool, tmp_path: Path
) -> None:
    at = tmp_path / "m.lepton"

    def build() -> None:
        with ArtifactWriter(at, replace=replace) as writer:
            writer.add("new.txt", b"new")
            appears(at)
            writer.commit()

    with pytest.raises(InputError, match=r"found (what was not there when the build began|something else at)"):
        build()
    assert [p.name for p in tmp_path.iterdir()] == ["m.lepton"]
    if appears is appears_with_files:
        assert tree(at) == {"thesis.txt": b"years of work"}


def test_an_artifact_that_appears_is_replaced_only_when_told_so(way: str, out: Path, tmp_path: Path) -> None:
    kept = Path(shutil.move(out, tmp_path / "kept"))

    def build(replace: bool) -> None:
        with ArtifactWriter(out, replace=replace) as writer:
            writer.add("new.txt", b"new")
            shutil.copytree(kept, out)
            writer.commit()

    with pytest.raises(InputError, match="was left as it is"):
        build(replace=False)
    assert tree(out) == tree(kept)
    shutil.rmtree(out)
    build(replace=True)
    assert tree(out.parent) == {"m.lepton": b"", "m.lepton/new.txt": b"new"}


def others_file(at: Path) -> str:
    (at / "notes.txt").write_text("mine")
    return "only what we wrote, found 'notes.txt' beside it"


def others_folder(at: Path) -> str:
    for name in "abcde":
        (at / "blobs" / name).write_text("mine")
    return "found 'blobs/a', 'blobs/b', 'blobs/c' and 2 more beside it"


def others_link(at: Path) -> str:
    (at / "link").symlink_to("/")
    return "link: expected regular files and folders, found a link"


def others_manifest(at: Path) -> str:
    (at / "manifest.json").write_text('{"name": "a web page", "icons": []}')
    return "that is ours to replace, found: "


def later_manifest(at: Path) -> str:
    text = (at / "manifest.json").read_text()
    (at / "manifest.json").write_text(text.replace('"format_version":', '"format_version": 99, "x":'))
    return "that is ours to replace, found: "


@pytest.mark.parametrize("change", [others_file, others_folder, others_link, others_manifest, later_manifest])
@pytest.mark.parametrize("late", [False, True])
def test_files_that_others_put_into_an_artifact_stay(
    way: str, change: Callable[[Path], str], late: bool, out: Path
) -> None:
    message = "" if late else change(out)
    before = tree(out)

    def build() -> None:
        nonlocal before, message
        with ArtifactWriter(out, replace=True) as writer:
            writer.add("new.txt", b"new")
            if late:
                message = change(out)
                before = tree(out)
            writer.commit()

    with pytest.raises(InputError) as caught:
        build()
    assert message in caught.value.message
    assert "move what you want to keep" in (caught.value.hint or "")
    assert tree(out) == before
    assert [p.name for p in out.parent.iterdir()] == ["m.lepton"]


def test_files_that_appear_at_the_last_moment_stay(way: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last look at it where it was, before the first where nobody reaches it."""
    plain = place.check_out

    def check(at: Path, *, replace: bool) -> None:
        plain(at, replace=replace)
        (at / "notes.txt").write_text("mine")

    def build() -> None:
        with ArtifactWriter(out, replace=True) as writer:
            writer.add("new.txt", b"new")
            monkeypatch.setattr(place, "check_out", check)
            writer.commit()

    with pytest.raises(InputError, match=r"found 'notes\.txt' beside it"):
        build()
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    runtime_edge.verify(out)
    assert [p.name for p in out.parent.iterdir()] == ["m.lepton"]


@pytest.mark.parametrize("name", ["tokenizer.json", "notes.txt"])
def test_an_emitted_graph_says_what_is_its_own(name: str, tmp_path: Path) -> None:
    at = tmp_path / "graph"
    at.mkdir()
    (at / EMITTED_NAME).write_text('{"files": ["tokenizer.json"], "task": "x"}')
    (at / name).write_text("x")
    if name == "tokenizer.json":
        check_out(at, replace=True)
    else:
        with pytest.raises(InputError, match=r"only what we wrote, found 'notes\.txt'"):
            check_out(at, replace=True)


# Builds that are killed

KILLED = """
import json, os, shutil, signal, sys
from pathlib import Path
from leptonc.artifact.writer import ArtifactWriter
from runtime_edge import writing
from runtime_edge.verify import verify

template, disk, way, there = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "there"
out, count, at = disk / "m.lepton", 0, 0
if way == "in two steps":
    writing._RENAMES = {}


def counted(owner, name):
    plain = getattr(owner, name)

    def call(*args, **named):
        global count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*args, **named)

    setattr(owner, name, call)


for name in ("rename", "mkdir", "fsync", "unlink", "rmdir", "replace", "chmod"):
    counted(os, name)
counted(writing, "_renamed")


def build(commit):
    with ArtifactWriter(out, replace=True) as writer:
        if commit:
            (writer.path / "blobs").mkdir()
            for path in template.rglob("*"):
                if path.is_file():
                    data = path.read_bytes()
                    new = data.replace(b'"name": "tiny"', b'"name": "new!"') if path.name == "manifest.json" else data
                    writer.add(str(path.relative_to(template)), new)
            writer.commit()


def child(commit, point=0):
    global at, count
    pid = os.fork()
    if pid == 0:
        at, count = point, 0
        try:
            build(commit)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def state():
    if not out.exists():
        return "none"
    return verify(out).name if any(out.iterdir()) else "empty"


point = 0
while True:
    point += 1
    shutil.rmtree(disk, ignore_errors=True)
    disk.mkdir()
    if there:
        shutil.copytree(template, out)
    ended = child(True, point)
    found = {"ended": ended, "left": state(), "hidden": len(list(disk.glob(".m.*")))}
    again = child(False)
    print(json.dumps({**found, "again": again, "then": state(), "beside": sorted(p.name for p in disk.iterdir())}))
    if ended == 0:
        break
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no signal that kills there")
@pytest.mark.parametrize("there", ["there", "nothing there"])
def test_a_kill_at_any_moment_leaves_the_old_one_or_the_new_one(
    there: str, tiny_artifact: Path, tmp_path: Path
) -> None:
    """At each call that changes something; the next build removes what is left over."""
    before = "tiny" if there == "there" else "none"
    for way in WAYS:
        command = [sys.executable, "-c", KILLED, str(tiny_artifact), str(tmp_path / "disk"), way, there]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        records = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(records) > 15
        assert [record["ended"] for record in records] == [signal.SIGKILL] * (len(records) - 1) + [0]
        left = {record["left"] for record in records}
        assert left - {"none", "empty"} <= {"tiny", "new!"}
        assert way == "in two steps" or left == {before, "new!"}
        assert {record["hidden"] for record in records} == {0, 1}
        for record in records:
            assert record["again"] == 0, (record, done.stderr)
            assert record["then"] in (before, "new!"), record
            assert record["beside"] == ([] if record["then"] == "none" else ["m.lepton"]), record
        assert records[0]["then"] == before
        assert records[-1]["then"] == "new!"


def test_what_a_live_build_writes_is_left_alone(out: Path) -> None:
    with ArtifactWriter(out, replace=True) as first:
        first.add("first.txt", b"1")
        with ArtifactWriter(out, replace=True) as second:
            assert (first.path / "first.txt").read_bytes() == b"1"
            second.add("second.txt", b"2")
        assert (first.path / "first.txt").read_bytes() == b"1"
        first.commit()
    assert tree(out.parent) == {"m.lepton": b"", "m.lepton/first.txt": b"1"}


def test_what_another_machine_or_other_builds_left_is_left_alone(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [".m.lepton.00000000.abcdefgh.partial", ".m.lepton.partial", ".m.lepton.old", ".other.partial", "m.partial"]
    for name in names:
        (out.parent / name).mkdir()
        (out.parent / name / "x").write_text("x")
    with ArtifactWriter(out, replace=True):
        assert len(list(out.parent.iterdir())) == len(names) + 2
    assert sorted(p.name for p in out.parent.iterdir()) == sorted([*names, "m.lepton"])


def test_where_there_are_no_locks_nothing_is_cleared(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = Place(out, replace=True)  # never closed
    with monkeypatch.context() as patch:
        patch.setattr(place, "_locked", lambda path: None)
        Place(out, replace=True).close()
        assert left.path.is_dir()
    left.close()
    assert [p.name for p in out.parent.iterdir()] == ["m.lepton"]


# Places that are none, and disks that refuse


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("n" * 300, "expected a path for the artifact, found .*File name too long"),
        ("a\0b", "expected a path for the artifact, found .*null byte"),
        ("a\ud800", "expected a path for the artifact, found .*surrogates not allowed"),
        ("loop/x", "expected a path for the artifact, found .*symbolic links"),
    ],
)
def test_paths_that_are_none(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=message):
        check_out(tmp_path / name, replace=False)


@pytest.mark.parametrize("name", ["n" * 250, "ä" * 120, "a\udcff", " ", "-", "a\nb"])
def test_names_that_files_may_have(name: str, tmp_path: Path) -> None:
    for _ in range(2):
        with ArtifactWriter(tmp_path / name, replace=False) as writer:
            writer.add("x", b"x")
    with ArtifactWriter(tmp_path / name, replace=False) as writer:
        writer.commit()
    assert [p.name for p in tmp_path.iterdir()] == [name]


CALLS = ["fsync", "chmod", "scandir", "open"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
def test_a_system_that_refuses_leaves_the_old_one(
    call: str, code: int, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(out.parent)

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    def build() -> None:
        with ArtifactWriter(out, replace=True) as writer, monkeypatch.context() as patch:
            writer.add("new.txt", b"new")
            patch.setattr(os, call, refuse)
            writer.commit()

    with pytest.raises(InputError, match=r"cannot write the artifact in|only what we wrote|ours to replace"):
        build()
    assert tree(out.parent) == before


def test_directories_that_were_made_for_it_go_with_it(tmp_path: Path) -> None:
    with ArtifactWriter(tmp_path / "a" / "b" / "m"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with ArtifactWriter(tmp_path / "a" / "b" / "m"):
        (tmp_path / "a" / "mine").write_text("")
    assert tree(tmp_path) == {"a": b"", "a/mine": b""}
