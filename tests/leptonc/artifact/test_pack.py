"""Artifacts cut out of others: whole, smaller, and never in place of something else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runtime_edge
from leptonc.artifact.pack import pack
from leptonc.build.to_artifact import build
from leptonc.errors import InputError
from leptonc.options import BuildOptions
from runtime_edge.errors import ArtifactError

JETSON = "jetson-orin,jetpack=7.2"


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("several") / "m.lepton"
    (licence := out.parent / "LICENCE").write_text("of the weights")
    targets = ("cpu", "cpu-arm64", JETSON)
    options = BuildOptions("sample:tiny-llama", targets, out, check=False, max_seq_len=64, attach=licence)
    return build(options).path


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_one_of_three(several: Path, tmp_path: Path) -> None:
    before = files(several)
    packed = pack(several, ["cpu"], tmp_path / "p")
    assert files(several) == before
    found = files(tmp_path / "p")
    written = {"manifest.json", "report.json", "report.html"}
    assert {name: data for name, data in found.items() if name not in written}.items() <= before.items()
    report = json.loads(found["report.json"])
    assert list(report["variants"]) == ["cpu"]
    assert set(report["operations"]) == {"captured", "cpu"}
    assert report["bytes"]["weights"] == sum(len(data) for name, data in found.items() if name.startswith("blobs/"))
    assert report["bytes"]["weights"] < json.loads(before["report.json"])["bytes"]["weights"]
    assert b"jetson" not in found["report.html"]
    assert "jetson-orin.onnx" not in found
    assert found["attached/LICENCE"] == b"of the weights"
    assert len(found) < len(before)
    assert runtime_edge.verify(tmp_path / "p") == packed
    with runtime_edge.load(tmp_path / "p") as one, runtime_edge.load(several, backend="onnxruntime") as all_:
        assert one.generate("a b", max_new_tokens=5).token_ids == all_.generate("a b", max_new_tokens=5).token_ids


def test_by_target_and_several(several: Path, tmp_path: Path) -> None:
    packed = pack(several, [JETSON, "cpu-arm64"], tmp_path / "p")
    assert [variant.name for variant in packed.variants] == ["cpu-arm64", "jetson-orin"]
    assert "cpu.onnx" not in files(tmp_path / "p")


def test_an_unknown_variant(several: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        pack(several, ["jetson-orion"], tmp_path / "p")
    assert caught.value.message == "expected variants among cpu, cpu-arm64, jetson-orin, found 'jetson-orion'"
    assert caught.value.hint == "did you mean jetson-orin?"
    assert list(tmp_path.iterdir()) == []


def test_places_that_are_taken(several: Path, tmp_path: Path) -> None:
    pack(several, ["cpu"], tmp_path / "p")
    with pytest.raises(InputError, match="found an artifact"):
        pack(several, ["cpu-arm64"], tmp_path / "p")
    assert [v.name for v in pack(several, ["cpu-arm64"], tmp_path / "p", replace=True).variants] == ["cpu-arm64"]
    with pytest.raises(InputError, match="another place than the artifact's own"):
        pack(several, ["cpu"], several, replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize("damage", ["flip", "remove", "cut"])
def test_a_damaged_artifact(several: Path, tmp_path: Path, damage: str) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(several, whole)
    blob = next(iter(sorted((whole / "blobs").iterdir())))
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    change: dict[str, Callable[[], Any]] = {
        "flip": lambda: blob.write_bytes(data), "remove": blob.unlink, "cut": lambda: blob.write_bytes(data[:-1]),
    }  # fmt: skip
    change[damage]()
    with pytest.raises(ArtifactError, match="blobs/"):
        pack(whole, ["cpu", "cpu-arm64", "jetson-orin"], tmp_path / "p")
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_the_verb(several: Path, tmp_path: Path, leptonc: Callable[..., Any]) -> None:
    done = leptonc("pack", several, "--only", "cpu", "-o", tmp_path / "p")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{tmp_path / 'p'}: cpu, 0.")
    again = leptonc("pack", several, "--only", "cpu", "-o", tmp_path / "p", "--force", "--json")
    assert [v["name"] for v in json.loads(again.out)["manifest"]["variants"]] == ["cpu"]
    assert leptonc("pack", several, "-o", tmp_path / "q").code == 2
    assert leptonc("pack", tmp_path / "nothing", "--only", "cpu", "-o", tmp_path / "q").code == 1


def test_inspect_shows_each_variant(several: Path, leptonc: Callable[..., Any]) -> None:
    lines = leptonc("inspect", several).out.splitlines()
    names = ("cpu", "cpu-arm64", "jetson-orin")
    cpu, arm, jetson = (next(line for line in lines if line.startswith(f"variant {name} ")) for name in names)
    assert "cpu, onnxruntime, weights int8, activations none, 0." in cpu
    assert "of them shared" in cpu
    assert "of them shared" in arm
    assert "of them shared" not in jetson
    assert (
        "for tensorrt >=10.16;<11.0, compute capability 8.7, cache float16, in place, engine finished on the" in jetson
    )
