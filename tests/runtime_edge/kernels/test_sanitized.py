"""The tests of kernels once more, with libraries that AddressSanitizer and UndefinedBehaviorSanitizer watch.

Tiles are in software there (`tiles.h`), so kernels for AMX run wherever AVX-512 is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime_edge import kernels
from tests.runtime_edge.kernels import SANITIZED, here

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "runtime_edge" / "kernels"
FLAGS = ["-shared", "-fPIC", "-g1", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# What measures memory, or repeats for the sake of threads, says nothing here.
LEFT_OUT = "not beside_each_other and not held_twice and not two_products and not sanitized"


def _preloaded() -> list[str]:
    """Libraries that a process without sanitizers of its own begins with; empty where the compiler has none."""
    if shutil.which("gcc") is None:
        return []
    # The C++ library, too: the sanitizer looks for what throws as it begins.
    names = ("libasan.so", "libstdc++.so")
    found = [subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip() for name in names]
    return found if all(os.path.isabs(path) for path in found) else []


pytestmark = [
    here,
    pytest.mark.slow,
    pytest.mark.skipif(SANITIZED in os.environ, reason="this is the run that is watched"),
    pytest.mark.skipif(not _preloaded(), reason="no GCC with AddressSanitizer"),
]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both libraries, compiled anew."""
    folder = tmp_path_factory.mktemp("sanitized")
    for path in SOURCES.glob("*.[ch]"):
        shutil.copy(path, folder)
    shutil.copy(Path(__file__).with_name("tiles.h"), folder)
    modules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    compiling = []
    for module in modules:
        sources = [Path(source).name for source in module["sources"]]
        arguments = [argument for argument in module["extra-compile-args"] if argument != "-O3"]
        name = module["name"].rpartition(".")[2]
        command = ["gcc", *FLAGS, *arguments, "-Werror", *sources, "-lm", "-o", f"{name}.so"]
        compiling.append(subprocess.Popen(command, cwd=folder))
    assert [each.wait() for each in compiling] == [0] * len(modules)
    return folder


def watched(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        SANITIZED: str(folder), "LD_PRELOAD": " ".join(_preloaded()), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1", "UBSAN_OPTIONS": "print_stacktrace=1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600
    )


def test_kernels_stay_in_bounds(libraries: Path) -> None:
    tests = str(Path(__file__).parent)
    done = watched(libraries, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-k", LEFT_OUT, tests)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert "passed" in done.stdout


@pytest.mark.skipif(kernels.library() != kernels._path("_kernels"), reason="no AVX-512")
def test_a_byte_out_of_bounds_is_told(libraries: Path) -> None:
    """The same process and libraries, with a buffer that is too small: the check above can fail."""
    code = f"""
import ctypes, numpy as np
weights, tiles = np.zeros((64, 32), np.int8), np.zeros(64 * 31, np.int8)
ctypes.CDLL({str(libraries / "_kernels.so")!r}).lepton_pack(
    ctypes.c_void_p(weights.ctypes.data), ctypes.c_int64(64), ctypes.c_int64(32), ctypes.c_void_p(tiles.ctypes.data))
"""
    done = watched(libraries, "-c", code)
    assert done.returncode != 0
    assert "ERROR: AddressSanitizer: heap-buffer-overflow" in done.stderr
