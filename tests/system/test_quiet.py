"""What a build, a run and a measurement send, and where they write: nothing, and only at OUT and in the cache."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
STRACE = shutil.which("strace")
MAKES = "creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,mknod,mknodat"
# A call that did something: the paths are in quotes.
OPENED = re.compile(r"\b(?:open|openat)\(.*(?:O_WRONLY|O_RDWR|O_CREAT).*\) = \d+")
MADE = re.compile(rf"\b(?:{MAKES.replace(',', '|')})\(.*\) = \d+")
SOCKET = re.compile(r"\b(?:socket|connect|sendto|sendmsg|sendmmsg|bind)\(")
PATH = re.compile(r'"(/[^"]*)"')


def traced(folder: Path, *command: object) -> tuple[list[str], list[str]]:
    """Runs a program of ours with an empty home; returns calls about sockets, and paths that it wrote outside of OUT.

    Threads of libraries and all processes that it starts are among it.
    """
    home, temporary, log = folder / "home", folder / "tmp", folder / "calls"
    for each in (home, temporary):
        each.mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "LEPTON_CACHE": str(folder / "cache"),  # a build remembers there how fast the machine is
        "LOGNAME": "lepton",
    }  # torch asks the system's name service for it otherwise
    calls = f"trace=%network,open,openat,{MAKES}"
    strace = [str(STRACE), "-f", "-qq", "-s", "4096", "-e", "signal=none", "-e", calls, "-o", str(log)]
    done = subprocess.run(
        [*strace, sys.executable, "-m", *map(str, command)],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "PTRACE" in done.stderr or "ptrace" in done.stderr:
        pytest.skip(f"no program may be traced here: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    lines = log.read_text(errors="replace").splitlines()
    assert any("libonnxruntime" in line for line in lines)  # the trace has what libraries do
    ours = (str(folder / "out"), str(folder / "cache"), str(temporary), "/dev/null", "/dev/tty", "/proc/self/")
    written = [path for line in lines if OPENED.search(line) or MADE.search(line) for path in PATH.findall(line)]
    assert [*home.rglob("*"), *temporary.rglob("*")] == []  # temporary files are gone
    return [line for line in lines if SOCKET.search(line)], [path for path in written if not path.startswith(ours)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as transformers saves it."""
    from leptonc.sources import open_source
    from sample_models.export import write_directory

    with open_source("sample:tiny-llama") as source:
        return write_directory(source, tmp_path_factory.mktemp("hf") / "tiny")


@pytest.mark.slow
@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
def test_nothing_is_sent_and_nothing_is_left(tmp_path: Path, directory: Path, artifact: Callable[..., Path]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    art = out / "a.lepton"
    options = ("--target", "cpu", "--weights", "int4", "-o", art)
    for command in (
        ("leptonc", "build", directory, *options),
        ("leptonc", "build", "sample:tiny-llama", *options, "--force"),
        ("runtime_edge", "run", art, "hello", "--max-new-tokens", "3"),
        ("runtime_edge", "bench", art, "--repetitions", "2", "--prompts", "4", "--depths", "4", "--new-tokens", "2"),
    ):
        sockets, written = traced(tmp_path, *command)
        assert (command[1], sockets, written) == (command[1], [], [])


def test_libraries_are_told_before_they_are_imported() -> None:
    """The variables are set by importing our packages, before anything else is."""
    told = {
        "leptonc": {"ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"},
        "runtime_edge.ort": {"ORT_DISABLE_TELEMETRY"},
    }
    program = "import os, sys, {0}; print(*os.environ); assert 'onnxruntime' not in sys.modules"
    clean = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    for module, names in told.items():
        done = subprocess.run(
            [sys.executable, "-c", program.format(module)],
            cwd=ROOT, env=clean, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert names <= set(done.stdout.split())
