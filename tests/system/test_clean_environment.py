"""The runtime with nothing but what the base install and the extra `cpu` bring."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import venv
import zipfile
from pathlib import Path

import pytest

from runtime_edge.cli.doctor import examine
from runtime_edge.installation import install_command
from runtime_edge.kernels import NOTE

ROOT = Path(__file__).parent.parent.parent

# Import names of the base requirements and of onnxruntime, with what these import themselves.
ALLOWED = {
    "numpy", "tokenizers", "msgspec", "jinja2", "markupsafe", "click", "rich", "markdown_it", "mdurl", "pygments",
    "tomli", "onnxruntime", "flatbuffers", "google", "packaging",
    "runtime_edge", "leptonc", "targets", "sample_models",
}  # fmt: skip

# Everything else cannot be found, as if it were not installed.
PRELUDE = f"""
import sys
from importlib.machinery import PathFinder

class InstalledOnly(PathFinder):
    allowed = {sorted(ALLOWED)!r}

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.partition(".")[0]
        is_there = top in sys.stdlib_module_names or top in cls.allowed
        return super().find_spec(name, path, target) if is_there else None

sys.meta_path[:] = [InstalledOnly if finder is PathFinder else finder for finder in sys.meta_path]
"""


def python(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a program in such an environment."""
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(program), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_an_artifact_runs(tiny_artifact: Path) -> None:
    program = """
        import runtime_edge
        with runtime_edge.load(sys.argv[1]) as model:
            made = model.generate([{"role": "user", "content": "hello"}], max_new_tokens=10)
            print(len(made.token_ids), len(model.score(made.token_ids)))
    """
    done = python(program, tiny_artifact)
    assert done.stderr == ""
    assert done.stdout == "10 9\n"


@pytest.mark.parametrize(
    "arguments", [["run", "ART", "hello", "--max-new-tokens", "3"], ["verify", "ART"], ["inspect", "ART"]]
)
def test_the_command_line_runs(tiny_artifact: Path, arguments: list[str]) -> None:
    program = "from runtime_edge.cli import main; sys.exit(main(sys.argv[1:]))"
    done = python(program, *(tiny_artifact if part == "ART" else part for part in arguments))
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_packing_says_which_extra_it_needs(tiny_artifact: Path, tmp_path: Path) -> None:
    program = "from leptonc.cli import main; sys.exit(main(['pack', *sys.argv[1:]]))"
    done = python(program, tiny_artifact, "--only", "cpu", "-o", tmp_path / "packed")
    assert (done.returncode, done.stdout) == (4, "")
    assert f"hint: {install_command('compiler')}" in done.stderr


def test_building_says_which_extra_it_needs() -> None:
    program = "from leptonc.cli import main; sys.exit(main(['build', 'sample:tiny-llama']))"
    done = python(program)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == (
        f"error: leptonc build needs the package `torch`, which is not installed\nhint: {install_command('compiler')}\n"
    )


def test_without_onnxruntime_running_says_which_extra_it_needs(tiny_artifact: Path) -> None:
    program = """
        InstalledOnly.allowed.remove("onnxruntime")
        from runtime_edge.cli import main
        sys.exit(main(["run", sys.argv[1], "hello"]))
    """
    done = python(program, tiny_artifact)
    assert (done.returncode, done.stdout) == (4, "")
    assert "onnxruntime" in done.stderr
    assert f"hint: {install_command('cpu')}" in done.stderr


def test_importing_the_runtime_is_quick_and_light() -> None:
    program = """
        import time
        began = time.process_time()
        import runtime_edge
        took = time.process_time() - began
        print(took, *sorted(name for name in sys.modules if "." not in name))
    """
    runs = [python(program).stdout.split() for _ in range(3)]
    assert min(float(run[0]) for run in runs) < 0.1
    assert {"torch", "transformers", "onnx", "onnxruntime", "numpy", "click"}.isdisjoint(runs[0])


def make_wheel(folder: Path, **environment: str) -> Path:
    # Building leaves folders behind, and takes up what an earlier build left: a copy keeps both away.
    away = shutil.ignore_patterns(
        ".git", ".venv*", "*.egg-info", "*.lepton", "__pycache__", ".*_cache", "*.so", "*.note"
    )
    shutil.copytree(ROOT, folder / "source", ignore=away)
    shutil.rmtree(folder / "source" / "build", ignore_errors=True)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    command = [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, folder / "source"]
    built = subprocess.run(
        [*map(str, command)], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("lepton_edge-*.whl")
    return wheel


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("", "no C compiler was found at installation (CC)"),
        ("#!/bin/sh\necho 'gcc 4.9.2'\nexit 1\n", "the C compiler at installation could not compile them (gcc 4.9.2)"),
    ],
)
def test_a_wheel_is_made_without_a_compiler(compiler: str, reason: str, tmp_path: Path) -> None:
    """It has no kernels, and says why."""
    path = tmp_path / "cc"
    if compiler:
        path.write_text(compiler)
        path.chmod(0o755)
    with zipfile.ZipFile(make_wheel(tmp_path, CC=str(path))) as wheel:
        names = wheel.namelist()
        assert wheel.read(f"runtime_edge/kernels/{NOTE}").decode() == reason.replace("CC", str(path)) + "\n"
    assert "runtime_edge/kernels/__init__.py" in names
    assert not any(name.endswith(".so") for name in names)


@pytest.mark.slow
def test_the_wheel_runs_in_a_new_virtual_environment(tmp_path: Path, tiny_artifact: Path) -> None:
    def run(*command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*map(str, command)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    wheel = make_wheel(tmp_path)
    venv.create(tmp_path / "venv", with_pip=True)
    bin_folder = tmp_path / "venv" / "bin"
    installed = run(bin_folder / "python", "-m", "pip", "install", "--quiet", f"{wheel}[cpu]")
    assert installed.returncode == 0, installed.stderr
    listed = run(bin_folder / "python", "-m", "pip", "list", "--format=freeze").stdout
    names = {line.partition("==")[0].lower() for line in listed.splitlines()}
    assert {"lepton-edge", "onnxruntime", "numpy"} <= names
    assert {"torch", "transformers", "onnx", "onnx-ir"}.isdisjoint(names)
    answered = run(bin_folder / "lepton-edge", "run", tiny_artifact, "hello", "--max-new-tokens", "5")
    assert answered.returncode == 0, answered.stderr
    assert "answer 5 tokens" in answered.stderr
    # What was compiled and data files came along.
    found = json.loads(run(bin_folder / "lepton-edge", "doctor", "--json").stdout)
    assert found["kernels"] == examine()["kernels"]
    assert "jetson-orin" in run(bin_folder / "leptonc", "targets").stdout
    refused = run(bin_folder / "leptonc", "build", "sample:tiny-llama")
    assert refused.returncode == 4
    assert f"hint: pip install '{wheel}[compiler]'" in refused.stderr
