"""The folder: whole or not there, its digests right, and its scripts do what they say on a machine without network."""

from __future__ import annotations

import ensurepip
import hashlib
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runtime_edge
from leptonc.bundle import write
from leptonc.bundle.device import Device
from leptonc.bundle.write import Bundle, write_bundle
from leptonc.errors import InputError, MissingExtraError
from runtime_edge import __version__
from runtime_edge.errors import ArtifactError
from tests.leptonc.bundle import fakes

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
HERE = f"manylinux_2_99_{platform.machine()}"
MAIN = "import sys\ndef main():\n    print('ran', *sys.argv[1:])\n"
SCRIPTS = "[console_scripts]\nlepton-edge = runtime_edge.fake:main\n"
PIPS = sorted((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip looks in, with a runtime that prints what it is asked, and pip itself."""
    folder = tmp_path / "index"
    folder.mkdir()
    fakes.only(folder, monkeypatch)
    fakes.wheel(folder, "engine")
    if PIPS:
        shutil.copy(PIPS[-1], folder)
    else:
        fakes.wheel(folder, "pip")

    def own(folder: Path, device: Device) -> Path:
        return fakes.wheel(
            folder, "lepton_edge", __version__, needs=['engine; extra == "cpu"'], extras=["cpu"],
            files={"runtime_edge/__init__.py": "", "runtime_edge/fake.py": MAIN}, scripts=SCRIPTS,
        )  # fmt: skip

    monkeypatch.setattr(write, "own_wheel", own)
    return folder


@pytest.fixture
def bundle(index: Path, tiny_artifact: Path, tmp_path: Path) -> Bundle:
    return write_bundle(tiny_artifact, (), tmp_path / "device", platform=HERE)


def shell(script: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    return subprocess.run(
        ["sh", str(script), *arguments], env={**environment, "PYTHON": sys.executable, **variables},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_folder_has_the_artifact_wheels_scripts_and_digests(bundle: Bundle, tiny_artifact: Path) -> None:
    folder = bundle.path
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.txt", "SHA256SUMS", "bundle.json", "install.sh", "model.lepton", "run.sh", "wheels",
    ]  # fmt: skip
    assert runtime_edge.verify(folder / "model.lepton") == bundle.manifest
    assert {path.name.partition("-")[0] for path in (folder / "wheels").iterdir()} == {"engine", "lepton_edge", "pip"}
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert sums.keys() == present - {"SHA256SUMS", "bundle.json"}
    for name, digest in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    record = json.loads((folder / "bundle.json").read_text())
    assert set(record["files"]) == set(bundle.files) == present - {"bundle.json"}
    assert (record["platform"], record["python"], record["extras"]) == (HERE, PYTHON, ["cpu"])
    assert bundle.size == sum((folder / name).stat().st_size for name in sums)


def test_scripts_are_filled_and_may_be_run(bundle: Bundle) -> None:
    for name in ("install.sh", "run.sh"):
        assert stat.S_IMODE((bundle.path / name).stat().st_mode) == 0o755
    for name in ("install.sh", "run.sh", "README.txt"):
        assert "@" not in (bundle.path / name).read_text().replace('"$@"', "")
    install = (bundle.path / "install.sh").read_text()
    assert f'"lepton-edge[cpu]=={__version__}"' in install
    assert f'want="{PYTHON} on {platform.machine()}"' in install
    assert "--system-site-packages" not in install
    assert HERE in (bundle.path / "README.txt").read_text()


@pytest.mark.skipif(not PIPS, reason="this Python has no wheel of pip beside it")
def test_they_install_and_run_without_an_index(bundle: Bundle) -> None:
    before = shell(bundle.path / "run.sh", "hello")
    assert (before.returncode, before.stdout) == (4, "")
    assert f"hint: run {bundle.path}/install.sh first" in before.stderr
    installed = shell(bundle.path / "install.sh")
    assert (installed.returncode, installed.stdout) == (0, 'installed: ./run.sh "PROMPT"\n'), installed.stderr
    done = shell(bundle.path / "run.sh", "two words", "--seed", "1")
    assert done.stdout == f"ran run {bundle.path}/model.lepton two words --seed 1\n", done.stderr
    assert shell(bundle.path / "install.sh").returncode == 0  # again


@pytest.mark.skipif(not PIPS, reason="this Python has no wheel of pip beside it")
def test_without_the_module_venv_they_install_into_a_folder(bundle: Bundle, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$2" != venv ] || exit 1\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    assert shell(bundle.path / "install.sh", PYTHON=str(python)).returncode == 0
    assert (bundle.path / "lib" / "engine" / "__init__.py").is_file()
    done = shell(bundle.path / "run.sh", "hello", PYTHON=str(python))
    assert done.stdout == f"ran run {bundle.path}/model.lepton hello\n", done.stderr


def test_another_python_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 3.7 on pdp11\n")
    python.chmod(0o755)
    refused = shell(bundle.path / "install.sh", PYTHON=str(python))
    assert (refused.returncode, refused.stdout) == (4, "")
    expected = f"error: expected Python {PYTHON} on {platform.machine()}, found Python 3.7 on pdp11\nhint: name another"
    assert refused.stderr.startswith(expected)
    absent = shell(bundle.path / "install.sh", PYTHON="no-such-python")
    assert absent.returncode == 4
    assert f"expected Python {PYTHON}, found no no-such-python" in absent.stderr


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum")
def test_a_damaged_file_is_found_before_anything_is_installed(bundle: Bundle) -> None:
    with (bundle.path / "wheels" / "engine-1.0-py3-none-any.whl").open("ab") as file:
        file.write(b"x")
    refused = shell(bundle.path / "install.sh")
    assert refused.returncode == 1
    assert "found: wheels/engine-1.0-py3-none-any.whl: FAILED" in refused.stderr
    assert not (bundle.path / "venv").exists()


def test_what_is_at_its_place_is_replaced_only_if_it_is_ours(
    bundle: Bundle, tiny_artifact: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"expected nothing at .*, found a folder for a device"):
        write_bundle(tiny_artifact, (), bundle.path, platform=HERE)
    again = write_bundle(tiny_artifact, (), bundle.path, platform=HERE, replace=True)
    assert again.files == bundle.files
    (bundle.path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"found 'notes\.txt' beside it"):
        write_bundle(tiny_artifact, (), bundle.path, platform=HERE, replace=True)
    assert (bundle.path / "notes.txt").read_text() == "mine"


def test_a_failure_leaves_nothing(index: Path, tiny_artifact: Path, tmp_path: Path) -> None:
    (index / "engine-1.0-py3-none-any.whl").unlink()
    with pytest.raises(InputError, match="expected a wheel of engine"):
        write_bundle(tiny_artifact, (), tmp_path / "to" / "device", platform=HERE)
    with pytest.raises(ArtifactError):
        write_bundle(tmp_path / "nothing", (), tmp_path / "to" / "device", platform=HERE)
    assert not (tmp_path / "to").exists()


def test_for_a_jetson_the_systems_packages_are_seen(
    index: Path, artifact: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = artifact("sample:tiny-llama", target=("cpu", "jetson-orin"), max_seq_len=64)
    bundle = write_bundle(path, ["jetson-orin"], tmp_path / "device")
    assert bundle.device == Device("aarch64", (2, 35), (3, 10), ("jetson",), True)
    assert [variant.name for variant in bundle.manifest.variants] == ["jetson-orin"]
    install = (bundle.path / "install.sh").read_text()
    assert "-m venv --without-pip --system-site-packages venv" in install
    assert f'"lepton-edge[jetson]=={__version__}"' in install
    assert 'want="3.10 on aarch64"' in install


def test_the_verb(index: Path, tiny_artifact: Path, tmp_path: Path, leptonc: Callable[..., Any]) -> None:
    out = tmp_path / "device"
    done = leptonc("pack", tiny_artifact, "--with-runtime", "--platform", HERE, "-o", out)
    assert done.code == 0, done.err
    assert f"Python {PYTHON} on {HERE}" in done.out
    assert "wheels: " in done.err  # progress
    again = leptonc("pack", tiny_artifact, "--with-runtime", "--platform", HERE, "-o", out, "--force", "--json")
    told = json.loads(again.out)
    assert (told["platform"], told["extras"]) == (HERE, ["cpu"])
    assert set(told["files"]) == {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} - {"bundle.json"}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "missing option '--only'"),
        (["--only", "cpu", "--platform", HERE], 2, "--platform and --python-version choose wheels"),
        (["--with-runtime", "--platform", "x86"], 1, "--platform: expected one such as"),
        (["--with-runtime", "--only", "cpx"], 1, "expected variants among cpu, found 'cpx'"),
    ],
)
def test_what_the_verb_refuses(
    options: list[str], code: int, message: str, tiny_artifact: Path, tmp_path: Path, leptonc: Callable[..., Any]
) -> None:
    refused = leptonc("pack", tiny_artifact, *options, "-o", tmp_path / "device")
    assert (refused.code, refused.out) == (code, "")
    assert message in refused.err
    assert "hint: " in refused.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_real_folder_answers_without_network(tiny_artifact: Path, tmp_path: Path) -> None:
    """With wheels of an index, installed without one, the model answers as it does here."""
    try:
        bundle = write_bundle(tiny_artifact, (), tmp_path / "device")
    except (InputError, MissingExtraError) as error:
        pytest.skip(f"no package index has the wheels: {error}")
    installed = shell(bundle.path / "install.sh", PIP_NO_INDEX="1")
    assert installed.returncode == 0, installed.stderr
    with runtime_edge.load(tiny_artifact) as model:
        expected = model.generate([{"role": "user", "content": "one two"}], max_new_tokens=8)
    done = shell(bundle.path / "run.sh", "one two", "--max-new-tokens", "8", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["token_ids"] == expected.token_ids
