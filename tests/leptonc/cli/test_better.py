"""What would make a build better: said where it is so, and only there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leptonc.cli import better as module
from runtime_edge.cli.better import Machine

pytestmark = pytest.mark.usefixtures("short_windows")
LLAMA = "sample:tiny-llama"
FILE, ROUNDING = "--calibration FILE", "rounding to nearest lost"


@pytest.fixture(autouse=True)
def good_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    good = Machine(cores=1, threads=1, building=1, memory=10**11)
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls: good))


def built(leptonc: Callable[..., Any], out: Path, *options: object) -> list[str]:
    done = leptonc("build", LLAMA, "-o", out, "--json", *options)
    assert done.code == 0, done.err
    better: list[str] = json.loads(done.out)["better"]
    return better


def test_a_text_of_ones_own(leptonc: Callable[..., Any], tmp_path: Path, text: Path) -> None:
    solved = ("--weights", "int4", "--method", "gptq", "--max-seq-len", "96", "--no-check")
    (line,) = built(leptonc, tmp_path / "a", *solved)
    assert FILE in line
    assert built(leptonc, tmp_path / "b", *solved, "--calibration", text) == []


def test_codes_that_a_text_chooses(
    leptonc: Callable[..., Any], tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights lose next to nothing by rounding, so that the loss is made up."""
    monkeypatch.setattr(module, "loss", lambda fidelity: ("perplexity rises", 33.0))
    (line,) = built(leptonc, tmp_path / "a", "--weights", "int4", "--method", "rtn")
    assert f"{ROUNDING} 33 %" in line
    solved = ("--weights", "int4", "--method", "gptq", "--calibration", text)
    assert built(leptonc, tmp_path / "e", *solved) == []
    assert built(leptonc, tmp_path / "b", "--weights", "fp32") == []
    assert built(leptonc, tmp_path / "c", "--weights", "int4", "--method", "rtn", "--no-check") == []
    # What pruning lost is not rounding's.
    cut = ("--prune", "20%", "--prune-method", "magnitude", "--prune-compensation", "none")
    assert ROUNDING not in "".join(built(leptonc, tmp_path / "p", "--weights", "int4", "--method", "rtn", *cut))
    done = leptonc("build", LLAMA, "-o", tmp_path / "d", "--weights", "int4", "--method", "rtn")
    assert ROUNDING in done.out
    assert ROUNDING not in done.err
    monkeypatch.setattr(module, "loss", lambda fidelity: ("perplexity rises", 0.3))
    assert built(leptonc, tmp_path / "f", "--weights", "int4", "--method", "rtn") == []
