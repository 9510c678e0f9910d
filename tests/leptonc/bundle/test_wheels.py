"""The wheels that a device needs: markers are its own, and what pip overlooks is asked for again."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

import pytest

from leptonc.bundle import pip as pip_module
from leptonc.bundle.device import Device
from leptonc.bundle.pip import run_pip
from leptonc.bundle.wheels import download, needed
from leptonc.errors import InputError, MissingExtraError
from tests.leptonc.bundle import fakes

ARM = Device("aarch64", (2, 35), (3, 10), ("cpu", "jetson"))
NEEDS = [
    "base>=1",
    'older; python_version < "3.11"',
    'newer; python_version >= "3.11"',
    'engine[fast]>=2; extra == "cpu"',
    'absent; extra == "compiler"',
    'driver; extra == "jetson" and platform_machine == "aarch64"',
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    fakes.only(folder, monkeypatch)
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return fakes.wheel(tmp_path, "lepton_edge", needs=NEEDS, extras=["cpu", "jetson", "compiler"])


def names(paths: list[Path]) -> list[str]:
    return [path.name.partition("-")[0] for path in paths]


def test_requirements_are_those_of_the_device_and_its_extras(own: Path) -> None:
    assert needed([own], ARM, ARM.extras) == ["base>=1", "older", "engine[fast]>=2", "driver"]
    assert needed([own], Device("x86_64", (2, 35), (3, 12)), ["jetson"]) == ["base>=1", "newer"]
    assert needed([own], ARM) == ["base>=1", "older"]


def test_wheels_of_wheels_are_there_too(folder: Path, own: Path, tmp_path: Path) -> None:
    """Pip reads `; python_version …` of a dependency as of the Python that runs it."""
    own_python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    fakes.wheel(folder, "base", needs=[f'deep; python_version != "{own_python}"', 'not_there; python_version == "3.7"'])
    fakes.wheel(folder, "deep", needs=[f'deeper>=2; python_version != "{own_python}"'])
    for name, version in (("older", "1.0"), ("engine", "2.0"), ("driver", "1.0"), ("pip", "1.0"), ("deeper", "2.1")):
        fakes.wheel(folder, name, version)
    fakes.wheel(folder, "deeper", "1.0")
    device = Device("aarch64", (2, 35), (3, 10) if own_python != "3.10" else (3, 11), ("cpu", "jetson"))
    if own_python == "3.10":
        fakes.wheel(folder, "newer")
    found = download(own, device, tmp_path / "wheels")
    assert found[0].name == own.name
    assert {"base", "deep", "deeper", "driver", "engine", "pip"} <= set(names(found))
    assert [path.name for path in found if path.name.startswith("deeper")] == ["deeper-2.1-py3-none-any.whl"]
    assert sorted(found) == sorted((tmp_path / "wheels").iterdir())


def test_the_devices_kind_of_wheel_is_taken(folder: Path, tmp_path: Path) -> None:
    own = fakes.wheel(tmp_path, "lepton_edge", needs=["engine"])
    fakes.wheel(folder, "pip")
    for platform in ("manylinux_2_28_aarch64", "manylinux_2_39_aarch64", "manylinux_2_28_x86_64"):
        fakes.wheel(folder, "engine", tag=f"cp310-cp310-{platform}")
    (found,) = [path for path in download(own, ARM, tmp_path / "wheels") if path.name.startswith("engine")]
    assert found.name == "engine-1.0-cp310-cp310-manylinux_2_28_aarch64.whl"


def test_a_wheel_that_is_not_there_for_the_device(folder: Path, tmp_path: Path) -> None:
    own = fakes.wheel(tmp_path, "lepton_edge", needs=["engine>=1"])
    fakes.wheel(folder, "pip")
    fakes.wheel(folder, "engine", tag="cp310-cp310-manylinux_2_39_aarch64")
    with pytest.raises(InputError) as caught:
        download(own, ARM, tmp_path / "wheels")
    assert caught.value.message == (
        "wheels for Python 3.10 on manylinux_2_35_aarch64: expected a wheel of engine>=1, found none that fits"
    )
    assert "--platform" in str(caught.value.hint)


BACKEND = """
import pathlib, shutil

def build_wheel(folder, config_settings=None, metadata_directory=None):
    (path,) = pathlib.Path().glob("*.whl")
    shutil.copy(path, folder)
    return path.name
"""


@pytest.mark.parametrize("tag", [fakes.TAG, f"cp{sys.version_info[0]}{sys.version_info[1]}-none-linux_x86_64"])
def test_a_package_without_wheels_is_made_here_if_it_suits_any_machine(tag: str, folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source" / "meta-1.5"
    source.mkdir(parents=True)
    fakes.wheel(source, "meta", "1.5", needs=["engine"], tag=tag)
    (source / "backend.py").write_text(BACKEND)
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: meta\nVersion: 1.5\n")
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    with tarfile.open(folder / "meta-1.5.tar.gz", "w:gz") as packed:
        packed.add(source, "meta-1.5")
    fakes.wheel(folder, "engine")
    fakes.wheel(folder, "pip")
    own = fakes.wheel(tmp_path, "lepton_edge", needs=["meta>=1.4"])
    if tag == fakes.TAG:
        assert set(names(download(own, ARM, tmp_path / "wheels"))) == {"lepton_edge", "engine", "meta", "pip"}
    else:
        with pytest.raises(InputError, match=r"expected a wheel of meta>=1\.4, found none that fits"):
            download(own, ARM, tmp_path / "wheels")


def test_where_no_index_answers(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://localhost:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(MissingExtraError, match="expected a package index, found none that answers") as caught:
        run_pip("download", "--dest", str(tmp_path), "engine", what="wheels")
    assert caught.value.exit_code == 4
    assert "PIP_FIND_LINKS" in str(caught.value.hint)


def test_without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pip_module, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="expected pip in this environment, found none") as caught:
        run_pip("download", "engine", what="wheels")
    assert (caught.value.exit_code, caught.value.hint) == (4, f"{sys.executable} -m ensurepip --upgrade")


def test_another_refusal_of_pip_is_told_in_its_words() -> None:
    with pytest.raises(InputError, match=r"wheels: expected pip to make it, found: .*unknown command"):
        run_pip("no-such-command", what="wheels")
