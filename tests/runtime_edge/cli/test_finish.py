"""The verb finish: what it says and with which exit code; what it does is tested with `tensorrt.plans`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime_edge.tensorrt import builder, plans
from runtime_edge.tensorrt.builder import BuiltPlan
from runtime_edge.tensorrt.device import Device
from tests.runtime_edge.tensorrt.graphs import DEVICE_VERSION, write_artifact


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))
    return write_artifact(tmp_path / "model.lepton")


@pytest.fixture
def orin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this machine a Jetson, as far as `finish` sees."""

    def build(graph: Path, spec: Any, *, progress: Any, timing_cache: Any) -> BuiltPlan:
        for done in (0, 500, 1000):
            progress("Building engine", done, 1000)
        return BuiltPlan(memoryview(bytes(2_500_000)), DEVICE_VERSION, (), 34.25, 1_500_000_000, 7)

    monkeypatch.setattr(plans, "this_device", lambda wanted: Device("8.7", DEVICE_VERSION))
    monkeypatch.setattr(builder, "build_plan", build)


@pytest.mark.usefixtures("orin")
@pytest.mark.parametrize("program", ["lepton_edge", "leptonc"])
def test_builds_and_then_is_ready(root: Path, program: str, request: pytest.FixtureRequest) -> None:
    run: Callable[..., Any] = request.getfixturevalue(program)
    first = run("finish", root)
    assert first.code == 0
    said, took, path = first.out.splitlines()
    assert said == f"jetson-orin: built, 2.5 MB, TensorRT {DEVICE_VERSION}, compute capability 8.7"
    assert took == "34.2 s, 1,500.0 MB of memory at most"
    assert Path(path).stat().st_size == 2_500_000
    assert re.fullmatch(r"finishing: \d+\.\d\d s\n", first.err)
    second = run("finish", root, "--variant", "jetson-orin", "--json")
    answer = json.loads(second.out)
    assert (answer["built"], answer["variant"], answer["plan"]) == (False, "jetson-orin", path)
    assert (answer["version"], answer["compute_capability"]) == (DEVICE_VERSION, "8.7")
    assert (answer["bytes"], answer["seconds"], answer["peak_memory"]) == (2_500_000, 34.25, 1_500_000_000)


@pytest.mark.usefixtures("orin")
def test_a_variant_that_is_not_there(lepton_edge: Callable[..., Any], root: Path) -> None:
    done = lepton_edge("finish", root, "--variant", "rtx")
    assert (done.code, done.out) == (1, "")
    assert (
        "error: variants: expected one of the name 'rtx', found cpu (onnxruntime), jetson-orin (tensorrt)" in done.err
    )


def test_a_machine_without_tensorrt(
    lepton_edge: Callable[..., Any], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    done = lepton_edge("finish", root)
    assert (done.code, done.out) == (4, "")
    assert "error: TensorRT needs the module `tensorrt`, which is not installed" in done.err
    assert "hint: on a Jetson it comes with JetPack" in done.err
