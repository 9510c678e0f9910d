"""The command that installs this copy again, for each way in which it may have been installed."""

from __future__ import annotations

import json
import re
import shlex
from importlib import metadata
from pathlib import Path

import pytest

from runtime_edge import installation
from runtime_edge.installation import DISTRIBUTION, install_command

ROOT = Path(__file__).parent.parent.parent
UNKNOWN = "pip install 'lepton-edge[rtx]' --find-links FOLDER-OF-ITS-WHEEL"


class Installed:
    """A distribution with what pip wrote down of its origin."""

    def __init__(self, record: str | None) -> None:
        self.record = record

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.record


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lepton was copied into an environment: there is no checkout around it."""
    monkeypatch.setattr(installation, "_HERE", tmp_path / "site-packages")


def installed(monkeypatch: pytest.MonkeyPatch, record: str | None) -> None:
    def distribution(name: str) -> Installed:
        assert name == DISTRIBUTION
        return Installed(record)

    monkeypatch.setattr(metadata, "distribution", distribution)


def test_from_a_checkout_it_is_installed_in_place() -> None:
    assert installation.checkout() == ROOT.resolve()
    assert shlex.split(install_command("rtx")) == ["pip", "install", "-e", f"{ROOT.resolve()}[rtx]"]
    assert shlex.split(install_command()) == ["pip", "install", "-e", str(ROOT.resolve())]


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("name", ["lepton_edge-0.1.0-py3-none-any.whl", "a checkout's folder"])
def test_from_a_wheel_or_a_folder_that_is_still_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).touch()
    installed(monkeypatch, json.dumps({"url": (tmp_path / name).as_uri(), "archive_info": {}}))
    assert shlex.split(install_command("rtx")) == ["pip", "install", f"{tmp_path / name}[rtx]"]


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize(
    "record",
    [
        None,
        "{",
        "[]",
        '{"url": 3}',
        '{"url": "https://example.com/lepton_edge-0.1.0-py3-none-any.whl"}',
        '{"url": "file:///no/such/folder/lepton_edge-0.1.0-py3-none-any.whl"}',
    ],
)
def test_where_its_origin_is_unknown_the_wheels_folder_is_asked_for(
    record: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, record)
    assert installation.origin() is None
    assert install_command("rtx") == UNKNOWN


@pytest.mark.usefixtures("copied")
def test_without_any_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    assert install_command("rtx") == UNKNOWN


def test_no_hint_says_that_it_is_on_an_index() -> None:
    """Every command that installs Lepton is that function's."""
    written = re.compile(r"pip install[^\n]*lepton-edge")
    packages = ("leptonc", "runtime_edge", "targets", "sample_models")
    wrong = [
        str(path.relative_to(ROOT))
        for package in packages
        for path in (ROOT / package).rglob("*.py")
        if written.search(path.read_text()) and path.name != "installation.py"
    ]
    assert wrong == []
