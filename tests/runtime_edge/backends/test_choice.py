"""Every step from a plan of the artifact's own down to the CPU, what is told of it, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import runtime_edge
from runtime_edge import ort
from runtime_edge.backends import choice, onnxruntime, tensorrt
from runtime_edge.cuda import DeviceMemoryError
from runtime_edge.errors import (
    ArtifactError,
    BackendWarning,
    EngineError,
    LeptonError,
    MissingDependencyError,
    RequestError,
)
from runtime_edge.installation import install_command
from runtime_edge.tensorrt import device as devices
from runtime_edge.tensorrt import flavours
from runtime_edge.tensorrt.device import Device
from runtime_edge.tensorrt.plans import FoundPlan
from tests.runtime_edge.test_verify import edit, relist

NO_DRIVER = MissingDependencyError("expected a GPU of NVIDIA and its driver, found none", hint="install the driver")
RTX_3090 = Device("8.6", "1.7.1.116")
SHAPES = [{"name": "input_ids", "min": [1, 1], "opt": [1, 1], "max": [1, 8]}]


def engine(flavour: str, versions: str, capability: str, plan: str | None, version: str) -> dict[str, Any]:
    spec = {
        "flavour": flavour,
        "versions": versions,
        "compute_capabilities": [capability],
        "profiles": [{"name": "decode", "inputs": SHAPES}],
    }
    plans = [{"file": plan, "version": version, "compute_capabilities": [capability]}] if plan else []
    return {"spec": spec, "plans": plans}


def add_variant(
    root: Path, name: str, *, plan: bool = True, capability: str = "8.6", version: str = "1.7.1.116"
) -> None:
    """Adds a variant whose graph is the CPU's and whose plan is some bytes."""
    flavour = "tensorrt-rtx" if name.startswith("rtx") else "tensorrt"
    file = f"{name}.plan"

    def change(data: dict[str, Any]) -> None:
        versions = ">=1.4;<2.0" if flavour == "tensorrt-rtx" else ">=10.3;<11.0"
        described = engine(flavour, versions, capability, file if plan else None, version)
        graphs = [{**data["variants"][0]["graphs"][0], "engine": described}]
        data["variants"].append({**data["variants"][0], "name": name, "backend": flavour, "graphs": graphs})
        if plan:
            data["files"].append({"path": file, "size": 4, "sha256": "0" * 64})

    edit(root, change)
    if plan:
        (root / file).write_bytes(b"plan")
        relist(root, file)


class Machine:
    """What a probe of this machine answers. Plans 'run' as the CPU's graph, which gives the real answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device: Device | LeptonError = RTX_3090
        self.opening: dict[str, LeptonError] = {}
        self.built: list[str] = []
        self.opened: list[tuple[str, Path | None]] = []
        self.build: FoundPlan | LeptonError = FoundPlan(Path("built.plan"), "1" * 64, 4, "1.7.1.116")
        self.providers = ["CPUExecutionProvider"]
        self.root = Path()
        monkeypatch.setattr(choice, "this_device", self._device)
        monkeypatch.setattr(choice, "ensure_plan", self._build)
        monkeypatch.setattr(tensorrt, "open_decoder", self._open)

    def _device(self, flavour: flavours.Flavour) -> Device:
        if isinstance(self.device, LeptonError):
            raise self.device
        return self.device

    def _build(self, root: Path, manifest: Any, variant: Any, device: Device) -> tuple[FoundPlan, bool]:
        self.built.append(variant.name)
        if isinstance(self.build, LeptonError):
            raise self.build
        return self.build, True

    def _open(self, plan: Path, record: Any, decoder: Any, kernels: Path | None, why: list[str]) -> Any:
        self.opened.append((plan.name, kernels))
        if plan.name in self.opening:
            raise self.opening[plan.name]
        return onnxruntime.open_decoder(self.root / "cpu.onnx", decoder, 1)

    def load(self, root: Path, **options: Any) -> tuple[runtime_edge.Model, list[str]]:
        """Loads, and returns what was warned of."""
        self.root = root
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = runtime_edge.load(root, threads=1, **options)
        assert all(warning.category is BackendWarning for warning in caught)
        assert {warning.filename for warning in caught} <= {__file__}
        return model, [str(warning.message) for warning in caught]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))
    return Machine(monkeypatch)


@pytest.fixture
def rtx(artifact: Path) -> Path:
    add_variant(artifact, "rtx")
    return artifact


def test_a_plan_of_the_artifact_for_this_machine_runs_without_a_word(rtx: Path, machine: Machine) -> None:
    model, warned = machine.load(rtx)
    assert (model.backend, model.variant.name, model.why, warned) == ("tensorrt-rtx", "rtx", (), [])
    assert len(model.generate("a", max_new_tokens=3).token_ids) == 3
    ((name, kernels),) = machine.opened
    assert name == "rtx.plan"
    assert kernels is not None
    assert kernels.name.endswith("-1.7.1.116-8.6.cache")
    assert machine.built == []
    model.close()


def test_a_plan_that_is_missing_is_built_and_that_is_told_before(artifact: Path, machine: Machine) -> None:
    add_variant(artifact, "rtx", plan=False)
    model, warned = machine.load(artifact)
    assert machine.built == ["rtx"]
    assert machine.opened[0][0] == "built.plan"
    assert (model.backend, model.why) == ("tensorrt-rtx", tuple(warned))
    assert warned == [
        "rtx: no plan for TensorRT-RTX 1.7.1.116 and compute capability 8.6 yet: it is built now, once "
        "(`lepton-edge finish` does it beforehand)"
    ]


@pytest.mark.parametrize("change", [{"version": "1.6.0.1"}, {"capability": "8.6"}])
def test_a_plan_of_another_version_or_gpu_is_never_opened(
    artifact: Path, machine: Machine, change: dict[str, str]
) -> None:
    add_variant(artifact, "rtx", **change)
    if "capability" in change:  # a plan for one of the spec's GPUs, and this is another of them

        def widen(data: dict[str, Any]) -> None:
            data["variants"][1]["graphs"][0]["engine"]["spec"]["compute_capabilities"] = ["8.6", "8.9"]

        edit(artifact, widen)
        machine.device = Device("8.9", "1.7.1.116")
    machine.load(artifact)
    assert machine.built == ["rtx"]
    assert [name for name, _ in machine.opened] == ["built.plan"]


def test_a_plan_that_is_there_comes_before_one_that_has_to_be_built(artifact: Path, machine: Machine) -> None:
    add_variant(artifact, "rtx-int4", plan=False)
    add_variant(artifact, "rtx")
    model, warned = machine.load(artifact)
    assert (model.variant.name, machine.built, warned) == ("rtx", [], [])


def test_without_a_driver_the_cpu_runs_and_each_step_down_is_told_once(rtx: Path, machine: Machine) -> None:
    machine.device = NO_DRIVER
    model, warned = machine.load(rtx)
    assert (model.backend, model.variant.name) == ("onnxruntime", "cpu")
    assert warned == [
        "rtx on tensorrt-rtx: expected a GPU of NVIDIA and its driver, found none (install the driver)",
        "cpu on onnxruntime-cuda: ONNX Runtime: expected one of CUDAExecutionProvider and TensorrtExecutionProvider, "
        f"found {', '.join(ort.load().get_available_providers())} "
        f"(pip uninstall onnxruntime && {install_command('gpu')})",
    ]
    assert model.why == tuple(warned)
    assert len(model.generate("a", max_new_tokens=3).token_ids) == 3
    assert machine.opened == []


@pytest.mark.parametrize(
    "error", [EngineError("the plan is refused"), DeviceMemoryError("expected 9 MB of free GPU memory, found 1 MB")]
)
def test_an_engine_that_does_not_open_gives_way(rtx: Path, machine: Machine, error: LeptonError) -> None:
    machine.opening["rtx.plan"] = error
    model, warned = machine.load(rtx)
    assert model.backend == "onnxruntime"
    assert warned[0] == f"rtx on tensorrt-rtx: {error.message}"


def test_a_build_that_fails_gives_way(artifact: Path, machine: Machine) -> None:
    add_variant(artifact, "rtx", plan=False)
    machine.build = EngineError("no such operator")
    model, warned = machine.load(artifact)
    assert model.backend == "onnxruntime"
    assert [text.partition(":")[0] for text in warned] == ["rtx", "rtx on tensorrt-rtx", "cpu on onnxruntime-cuda"]


def test_onnxruntime_with_a_gpu_comes_before_the_cpu(
    rtx: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.device = NO_DRIVER
    asked: list[Any] = []
    real = onnxruntime.open_decoder

    def opening(graph: Path, decoder: Any, threads: int, providers: Any, **beside: None) -> Any:
        asked.append(list(providers))
        return real(graph, decoder, threads)

    package = ort.load()
    for available, first in (
        (["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"], "CUDAExecutionProvider"),
        (["TensorrtExecutionProvider", "CPUExecutionProvider"], "TensorrtExecutionProvider"),
    ):
        monkeypatch.setattr(package, "get_available_providers", lambda available=available: available)
        monkeypatch.setattr(onnxruntime, "open_decoder", opening)
        model, warned = machine.load(rtx)
        assert (model.backend, model.variant.name, len(warned)) == ("onnxruntime-cuda", "cpu", 1)
        assert asked.pop() == [first, "CPUExecutionProvider"]


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_load_gives_way(rtx: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """This onnxruntime has no CUDA provider: it takes the name, and leaves the provider out."""
    machine.device = NO_DRIVER
    monkeypatch.setattr(onnxruntime, "gpu_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = runtime_edge.load(rtx, threads=1)
    assert model.backend == "onnxruntime"
    told = [str(warning.message) for warning in caught if warning.category is BackendWarning]
    assert "cpu on onnxruntime-cuda: cpu.onnx: expected ONNX Runtime's CUDAExecutionProvider" in told[1]


@pytest.mark.parametrize("backend", ["tensorrt-rtx", "tensorrt", "onnxruntime-cuda"])
def test_a_backend_that_is_asked_for_runs_or_fails(rtx: Path, machine: Machine, backend: str) -> None:
    machine.device = NO_DRIVER
    kind = RequestError if backend == "tensorrt" else MissingDependencyError
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(kind) as caught:
            runtime_edge.load(rtx, threads=1, backend=backend)
    reason = {
        "tensorrt-rtx": "expected a GPU of NVIDIA and its driver, found none",
        "tensorrt": "variants: expected one for tensorrt, found cpu (onnxruntime), rtx (tensorrt-rtx)",
        "onnxruntime-cuda": "ONNX Runtime: expected one of CUDAExecutionProvider and",
    }[backend]
    assert reason in caught.value.message
    assert caught.value.hint is not None


def test_the_cpu_that_is_asked_for_runs_without_a_word(rtx: Path, machine: Machine) -> None:
    model, warned = machine.load(rtx, backend="onnxruntime")
    assert (model.backend, model.why, warned, machine.opened) == ("onnxruntime", (), [], [])


def test_a_forced_engine_with_several_faults_gives_all_of_them(artifact: Path, machine: Machine) -> None:
    add_variant(artifact, "rtx")
    add_variant(artifact, "rtx-40", capability="8.9")
    machine.opening["rtx.plan"] = EngineError("the plan is refused")
    with pytest.raises(EngineError) as caught:
        machine.load(artifact, backend="tensorrt-rtx")
    assert caught.value.message == (
        "backend 'tensorrt-rtx': expected one variant that runs here, found none: the plan is refused; "
        "variant 'rtx-40': expected a GPU of compute capability 8.9, found 8.6"
    )


def only_tensorrt(root: Path) -> None:
    edit(root, lambda data: data["variants"].pop(0))


def test_only_tensorrt_on_a_machine_without_a_driver_names_what_is_missing(
    rtx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real probes, with a driver's name that is nowhere."""
    only_tensorrt(rtx)
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX (the extra rtx) is not installed")
    monkeypatch.setattr(devices, "_LIBRARY", "libno-such-driver.so.1")
    with pytest.raises(MissingDependencyError, match=r"libno-such-driver") as caught:
        runtime_edge.load(rtx)
    assert caught.value.exit_code == 4
    assert "install NVIDIA's driver" in str(caught.value.hint)


def test_only_tensorrt_where_it_is_not_installed(rtx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_tensorrt(rtx)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(
        MissingDependencyError, match="needs the module `tensorrt_rtx`, which is not installed"
    ) as caught:
        runtime_edge.load(rtx)
    assert caught.value.hint == install_command("rtx")


def test_an_altered_plan_is_refused_before_anything_is_opened(rtx: Path, machine: Machine) -> None:
    (rtx / "rtx.plan").write_bytes(b"plam")
    with pytest.raises(ArtifactError, match=r"rtx\.plan: expected sha256"):
        machine.load(rtx)
    (rtx / "rtx.plan").write_bytes(b"pl")
    with pytest.raises(ArtifactError, match=r"rtx\.plan: expected 4 bytes, found 2"):
        machine.load(rtx)
    assert machine.opened == []


def test_a_damaged_plan_in_the_cache_is_built_again(
    artifact: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_variant(artifact, "rtx", plan=False)

    def damaged(*given: Any, **options: Any) -> None:
        raise ArtifactError("KEY.plan: expected sha256 1, found 2")

    monkeypatch.setattr(choice, "find_plan", damaged)
    model, warned = machine.load(artifact)
    assert (model.backend, machine.built) == ("tensorrt-rtx", ["rtx"])
    assert "rtx: KEY.plan: expected sha256 1, found 2" in warned


def test_a_cache_that_cannot_be_used_costs_the_kernels_only(
    rtx: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "file"))
    model, warned = machine.load(rtx)
    assert (model.backend, warned) == ("tensorrt-rtx", [])
    assert machine.opened == [("rtx.plan", None)]


def test_reasons_of_the_session_are_seen_when_they_arise(rtx: Path, machine: Machine) -> None:
    model, _ = machine.load(rtx)
    model._why.append("decodes without a CUDA graph")
    assert model.why == ("decodes without a CUDA graph",)


def test_the_command_line_says_it_without_the_place_in_the_code(rtx: Path, machine: Machine, lepton_edge: Any) -> None:
    machine.device = NO_DRIVER
    done = lepton_edge("run", rtx, "hello", "--max-new-tokens", 2)
    assert done.code == 0
    told = done.err.splitlines()
    assert told[0].startswith("warning: rtx on tensorrt-rtx: expected a GPU of NVIDIA and its driver, found none")
    assert told[1].startswith("warning: cpu on onnxruntime-cuda: ")
    assert "BackendWarning" not in done.err


def test_nothing_of_the_artifact_is_written(rtx: Path, machine: Machine, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(rtx, tmp_path / "copy"))
    machine.load(rtx)
    assert sorted(path.name for path in rtx.rglob("*")) == sorted(path.name for path in copy.rglob("*"))
    assert json.loads((rtx / "manifest.json").read_text()) == json.loads((copy / "manifest.json").read_text())
