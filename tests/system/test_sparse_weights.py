"""`leptonc build --prune 2:4` as a user asks for it: what it says, what it leaves, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.conftest import Outcome

Run = Callable[..., Outcome]


def test_sparse_weights_for_a_jetson(tmp_path: Path, leptonc: Run, lepton_edge: Run) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "m.lepton"
    text.write_text("The valves close when the pressure falls. " * 200, encoding="utf-8")
    build = ("build", "sample:tiny-llama", "--prune", "2:4", "--calibration", text, "--max-seq-len", 128, "-o", out)
    done = leptonc(*build, "--target", "cpu")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: expected a target with sparse tensor cores")
    assert "\nhint: --target jetson-orin" in done.err
    assert not out.exists()
    done = leptonc(*build, "--target", "jetson-orin,jetpack=7.2")
    assert done.code == 0, done.err
    assert "50 % of the layers' weights, 64,512 left" in done.out
    assert "Traceback" not in done.err
    assert lepton_edge("verify", out).code == 0
    (variant,) = json.loads((out / "manifest.json").read_text())["variants"]
    assert variant["graphs"][0]["engine"]["spec"]["sparse_weights"] is True
    assert "sparsegpt" in lepton_edge("inspect", out, "--structure").out
