"""`leptonc doctor`."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from importlib import metadata
from typing import Any

import pytest

from leptonc.cli import doctor as module


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends an installation of which a part is missing."""
    requirements = [
        "numpy>=1.26",
        "absent-base>=1",
        'onnxruntime>=1.32; extra == "cpu"',
        'absent-gpu>=1; extra == "gpu"',
        'absent-model==1.0; extra == "samples"',
        'other-model==2.0; extra == "samples"',
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
    assert rows["extra gpu"] == "lacks absent-gpu: pip install 'lepton-edge[gpu]'"
    assert rows["extra samples"] == ("lacks absent-model, other-model: pip install --no-deps absent-model other-model")


@pytest.mark.usefixtures("installed")
def test_as_json(leptonc: Callable[..., Any]) -> None:
    found = json.loads(leptonc("doctor", "--json").out)
    assert found["extras"]["gpu"]["packages"] == {"absent-gpu": None}
    assert found["cpu"]["cores"] >= 1
    assert found["memory_gb"] > 0.1


def test_from_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, leptonc: Callable[..., Any]) -> None:
    def absent(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    done = leptonc("doctor")
    assert done.code == 0
    assert "lepton-edge  missing" in done.out


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


def test_a_driver_that_fails_is_no_gpu(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'has failed because it could not communicate' >&2\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert list(module._nvidia_smi()) == []
