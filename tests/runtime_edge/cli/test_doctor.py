"""`doctor`."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Callable
from importlib import metadata
from types import SimpleNamespace
from typing import Any, NamedTuple

import onnxruntime
import pytest

from runtime_edge import cuda, kernels
from runtime_edge.cli import doctor as module
from runtime_edge.installation import install_command
from runtime_edge.tensorrt import device, flavours


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends an installation of which a part is missing."""
    requirements = [
        "numpy>=1.26",
        "absent-base>=1",
        'onnxruntime>=1.32; extra == "cpu"',
        'absent-gpu>=1; extra == "gpu"',
        'lepton-edge[cpu]; extra == "compiler"',
        'onnx>=1; extra == "compiler"',
    ]
    monkeypatch.setattr(metadata, "requires", lambda name: requirements)


@pytest.mark.usefixtures("installed")
def test_what_is_missing_and_how_to_get_it(leptonc: Callable[..., Any]) -> None:
    out = leptonc("doctor").out
    rows = {line[: line.index("  ")]: line.partition("  ")[2].strip() for line in out.splitlines() if "  " in line}
    assert rows["python"].startswith(platform.python_version())
    assert rows["numpy"] == metadata.version("numpy")
    assert rows["absent-base"] == "missing"
    assert rows["extra cpu"] == "complete"
    assert rows["extra compiler"] == "complete"
    assert rows["extra gpu"] == f"lacks absent-gpu: {install_command('gpu')}"


@pytest.mark.usefixtures("installed")
def test_as_json(leptonc: Callable[..., Any]) -> None:
    found = json.loads(leptonc("doctor", "--json").out)
    assert found["extras"]["gpu"]["packages"] == {"absent-gpu": None}
    assert found["cpu"]["cores"] >= 1
    assert found["memory_gb"] > 0.1


def test_whose_kernels_run(monkeypatch: pytest.MonkeyPatch, leptonc: Callable[..., Any]) -> None:
    monkeypatch.setattr(kernels, "_path", lambda name: None)
    assert json.loads(leptonc("doctor", "--json").out)["kernels"].startswith("ONNX Runtime's; Lepton's: not compiled")
    monkeypatch.setattr(kernels, "lacking", lambda: None)
    monkeypatch.setattr(kernels, "tiles", lambda: False)
    assert json.loads(leptonc("doctor", "--json").out)["kernels"] == "Lepton's: attention in float32"
    monkeypatch.setattr(kernels, "tiles", lambda: True)
    assert "in bfloat16, and products of int8" in json.loads(leptonc("doctor", "--json").out)["kernels"]


def test_from_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, leptonc: Callable[..., Any]) -> None:
    def absent(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    done = leptonc("doctor")
    assert done.code == 0
    assert rows(done.out)["lepton-edge"] == "missing"


def test_gpus_are_read_from_nvidia_smi(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 4090, 8.9, 24564 MiB, 580.10'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert module._gpus()[0] == {
        "name": "NVIDIA GeForce RTX 4090",
        "compute_cap": "8.9",
        "memory.total": "24564 MiB",
        "driver_version": "580.10",
    }


class Gpu(NamedTuple):
    """What CUDA says of a machine with a GPU; no GPU is touched."""

    bytes_free: int

    def free_memory(self) -> int:
        return self.bytes_free


def rows(out: str) -> dict[str, str]:
    return dict(re.findall(r"^(\S+(?: \S+)*) {2,}(.+)$", out, re.M))


def test_tensorrt_on_a_machine_with_everything(
    monkeypatch: pytest.MonkeyPatch, lepton_edge: Callable[..., Any]
) -> None:
    monkeypatch.setattr(cuda, "Cuda", lambda: Gpu(5_100_000_000))
    orin = device.Gpu("Orin", "8.7", 7_400_000_000, "12.6")
    monkeypatch.setattr(device, "gpu", lambda: orin)
    monkeypatch.setattr(
        flavours, "import_module", lambda flavour: SimpleNamespace(__version__=f"{len(flavour.name)}.3.0")
    )
    shown = rows(lepton_edge("doctor").out)
    assert shown["driver"] == "CUDA 12.6"
    assert shown["compute capability"] == "8.7 (Orin)"
    assert shown["gpu memory"] == "5.1 of 7.4 GB free"
    assert (shown["TensorRT"], shown["TensorRT-RTX"]) == ("8.3.0", "12.3.0")
    assert shown["ONNX Runtime on"] == ", ".join(onnxruntime.get_available_providers())


def test_tensorrt_on_a_machine_with_nothing(monkeypatch: pytest.MonkeyPatch, lepton_edge: Callable[..., Any]) -> None:
    monkeypatch.setattr(device, "_LIBRARY", "libno-such-driver.so.1")
    for name in ("cuda.bindings.runtime", "tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    done = lepton_edge("doctor")
    assert (done.code, done.err) == (0, "")
    shown = rows(done.out)
    assert "libno-such-driver.so.1" in shown["driver"]
    assert "install NVIDIA's driver" in shown["driver"]
    assert install_command("jetson" if platform.machine() == "aarch64" else "rtx") in shown["gpu memory"]
    assert shown["TensorRT-RTX"].startswith("missing: ")
    assert shown["TensorRT-RTX"].endswith(install_command("rtx"))
    assert "sudo apt install nvidia-jetpack" in shown["TensorRT"]
    found = json.loads(lepton_edge("doctor", "--json").out)["tensorrt"]
    assert found["flavours"]["tensorrt-rtx"]["install"] == install_command("rtx")
    assert "version" not in found["flavours"]["tensorrt-rtx"]


def test_a_driver_that_fails_is_no_gpu(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'has failed because it could not communicate' >&2\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert list(module._nvidia_smi()) == []
