"""What `bootstrap.py` installs and shows. That the demo works is `.ci/run`'s: it starts from a clone with nothing."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The program with an environment of its own, in which pip only writes down what it was asked for."""
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bootstrap", module)
    spec.loader.exec_module(module)
    asked: list[str] = []
    monkeypatch.setattr(module, "PYTHON", tmp_path / "python")
    monkeypatch.setattr(module, "STAMP", tmp_path / "stamp.json")
    (tmp_path / "python").touch()
    monkeypatch.setattr(module, "pip", lambda _, *arguments: asked.extend(map(str, arguments)))
    module.asked = asked  # type: ignore[attr-defined]
    return module


def test_the_demo_leaves_out_what_tests_and_gpus_need(bootstrap: types.ModuleType) -> None:
    bootstrap.install(*bootstrap.DEMO)
    text = " ".join(bootstrap.asked)
    assert "smollm2.txt" in text
    assert "compiler" in text
    assert not [part for part in ("rtx", "dev", "bench", "samples.txt", "no-deps.txt") if part in text]


def test_what_is_installed_is_not_installed_again_and_what_is_more_is(bootstrap: types.ModuleType) -> None:
    bootstrap.install(*bootstrap.DEMO)
    bootstrap.asked.clear()
    bootstrap.install(*bootstrap.DEMO)
    assert bootstrap.asked == []
    bootstrap.install(*bootstrap.ALL)
    assert "dev" in " ".join(bootstrap.asked)
    bootstrap.asked.clear()
    bootstrap.install(*bootstrap.DEMO)  # of which everything is there
    assert bootstrap.asked == []
    parts = json.loads(bootstrap.STAMP.read_text())["parts"]
    assert {"dev", "smollm2", "samples"} <= set(parts)


def test_progress_says_what_pip_does(bootstrap: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    progress = bootstrap.Progress("installing")
    told = []
    for line in (
        "Collecting torch==2.13.0\n",
        "  Downloading torch-2.13.0-cp311-cp311-linux_x86_64.whl (191.0 MB)\n",
        "Installing collected packages: mpmath, sympy, torch\n",
        "  Building editable for lepton-edge (pyproject.toml): started\n",
    ):
        progress.tell(line)
        told.append(progress.doing)
    assert told == [
        "looking for torch",
        "downloading torch (191.0 MB)",
        "unpacking 3 packages",
        "compiling Lepton's kernels",
    ]
    with progress:
        pass
    assert sys.stderr.getvalue().startswith("installing\ninstalling: ")  # type: ignore[attr-defined]


def test_the_demo_ends_with_speed_size_and_loss(artifact, capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from leptonc.cli import demo

    path = artifact("sample:tiny-llama", weights="int8", check=True)
    monkeypatch.setattr(sys, "argv", ["demo", str(path), "bin"])
    demo.main()
    lines = capsys.readouterr().out.splitlines()
    begins = [line.split()[0] for line in lines[-8:] if line.strip()]
    assert begins[:4] == ["speed", "size", "loss", "next"]
    assert f"bin/leptonc run {path}" in "\n".join(lines)
