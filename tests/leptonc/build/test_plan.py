"""What a build is asked for without saying it: methods, zero points and texts that are good by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leptonc.backends import backend_of
from leptonc.build import calibration_text
from leptonc.build.plan import variant_plans
from leptonc.build.to_artifact import build
from leptonc.calibrate.generate import Written
from leptonc.options import BuildOptions
from leptonc.report import as_plain


@pytest.mark.parametrize(
    ("options", "method", "zero_points"),
    [
        ({}, "gptq", False),
        ({"weights": "int4"}, "gptq", True),
        ({"weights": "int2"}, "gptq", True),
        ({"weights": "int4", "symmetric": True}, "gptq", False),
        ({"weights": "int4", "fast": True}, "rtn", False),
        ({"fast": True}, "rtn", False),
        ({"weights": "int4", "method": "rtn"}, "rtn", False),
        ({"weights": "int4", "method": "awq"}, "awq", True),
        ({"weights": "auto:1MB"}, "gptq", True),
        ({"weights": "auto:1MB", "fast": True}, "rtn", True),
        ({"activations": "int8"}, "gptq", False),
        ({"weights": "fp32"}, "rtn", False),
    ],
    ids=str,
)
def test_codes_are_chosen_well_unless_the_build_shall_be_fast(
    options: dict[str, Any], method: str, zero_points: bool
) -> None:
    (plan,) = variant_plans(BuildOptions("m", **options))
    assert plan.method == method
    if plan.scheme != "fp32":
        assert backend_of(plan.target).config_of(plan, None).symmetric != zero_points


@pytest.mark.parametrize(
    ("target", "options", "method"),
    [
        ("rtx", {}, "gptq"),
        ("jetson-orin", {"weights": "int4"}, "gptq"),
        ("jetson-orin", {"weights": "int8"}, "rtn"),
        ("jetson-orin", {"weights": "fp16"}, "rtn"),
        ("jetson-orin", {"prune": "2:4", "weights": "int4"}, "rtn"),
        ("rtx", {"fast": True}, "rtn"),
    ],
    ids=str,
)
def test_engines_too(target: str, options: dict[str, Any], method: str) -> None:
    (plan,) = variant_plans(BuildOptions("m", target=target, **options))
    assert plan.method == method


@pytest.mark.usefixtures("short_windows")
def test_eight_bits_look_at_few_texts_that_lepton_carries(tmp_path: Path) -> None:
    result = build(BuildOptions("sample:tiny-llama", out=tmp_path / "a", check=False))
    about = as_plain(result.report)["variants"]["cpu"]["quantization"]
    assert about["method"] == "gptq"
    assert (about["calibration"]["text"], about["calibration"]["samples"]) == ("built-in", calibration_text.LOOKS)


@pytest.mark.usefixtures("short_windows")
@pytest.mark.parametrize(
    ("surprise", "repeated", "text"),
    [
        (1.0, True, "built-in, because the model repeats itself"),
        (99.0, False, "built-in, because the model draws tokens nearly evenly"),
        (float("nan"), False, "written by the model, seed 0, and built-in"),  # it ends at once: openings alone
    ],
)
def test_what_a_model_cannot_write_lepton_carries(
    surprise: float, repeated: bool, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(*_: Any, **__: Any) -> Written:
        ids = np.arange(128) % (2 if repeated else 128)
        return Written([ids] * 16, surprise)

    monkeypatch.setattr(calibration_text, "generate", generate)
    result = build(BuildOptions("sample:tiny-llama", out=tmp_path / "a", weights="int4", check=False))
    about = as_plain(result.report)["variants"]["cpu"]["quantization"]["calibration"]
    assert about == {"text": text, "samples": calibration_text.WINDOWS, "tokens": calibration_text.WINDOWS * 128}
