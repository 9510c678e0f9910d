"""`leptonc build --prune 2:4` as a user starts it: what it says, what it leaves, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_sparse_weights_for_a_jetson(tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "m.lepton"
    text.write_text("The valves close when the pressure falls. " * 200, encoding="utf-8")
    build = ("build", "sample:tiny-llama", "--prune", "2:4", "--calibration", text, "--max-seq-len", 128, "-o", out)
    done = run("leptonc", *build, "--target", "cpu")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: expected a target with sparse tensor cores")
    assert "\nhint: --target jetson-orin" in done.stderr
    assert not out.exists()
    done = run("leptonc", *build, "--target", "jetson-orin,jetpack=7.2")
    assert done.returncode == 0, done.stderr
    assert "50 % of the layers' weights, 64,512 left" in done.stdout
    assert "Traceback" not in done.stderr
    assert run("runtime_edge", "verify", out).returncode == 0
    (variant,) = json.loads((out / "manifest.json").read_text())["variants"]
    assert variant["engine"]["recipe"]["sparse_weights"] is True
    assert "sparsegpt" in run("runtime_edge", "inspect", out, "--structure").stdout
