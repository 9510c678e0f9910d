"""Lepton's own wheel for a device: its files, its tag, its list of digests, and kernels only where they run."""

from __future__ import annotations

import base64
import csv
import hashlib
import platform
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from leptonc.bundle import wheel as module
from leptonc.bundle.device import Device
from leptonc.bundle.wheel import own_wheel
from leptonc.errors import InputError
from runtime_edge.kernels import NOTE

ROOT = Path(__file__).parent.parent.parent.parent
KERNELS = {
    "runtime_edge/kernels/_kernels.cpython-311-x86_64-linux-gnu.so": b"\x7fELF GLIBC_2.2.5 GLIBC_2.27\0",
    "runtime_edge/kernels/_kernels_avx2.cpython-311-x86_64-linux-gnu.so": b"\x7fELF GLIBC_2.14\0",
}
FILES = {
    "leptonc/__init__.py": b"",
    "runtime_edge/__init__.py": b'__version__ = "7.0"\n',
    "runtime_edge/kernels/__init__.py": b"",
    "lepton_edge-7.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: lepton-edge\nVersion: 7.0\n",
    "lepton_edge-7.0.dist-info/entry_points.txt": b"[console_scripts]\nleptonc = leptonc.cli:main\n",
    **KERNELS,
}
# What pip leaves beside them.
OF_PIP = {
    "../../../bin/leptonc": b"#!/bin/sh\n",
    "leptonc/__pycache__/__init__.cpython-311.pyc": b"",
    "lepton_edge-7.0.dist-info/INSTALLER": b"pip\n",
    "lepton_edge-7.0.dist-info/REQUESTED": b"",
    "lepton_edge-7.0.dist-info/direct_url.json": b"{}",
    "lepton_edge-7.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: cp311-cp311-linux_x86_64\n",
}
X86, ARM = Device("x86_64", (2, 28), (3, 10)), Device("aarch64", (2, 35), (3, 10))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment in which a wheel is installed; returns its folder of packages."""
    site = tmp_path / "env" / "lib" / "python" / "site-packages"
    for name, data in {**FILES, **OF_PIP}.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    info = site / "lepton_edge-7.0.dist-info"
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in (*FILES, *OF_PIP, f"{info.name}/RECORD")))
    monkeypatch.setattr(module, "checkout", lambda: None)
    monkeypatch.setattr(metadata, "distribution", lambda name: metadata.PathDistribution(info))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return site


def content(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist()}


@pytest.mark.usefixtures("installed")
def test_an_installed_wheel_is_packed_again_with_its_kernels(tmp_path: Path) -> None:
    path = own_wheel(tmp_path, X86)
    assert path.name == "lepton_edge-7.0-py3-none-linux_x86_64.whl"
    files = content(path)
    about = files.pop("lepton_edge-7.0.dist-info/WHEEL").decode()
    record = files.pop("lepton_edge-7.0.dist-info/RECORD").decode()
    expected = {name.replace(".cpython-311-x86_64-linux-gnu.so", ".abi3.so"): data for name, data in FILES.items()}
    assert files == expected
    assert "Root-Is-Purelib: false\nTag: py3-none-linux_x86_64\n" in about
    rows = {name: (digest, size) for name, digest, size in csv.reader(record.splitlines())}
    assert rows.keys() == content(path).keys()
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        assert rows[name] == (f"sha256={digest}", str(len(data)))
    assert rows["lepton_edge-7.0.dist-info/RECORD"] == ("", "")
    again = tmp_path / "again"
    again.mkdir()
    assert own_wheel(again, X86).read_bytes() == path.read_bytes()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (ARM, "this copy was packed for aarch64 on x86_64"),
        (
            Device("x86_64", (2, 26), (3, 11)),
            "this copy was packed for an older C library than the one that compiled them",
        ),
    ],
)
def test_kernels_that_would_not_run_are_left_out_and_the_wheel_says_so(
    device: Device, reason: str, tmp_path: Path
) -> None:
    path = own_wheel(tmp_path, device)
    assert path.name == "lepton_edge-7.0-py3-none-any.whl"
    files = content(path)
    assert not any(name.endswith(".so") for name in files)
    assert files[f"runtime_edge/kernels/{NOTE}"].decode() == f"{reason}\n"
    assert b"Tag: py3-none-any\n" in files["lepton_edge-7.0.dist-info/WHEEL"]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("device", [X86, ARM], ids=lambda device: device.machine)
def test_pip_takes_it_where_it_is_for(device: Device, tmp_path: Path) -> None:
    path = own_wheel(tmp_path, device)
    platforms = [f"--platform={name}" for name in device.platforms()]
    command = [sys.executable, "-m", "pip", "--isolated", "install", "--quiet", "--no-index", "--no-deps", *platforms]
    command += ["--only-binary=:all:", f"--python-version={device.python_version}", "--target", str(tmp_path / "to")]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "to" / "runtime_edge" / "__init__.py").read_bytes() == FILES["runtime_edge/__init__.py"]
    assert (tmp_path / "to" / "bin" / "leptonc").exists()


def damage(site: Path) -> None:
    (site / "leptonc" / "__init__.py").unlink()


def unlist(site: Path) -> None:
    (site / "lepton_edge-7.0.dist-info" / "RECORD").write_text("lepton_edge-7.0.dist-info/METADATA,,\n")


@pytest.mark.parametrize(
    ("change", "found"),
    [(damage, "leptonc/__init__.py of the installed"), (unlist, "found one without a list of files")],
)
def test_an_installation_that_is_not_whole_is_refused(
    change: Callable[[Path], None], found: str, installed: Path, tmp_path: Path
) -> None:
    change(installed)
    with pytest.raises(InputError, match=found) as caught:
        own_wheel(tmp_path, X86)
    assert "pip install" in str(caught.value.hint)


@pytest.mark.slow
def test_a_checkout_is_built_and_left_as_it_is(tmp_path: Path) -> None:
    before = set(ROOT.iterdir())
    device = Device(platform.machine(), (2, 99), sys.version_info[:2])
    files = content(own_wheel(tmp_path, device))
    assert set(ROOT.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == [path.name for path in tmp_path.glob("lepton_edge-*.whl")]
    for name in ("leptonc/build/engine.py", "leptonc/bundle/install.sh", "targets/cpu.toml", "runtime_edge/py.typed"):
        assert files[name] == (ROOT / name).read_bytes()
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in ("leptonc", "runtime_edge", "sample_models", "targets")
        for path in (ROOT / package).rglob("*.py")
    }
    assert sources <= files.keys()
