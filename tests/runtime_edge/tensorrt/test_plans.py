"""Plans on a device: one build, no half plan, and none that is not for this graph, version and GPU."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime_edge.errors import ArtifactError, EngineError, MissingDependencyError
from runtime_edge.manifest import EngineSpec
from runtime_edge.tensorrt import cache as caches
from runtime_edge.tensorrt import device as devices
from runtime_edge.tensorrt.builder import BuiltPlan
from runtime_edge.tensorrt.device import Device
from runtime_edge.tensorrt.plans import Finished, ensure_plan, find_plan, finish, plan_key
from runtime_edge.verify import read_manifest, verify
from tests.runtime_edge.tensorrt.graphs import DEVICE_VERSION, write_artifact

ORIN = Device("8.7", DEVICE_VERSION)


class Fake:
    """Builds a plan that says what it was built from; notes every build."""

    def __init__(self, content: bytes = b"plan", version: str = DEVICE_VERSION) -> None:
        self.content, self.version = content, version
        self.builds: list[tuple[Path, EngineSpec, Path | None]] = []

    def __call__(self, graph: Path, spec: EngineSpec, *, progress: Any, timing_cache: Path | None) -> BuiltPlan:
        self.builds.append((graph, spec, timing_cache))
        if progress is not None:
            progress("building", 1000, 1000)
        return BuiltPlan(memoryview(self.content), self.version, (), 1.5, 2**30, 7)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "model.lepton")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def finished(root: Path, cache: Path, fake: Fake | None = None, device: Device = ORIN) -> Finished:
    return finish(root, device=device, cache=cache, build=fake or Fake())


def files(cache: Path) -> set[str]:
    return {path.suffix for path in (cache / "plans").iterdir()}


def test_builds_once_and_finds_it_again(root: Path, cache: Path) -> None:
    fake = Fake(b"the plan")
    first = finished(root, cache, fake)
    assert (first.variant, first.built, first.device) == ("jetson-orin", True, ORIN)
    ((graph, spec, times),) = fake.builds
    assert graph == root / "cpu.onnx"
    assert spec.compute_capabilities == ("8.7",)
    assert times == cache / "times" / f"{DEVICE_VERSION}-8.7.cache"
    assert first.plan.path.read_bytes() == b"the plan"
    record = json.loads(first.plan.path.with_suffix(".json").read_text())
    assert record["sha256"] == hashlib.sha256(b"the plan").hexdigest() == first.plan.sha256
    assert (record["size"], record["version"], record["compute_capability"]) == (8, DEVICE_VERSION, "8.7")
    assert (record["seconds"], record["peak_memory"], record["layers"]) == (1.5, 2**30, 7)
    assert msgspec.convert(record["spec"], EngineSpec) == spec
    second = finished(root, cache, fake)
    assert (second.built, second.plan) == (False, first.plan)
    assert len(fake.builds) == 1
    assert files(cache) == {".plan", ".json", ".lock"}
    verify(root)  # nothing was written into the artifact


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX's")
def test_the_cache_is_this_users_alone(root: Path, cache: Path) -> None:
    done = finished(root, cache)
    assert (cache / "plans").stat().st_mode & 0o777 == 0o700
    assert done.plan.path.stat().st_mode & 0o777 == 0o600
    (cache / "plans").chmod(0o777)
    with pytest.raises(ArtifactError, match="only this user can write to, found mode 777") as caught:
        finished(root, cache)
    assert "chmod 700" in str(caught.value.hint)


@pytest.mark.parametrize(
    "other", [Device("8.7", "10.16.1.12"), Device("8.7", "10.17.0"), Device("8.9", DEVICE_VERSION)], ids=str
)
def test_a_plan_of_another_version_or_capability_is_not_found(root: Path, cache: Path, other: Device) -> None:
    write_artifact(root, spec={"compute_capabilities": ["8.7", "8.9"]})
    finished(root, cache)
    manifest = verify(root)
    variant = manifest.variants[1]
    assert find_plan(root, manifest, variant, ORIN, cache=cache) is not None
    assert find_plan(root, manifest, variant, other, cache=cache) is None
    assert plan_key(manifest, variant, other) != plan_key(manifest, variant, ORIN)


def test_a_renamed_plan_of_another_key_is_refused(root: Path, cache: Path) -> None:
    """Files copied to the name of another version's key: the record says what they really are."""
    done = finished(root, cache)
    manifest = verify(root)
    other = Device("8.7", "10.16.9.9")
    key = plan_key(manifest, manifest.variants[1], other)
    for suffix in (".plan", ".json"):
        done.plan.path.with_suffix(suffix).rename(cache / "plans" / f"{key}{suffix}")
    with pytest.raises(ArtifactError, match="found that of another") as caught:
        find_plan(root, manifest, manifest.variants[1], other, cache=cache)
    assert "lepton-edge finish" in str(caught.value.hint)


@pytest.mark.parametrize("change", ["spec", "blob"])
def test_the_key_holds_what_decides_the_plan(root: Path, change: str) -> None:
    manifest = verify(root)
    variant = manifest.variants[1]
    before = plan_key(manifest, variant, ORIN)
    assert before == plan_key(manifest, variant, ORIN)
    if change == "spec":
        assert variant.engine is not None
        engine = msgspec.structs.replace(
            variant.engine, spec=msgspec.structs.replace(variant.engine.spec, workspace_mb=1)
        )
        variant = msgspec.structs.replace(variant, graphs=(msgspec.structs.replace(variant.main, engine=engine),))
    else:
        changed = tuple(
            msgspec.structs.replace(file, sha256="0" * 64) if file.path in variant.blobs else file
            for file in manifest.files
        )
        manifest = msgspec.structs.replace(manifest, files=changed)
    assert plan_key(manifest, variant, ORIN) != before


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[:-1])
    elif how == "altered":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif how == "missing":
        path.unlink()
    else:
        path.rename(path.with_suffix(".elsewhere"))
        path.symlink_to(path.with_suffix(".elsewhere"))


@pytest.mark.parametrize("how", ["truncated", "altered", "missing", "linked"])
def test_a_damaged_plan_is_refused_and_finish_mends_it(root: Path, cache: Path, how: str) -> None:
    path = finished(root, cache).plan.path
    damage(path, how)
    manifest = verify(root)
    with pytest.raises(ArtifactError, match=path.name) as caught:
        find_plan(root, manifest, manifest.variants[1], ORIN, cache=cache)
    assert caught.value.hint == "run `lepton-edge finish` on the artifact again"
    again = finished(root, cache)
    assert again.built
    assert path.read_bytes() == b"plan"
    assert not path.is_symlink()
    assert find_plan(root, manifest, manifest.variants[1], ORIN, cache=cache) == again.plan


@pytest.mark.parametrize("text", ["", "{}", '{"format": 1}', "[" * 100_000, "x" * (2**20 + 2)])
def test_a_damaged_record_is_refused_and_finish_mends_it(root: Path, cache: Path, text: str) -> None:
    described = finished(root, cache).plan.path.with_suffix(".json")
    described.write_text(text)
    manifest = verify(root)
    with pytest.raises(ArtifactError, match=described.name):
        find_plan(root, manifest, manifest.variants[1], ORIN, cache=cache)
    assert finished(root, cache).built


def test_a_plan_without_its_record_counts_as_none(root: Path, cache: Path) -> None:
    """What a crash between the two renames leaves."""
    finished(root, cache).plan.path.with_suffix(".json").unlink()
    manifest = verify(root)
    assert find_plan(root, manifest, manifest.variants[1], ORIN, cache=cache) is None
    assert finished(root, cache).built


def with_plan(root: Path, data: bytes = b"compiled") -> None:
    """Gives the artifact a plan of its own for 8.7."""
    (root / "orin.plan").write_bytes(data)
    write_artifact(root, plans=[{"file": "orin.plan", "version": DEVICE_VERSION, "compute_capabilities": ["8.7"]}])
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["files"].append({"path": "orin.plan", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    (root / "manifest.json").write_text(json.dumps(manifest))


def test_the_artifacts_own_plan_comes_first(root: Path, cache: Path) -> None:
    with_plan(root)
    fake = Fake()
    done = finished(root, cache, fake)
    assert (done.built, fake.builds, done.plan.record) == (False, [], None)
    assert done.plan.path == root / "orin.plan"
    assert done.plan.sha256 == hashlib.sha256(b"compiled").hexdigest()
    # one that another version built is not taken
    newer = finished(root, cache, Fake(version="10.16.2"), Device("8.7", "10.16.2"))
    assert newer.built


def test_an_altered_plan_of_the_artifact_is_refused(root: Path, cache: Path) -> None:
    with_plan(root)
    manifest = read_manifest(root)
    damage(root / "orin.plan", "altered")
    with pytest.raises(ArtifactError, match=r"orin\.plan: expected sha256"):
        find_plan(root, manifest, manifest.variants[1], ORIN, cache=cache)
    with pytest.raises(ArtifactError, match=r"orin\.plan: expected sha256"):
        finished(root, cache)


def test_a_damaged_artifact_builds_nothing(root: Path, cache: Path) -> None:
    damage(root / "cpu.onnx", "altered")
    fake = Fake()
    with pytest.raises(ArtifactError, match=r"cpu\.onnx: expected sha256"):
        finished(root, cache, fake)
    assert (fake.builds, cache.exists()) == ([], False)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (Device("8.7", "10.3.0.30"), r"expected TensorRT >=10\.16;<11\.0, found 10\.3\.0\.30"),
        (Device("8.7", "11.4.0"), r"expected TensorRT >=10\.16;<11\.0, found 11\.4\.0"),
        (Device("11.0", DEVICE_VERSION), r"compute capability 8\.7, found 11\.0"),
    ],
)
def test_devices_that_a_variant_is_not_for(root: Path, cache: Path, device: Device, message: str) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        finished(root, cache, device=device)
    assert "build the artifact for" in str(caught.value.hint)


def test_variants_that_are_not_for_tensorrt(root: Path, tiny_artifact: Path, cache: Path) -> None:
    for artifact, name in ((tiny_artifact, None), (root, "cpu"), (root, "rtx")):
        with pytest.raises(ArtifactError, match=r"expected one (for|of the name)"):
            finish(artifact, name, device=ORIN, cache=cache, build=Fake())
    assert finish(root, "jetson-orin", device=ORIN, cache=cache, build=Fake()).built


def test_a_machine_without_tensorrt_or_driver(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match="`tensorrt`, which is not installed"):
        finish(root, cache=cache)
    monkeypatch.setattr(devices, "_LIBRARY", "libcuda-that-is-not-there.so")
    with pytest.raises(MissingDependencyError, match="expected a GPU of NVIDIA and its driver") as caught:
        devices.gpu()
    assert caught.value.exit_code == 4


def test_rtx_is_finished_for_the_machines_own_gpu(root: Path, cache: Path) -> None:
    spec = {"flavour": "tensorrt-rtx", "versions": ">=1.4;<2.0", "compute_capabilities": ["8.6", "8.9"]}
    write_artifact(root, spec=spec)
    fake = Fake(version="1.7.1.116")
    done = finished(root, cache, fake, Device("8.9", "1.7.1.116"))
    ((_, built, times),) = fake.builds
    assert (built.compute_capabilities, times) == (("8.9",), None)
    assert done.plan.record is not None
    assert done.plan.record.spec.compute_capabilities == ("8.6", "8.9")  # the artifact's, which the key holds


def test_a_builder_of_another_version_is_refused(root: Path, cache: Path) -> None:
    with pytest.raises(EngineError, match=r"expected version 10\.16\.1\.11 to build, found 10\.3"):
        finished(root, cache, Fake(version="10.3"))
    assert files(cache) == {".lock"}


def test_a_build_that_fails_leaves_nothing(root: Path, cache: Path) -> None:
    class Failing(Fake):
        def __call__(self, *arguments: Any, **options: Any) -> BuiltPlan:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finished(root, cache, Failing())
    assert files(cache) == {".lock"}
    assert finished(root, cache).built


def test_a_disk_that_fills_leaves_nothing(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        finished(root, cache)
    assert files(cache) == {".lock"}


def test_a_crash_while_a_plan_is_replaced_leaves_none(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old record must not stand beside the new plan."""
    damage(finished(root, cache).plan.path, "altered")
    real, calls = os.fsync, iter([True, False])

    def fails_at_the_record(handle: int) -> None:
        if not next(calls):
            raise OSError(5, "Input/output error")
        real(handle)

    monkeypatch.setattr(os, "fsync", fails_at_the_record)
    with pytest.raises(OSError, match="Input/output"):
        finished(root, cache, Fake(b"new plan"))
    manifest = verify(root)
    assert find_plan(root, manifest, manifest.variants[1], ORIN, cache=cache) is None


# Run by processes of their own: builds slowly, and notes when it began.
SLOW = """
import sys, time
from pathlib import Path
from runtime_edge.tensorrt.builder import BuiltPlan
from runtime_edge.tensorrt.device import Device
from runtime_edge.tensorrt.plans import finish

root, cache, notes, seconds = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])

def build(graph, spec, *, progress, timing_cache):
    with notes.open("a") as file:
        file.write("began\\n")
    time.sleep(seconds)
    return BuiltPlan(memoryview(b"slow plan"), "10.16.1.11", (), seconds, None, 1)

waited = []
done = finish(root, device=Device("8.7", "10.16.1.11"), cache=cache, build=build, waiting=lambda: waited.append(1))
print(done.built, len(waited), done.plan.path.read_bytes().decode())
"""


def start(root: Path, cache: Path, notes: Path, seconds: float) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", SLOW, str(root), str(cache), str(notes), str(seconds)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(notes: Path) -> None:
    for _ in range(400):
        if notes.exists():
            return
        time.sleep(0.05)
    raise AssertionError("the build did not begin")


def test_two_at_once_make_one_build(root: Path, cache: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    first = start(root, cache, notes, 2)
    wait_for(notes)
    second = start(root, cache, notes, 2)
    assert first.communicate(timeout=60)[0] == "True 0 slow plan\n"
    assert second.communicate(timeout=60)[0] == "False 1 slow plan\n"
    assert notes.read_text() == "began\n"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_build_leaves_no_half_plan_and_no_lock(root: Path, cache: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    killed = start(root, cache, notes, 60)
    wait_for(notes)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=60)
    assert files(cache) == {".lock"}
    began = time.monotonic()
    assert finished(root, cache).built
    assert time.monotonic() - began < 5  # the lock went with the process


def test_what_a_kill_while_writing_left_is_in_nobodys_way(root: Path, cache: Path) -> None:
    manifest = verify(root)
    key = plan_key(manifest, manifest.variants[1], ORIN)
    directory = caches.private_directory("plans", cache)
    (directory / f"{key}.plan.tmp").write_bytes(b"half")
    assert find_plan(root, manifest, manifest.variants[1], ORIN, cache=cache) is None
    assert finished(root, cache).plan.path.read_bytes() == b"plan"
    assert files(cache) == {".plan", ".json", ".lock"}


def test_ensure_plan_is_what_load_calls(root: Path, cache: Path) -> None:
    manifest = verify(root)
    seen: list[tuple[str, int, int]] = []
    found, built = ensure_plan(
        root,
        manifest,
        manifest.variants[1],
        ORIN,
        cache=cache,
        build=Fake(),
        progress=lambda *step: seen.append(step),
    )
    assert built
    assert seen == [("building", 1000, 1000)]
    assert ensure_plan(root, manifest, manifest.variants[1], ORIN, cache=cache, build=Fake()) == (found, False)
    with pytest.raises(ArtifactError, match="for tensorrt or tensorrt-rtx, found one for onnxruntime"):
        ensure_plan(root, manifest, manifest.variants[0], ORIN, cache=cache, build=Fake())
