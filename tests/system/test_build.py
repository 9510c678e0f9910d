"""Builds that are stopped: nothing is left behind, and nothing is claimed."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Outcome

ARGUMENTS = ["build", "sample:tiny-llama", "--weights", "fp32", "-o"]
BUILD = [sys.executable, "-m", "leptonc", *ARGUMENTS]


# While weights are written, tests/system/test_emit.py interrupts.
@pytest.mark.parametrize(
    ("stage", "number"), [("opening the model", signal.SIGINT), ("preparing the graph", signal.SIGTERM)]
)
def test_a_build_that_is_interrupted(tmp_path: Path, stage: str, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [*BUILD, str(tmp_path / "m.lepton")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(f"{stage}: "):
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err.splitlines()[-1]) == ("", "interrupted")
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full(tmp_path: Path, leptonc: Callable[..., Outcome]) -> None:
    """Files may have 64 KiB at most: writing the weights fails half way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        done = leptonc(*ARGUMENTS, tmp_path / "m.lepton")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (done.code, done.out) == (1, "")
    assert "\nerror: " in done.err
    assert "hint: " in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to(tmp_path: Path, leptonc: Callable[..., Outcome]) -> None:
    (tmp_path / "file").write_text("")
    done = leptonc(*ARGUMENTS, tmp_path / "file" / "m.lepton")
    assert (done.code, done.out) == (1, "")
    assert "error: " in done.err
    assert os.listdir(tmp_path) == ["file"]
