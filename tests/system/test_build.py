"""Builds that are stopped: nothing is left behind, and nothing is claimed."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

BUILD = [sys.executable, "-m", "leptonc", "build", "sample:tiny-llama", "--weights", "fp32", "-o"]


@pytest.mark.parametrize(
    ("stage", "number"), [("open", signal.SIGINT), ("weights", signal.SIGINT), ("passes", signal.SIGTERM)]
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


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """Files may have 64 KiB at most: writing the weights fails half way, as on a full disk."""
    done = subprocess.run(
        [*BUILD, str(tmp_path / "m.lepton")],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16)),
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "\nerror: " in done.stderr
    assert "hint: " in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = subprocess.run([*BUILD, str(tmp_path / "file" / "m.lepton")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: " in done.stderr
    assert os.listdir(tmp_path) == ["file"]
