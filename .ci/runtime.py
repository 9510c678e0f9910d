#!/usr/bin/env python3
"""Runs the runtime's tests on other Pythons than the main one, with the runtime and test tools alone.

    python .ci/runtime.py ARTIFACTS 3.10 3.13

ARTIFACTS is a folder that `tests/runtime_edge/carried.py` wrote, in the main environment: the others have to answer as
that did. A Python is looked for on PATH, then among pyenv's; one that is missing is named on stdout as `skipped: …`.
Environments are `.venv-3.10` and so on, side by side, and are made anew when pyproject.toml changes.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import which

ROOT = Path(__file__).resolve().parent.parent
TESTS = "tests/runtime_edge"
OF_C_ALONE = "kernels/test_sanitized.py"  # which the main environment runs
# Python 3.13 has the same ONNX Runtime as the main one: what Python itself may change.
PARTS = {"3.13": ("backends", "cli", "test_carried.py", "test_embed.py", "test_generate.py", "test_load.py")}


def main() -> int:
    """Runs all of them; returns 1 if tests failed on one."""
    artifacts, *versions = sys.argv[1:]
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda version: check(version, artifacts), versions))
    for version, (code, output) in zip(versions, results, strict=True):
        print(f"-- Python {version}\n{output}", flush=True)
        if code is None:
            print(f"skipped: the runtime's tests on Python {version}, which is not installed")
    return int(any(code for code, _ in results))


def check(version: str, artifacts: str) -> tuple[int | None, str]:
    """Returns pytest's exit code and output; without that Python None."""
    python = interpreter(version)
    if python is None:
        return None, ""
    code, output = environment(version, python)
    if code:
        return code, output
    variables = {"OMP_NUM_THREADS": "1", "LEPTON_ARTIFACTS": str(Path(artifacts).resolve())}
    tests = [f"{TESTS}/{part}" for part in PARTS[version]] if version in PARTS else [TESTS]
    pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5", f"--ignore={TESTS}/{OF_C_ALONE}")
    return run(str(folder(version) / "bin" / "python"), *pytest, *tests, **variables)


def interpreter(version: str) -> str | None:
    """Returns the path of an interpreter that starts, from PATH or from pyenv."""
    candidates = [which(f"python{version}")]
    if pyenv := which("pyenv"):
        root = run(pyenv, "root")[1].strip()
        candidates += sorted(str(path) for path in Path(root).glob(f"versions/{version}.*/bin/python{version}"))
    # What pyenv puts on PATH starts only where that version is chosen.
    return next((path for path in candidates if path and run(path, "-c", "import venv")[0] == 0), None)


def folder(version: str) -> Path:
    """Where the environment of a Python is."""
    return ROOT / f".venv-{version}"


def environment(version: str, python: str) -> tuple[int, str]:
    """Makes the environment of a Python where it is not there yet; returns pip's exit code and output."""
    stamp = folder(version) / "pyproject.sha256"
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return 0, ""
    code, output = run(python, "-m", "venv", str(folder(version)))
    if not code:
        pip = (str(folder(version) / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check")
        code, output = run(*pip, "install", "--no-compile", "-e", ".[cpu,test]")
    if not code:
        stamp.write_text(digest)
    return code, output


def run(*command: str, **variables: str) -> tuple[int, str]:
    """Runs a command in the repository's folder; returns its exit code, and its output and errors in one text."""
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **variables}, check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


if __name__ == "__main__":
    sys.exit(main())
