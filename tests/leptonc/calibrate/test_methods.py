"""The table of methods that choose codes, and the modules that it names."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import leptonc.calibrate.methods as package
from leptonc.build.to_artifact import build
from leptonc.calibrate.methods import Chosen, Layers, method_of
from leptonc.options import BuildOptions, options_of
from leptonc.passes.quantize.blocks import round_to_nearest
from leptonc.passes.quantize.methods import METHODS, ROUNDING, Method


def test_every_method_has_its_module_and_every_module_its_line() -> None:
    named = {method.module for method in METHODS.values()} - {""}
    assert named == {path.stem for path in Path(package.__file__).parent.glob("*.py")} - {"__init__"}
    for name, method in METHODS.items():
        if method.module:
            assert callable(method_of(name).choose)
    assert METHODS[ROUNDING].module == ""
    assert options_of(BuildOptions)["method"].choices == tuple(METHODS)


def test_a_method_of_ones_own_builds(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line in the table and a module: the build, its report and its record have the method."""
    seen: list[tuple[int, ...]] = []

    def choose(layers: Layers) -> list[Chosen]:
        seen.extend(weight.shape for weight in layers.weights)
        assert layers.moments.hessian().shape == (layers.weights[0].shape[1],) * 2
        return [Chosen(round_to_nearest(w, form), 0.125) for w, form in zip(layers.weights, layers.forms, strict=True)]

    module: Any = ModuleType(f"{package.__name__}.mine")
    module.WITH_EXACT = module.HOLDS_OUT = False
    module.choose = choose
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(METHODS, "mine", Method("rounds", "mine"))
    options = options_of(BuildOptions)["method"]
    monkeypatch.setattr(type(options), "may_be", lambda self, value: True)  # the command line read the table before
    given: dict[str, Any] = {"weights": "int4", "symmetric": True, "check": False, "max_seq_len": 96}
    given["calibration"] = text
    mine = build(BuildOptions("sample:tiny-llama", out=tmp_path / "mine", method="mine", **given))
    report = mine.report.variants["cpu"].choices()
    assert report.method == "mine"
    assert report.linears is not None
    assert {row.error for row in report.linears} == {0.125}
    assert len(seen) == len(report.linears) >= 14
    assert [r.config["method"] for r in mine.manifest.passes if r.name == "quantize-weights"] == ["mine"]
    del given["calibration"]
    plain = build(BuildOptions("sample:tiny-llama", out=tmp_path / "plain", method="rtn", **given))
    for one, other in zip(*(sorted((made.path / "blobs").iterdir()) for made in (mine, plain)), strict=True):
        assert np.array_equal(np.fromfile(one, np.uint8), np.fromfile(other, np.uint8))
