"""GPTQ and AWQ for TensorRT: the same forms as rounding to nearest gives, at less loss, run on the CPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from leptonc.build.to_artifact import BuildResult, build
from leptonc.errors import InputError
from leptonc.options import BuildOptions
from leptonc.report import as_plain

HAS_RTX = importlib.util.find_spec("tensorrt_rtx") is not None
pytestmark = pytest.mark.skipif(not HAS_RTX, reason="TensorRT-RTX (the extra rtx) is not installed")


def built(name: str, target: str, out: Path, text: Path, method: str, **options: object) -> BuildResult:
    given = {"weights": "int4", "max_seq_len": 128, "eval_text": text, "method": method, **options}
    known = {} if method == "rtn" else {"calibration": text}
    return build(BuildOptions(f"sample:{name}", target, out, **given, **known))  # type: ignore[arg-type]


def graph_of(result: BuildResult) -> ir.Model:
    return ir.load(result.path / result.manifest.variants[0].main.file)


@pytest.mark.parametrize("target", ["rtx-30", "jetson-orin,jetpack=6.2"])
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_less_is_lost_in_the_same_form(method: str, target: str, text: Path, tmp_path: Path) -> None:
    plain, solved = (built("tiny-llama", target, tmp_path / each, text, each) for each in ("rtn", method))
    losses = [as_plain(each.report)["fidelity"]["kl_divergence"] for each in (plain, solved)]
    assert losses[1] < (0.9 if method == "gptq" else 1) * losses[0]
    shapes = [
        {name: (value.dtype, value.shape) for name, value in graph_of(each).graph.initializers.items()}
        for each in (plain, solved)
    ]
    assert shapes[0] == shapes[1]
    found = next(iter(as_plain(solved.report)["variants"].values()))
    about = found["quantization"]
    assert about["method"] == method
    assert len(about["linears"]) == 7 * 3 - len(found["kept_in_half_precision"])  # blocks do not divide those
    assert bool(about.get("scaling")) == (method == "awq")


def test_layers_that_blocks_do_not_divide_keep_their_weights(text: Path, tmp_path: Path) -> None:
    """Nothing is solved for what is stored in half precision."""
    result = built("tiny-qwen2", "jetson-orin,jetpack=6.2", tmp_path / "a", text, "gptq")
    about = next(iter(as_plain(result.report)["variants"].values()))
    kept = set(about["kept_in_half_precision"])
    assert not kept & {each["path"] for each in about["quantization"]["linears"]}
    assert about["quantization"]["linears"] or kept


def test_int8_with_int8_activations(text: Path, tmp_path: Path) -> None:
    options = {"weights": "int8", "activations": "int8"}
    plain, solved = (
        built("tiny-llama", "rtx-30", tmp_path / each, text, each, calibration=text, **options)
        if each == "rtn"
        else built("tiny-llama", "rtx-30", tmp_path / each, text, each, **options)
        for each in ("rtn", "gptq")
    )
    first, second = (as_plain(each.report)["fidelity"]["kl_divergence"] for each in (plain, solved))
    assert second < 1.2 * first
    codes = [
        np.abs(value.const_value.numpy().astype(np.int32)).max()
        for name, value in graph_of(solved).graph.initializers.items()
        if name.endswith(".codes") and value.const_value is not None
    ]
    assert 100 < max(codes) <= 128


@pytest.mark.parametrize("weights", ["fp16", "fp8"])
def test_what_has_no_codes_is_refused(weights: str, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected weights int8 or int4 with method gptq"):
        built("tiny-llama", "rtx-40", tmp_path / "a", text, "gptq", weights=weights)
