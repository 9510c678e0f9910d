#!/usr/bin/env python3
"""Sets Lepton up in `.venv` of this folder and runs it. Needs Python 3.10 to 3.13 and nothing else.

    python3 bootstrap.py demo              build an artifact from SmolLM2-135M and ask it something
    python3 bootstrap.py test [ARGS…]      run the tests; ARGS go to pytest
    python3 bootstrap.py install           set up only

The second time it is quick: what is installed is remembered with a hash of pyproject.toml and of what is compiled.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
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
EXTRAS = "cpu,compiler,dev,bench,rtx"
LISTS = ROOT / "sample_models" / "packages"  # of packages that carry models
TYPES = ROOT / "tests" / "no-deps.txt"  # what tests read and nothing imports
SAMPLES = ("samples",)
WORKERS = 4  # processes of tests at most: one may take 2 GB

ARTIFACT = ROOT / "smollm2-135m.lepton"
BUILD = ("build", "sample:smollm2-135m", "--target", "cpu", "--force", "-o", str(ARTIFACT))
ASK = ("run", str(ARTIFACT), "What is edge computing? Answer in two sentences.", "--max-new-tokens", "100")


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
    install(sorted({*SAMPLES, *known.more}))
    if known.command == "test":
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of BLAS and torch: workers share the cores already
        # A file's tests stay together: they share what they build. Files go in the order that tests/conftest.py gives.
        several = ("-n", str(min(WORKERS, os.cpu_count() or 1)), "--dist", "loadfile", "--no-loadscope-reorder")
        return run(PYTHON, "-m", "pytest", *several, *rest)
    if known.command == "demo":
        return run(BIN / "leptonc", *BUILD) or run(BIN / "leptonc", *ASK)
    return 0


def keep_bytecode() -> None:
    """Lets what is imported keep its bytecode in `.venv`, where the environment asks Python to write none.

    Packages are not compiled as they are installed: each process of the tests would compile torch anew.
    """
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        os.environ.setdefault("PYTHONPYCACHEPREFIX", str(VENV / "bytecode"))


def install(samples: list[str]) -> None:
    """Creates the environment and installs what is not there yet; a failure ends this program."""
    kernels = ROOT / "runtime_edge" / "kernels"
    sources = [ROOT / "pyproject.toml", TYPES, *sorted(LISTS.glob("*.txt")), *sorted(kernels.glob("*.[ch]"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    packages = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))  # an installation in place maps these
    wanted = {"pyproject": digest, "python": sys.version, "root": str(ROOT), "packages": packages}
    present = json.loads(STAMP.read_text()) if STAMP.exists() else {}
    present_samples = present.pop("samples", [])
    if present == wanted and set(samples) <= set(present_samples):
        return
    if not PYTHON.exists():
        print(f"creating {VENV}", file=sys.stderr)
        venv.create(VENV, with_pip=True)
    STAMP.unlink(missing_ok=True)
    pip(TORCH)
    pip("-e", f".[{EXTRAS}]")
    # These packages are wanted for the files in them, not for the libraries that they depend on.
    lists = [TYPES, *(LISTS / f"{name}.txt" for name in samples)]
    pip("--no-deps", *(part for path in lists for part in ("-r", str(path))))
    STAMP.write_text(json.dumps({**wanted, "samples": samples}))


def pip(*arguments: str) -> None:
    """Runs `pip install`; a failure ends this program with pip's exit code.

    Of thousands of modules a few are ever imported: Python compiles these then, and pip none.
    """
    code = run(PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", *arguments)
    if code:
        sys.exit(code)


def run(*command: str | Path) -> int:
    """Runs a command in this folder, shown first, and returns its exit code."""
    shown = [str(part) for part in command]
    print("$", *(f'"{part}"' if " " in part else part for part in shown), file=sys.stderr, flush=True)
    try:
        return subprocess.run(shown, cwd=ROOT, check=False).returncode
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
