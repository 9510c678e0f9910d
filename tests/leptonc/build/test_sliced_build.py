"""`leptonc build --prune width:PCT` from end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime_edge
from leptonc.build.to_artifact import build
from leptonc.build.to_onnx import emit
from leptonc.calibrate import input_moments
from leptonc.errors import InputError, ResumeWarning
from leptonc.options import BuildOptions
from leptonc.passes.prune.width import SliceWidth
from leptonc.report import as_plain

pytestmark = pytest.mark.usefixtures("short_windows")

LLAMA = "sample:tiny-llama"
GIVEN: dict[str, Any] = {"weights": "fp32", "prune": "width:10%", "max_seq_len": 96}


def test_a_narrower_model(tmp_path: Path, leptonc: Callable[..., Any]) -> None:
    plain = build(BuildOptions(LLAMA, out=tmp_path / "plain", weights="fp32", check=False, max_seq_len=96))
    out = tmp_path / "m"
    result = leptonc("build", LLAMA, "--weights", "fp32", "--prune", "width:10%", "--max-seq-len", "96", "-o", str(out))
    assert result.code == 0, result.err
    report = json.loads((out / "report.json").read_text())
    about = report["pruning"]
    assert about["width"] == {"before": 64, "after": 56}  # in steps of an eighth of so narrow a stream
    assert report["structure"]["residual"] == 56
    assert (about["method"], about["compensation"]) == ("principal-components", "least-squares")
    assert about["fitted"]
    assert all(each["after"] <= each["before"] for each in about["fitted"])
    assert about["weights"]["after"] < about["weights"]["before"]
    with runtime_edge.load(out) as model:
        gone = plain.manifest.parameters - model.manifest.parameters
        sizes = as_plain(plain.report)["bytes"]["weights"] - report["bytes"]["weights"]
        assert sizes == pytest.approx(4 * gone, abs=64 * 30)
        assert gone > 0.1 * plain.manifest.parameters
        assert [each.name for each in model.manifest.passes][:3] == ["fold-norms", "rotate", "slice-width"]
        assert len(model.generate("a", max_new_tokens=4).token_ids) == 4
    assert "width" in (out / "report.html").read_text()


@pytest.mark.parametrize("name", ["tiny-gemma3", "tiny-gpt2", "tiny-olmo2"])
def test_layers_make_up_for_what_goes(name: str, tmp_path: Path) -> None:
    """Norms before additions, norms that take a mean off, a head tied to the embedding: on the text, each layer errs
    less than without a fit.
    """
    made = build(BuildOptions(f"sample:{name}", out=tmp_path / "m", **{**GIVEN, "check": False}))
    about = as_plain(made.report)["pruning"]
    assert all(each["after"] <= each["before"] for each in about["fitted"])
    assert any(each["after"] < 0.99 * each["before"] for each in about["fitted"])
    with runtime_edge.load(tmp_path / "m") as model:
        assert np.isfinite(model.logits([5, 6, 7])).all()


def test_quantized_and_for_tensorrt(tmp_path: Path) -> None:
    """What is narrower is quantized and lowered like any other."""
    given = {**GIVEN, "check": False}
    small = build(BuildOptions(LLAMA, out=tmp_path / "a", **{**given, "weights": "int4", "method": "gptq"}))
    linears = as_plain(small.report)["variants"]["cpu"]["quantization"]["linears"]
    assert len(linears) == 23  # seven a layer, the basis that is left before the head, and the head
    orin = build(BuildOptions(LLAMA, "jetson-orin", out=tmp_path / "b", **{**given, "weights": "fp16", "check": True}))
    assert as_plain(orin.report)["pruning"]["width"]["after"] == 56
    plain = build(BuildOptions(LLAMA, out=tmp_path / "c", **GIVEN))
    found = [as_plain(each.report)["fidelity"]["kl_divergence"] for each in (orin, plain)]
    assert found[0] == pytest.approx(found[1], rel=0.01)


def test_emitted_and_read_back(tmp_path: Path) -> None:
    """The same bytes in one step and in two."""
    emit(BuildOptions(LLAMA, out=tmp_path / "g", prune="width:10%", max_seq_len=96, check=False))
    first = build(BuildOptions(LLAMA, out=tmp_path / "a", **{**GIVEN, "weights": "int8", "fast": True, "check": False}))
    second = build(BuildOptions(str(tmp_path / "g"), out=tmp_path / "b", weights="int8", fast=True, check=False))
    assert first.manifest.parameters == second.manifest.parameters
    blobs = [{p.name for p in (each.path / "blobs").iterdir()} for each in (first, second)]
    assert blobs[0] == blobs[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune": "width:0%"}, "expected a width above 0 % and below 100 %, found width:0%"),
        ({"prune": "width:100%"}, "below 100 %, found width:100%"),
        ({"prune": "width:99%"}, "expected a width of which at least 8 features stay, found width:99% of 64"),
        ({"prune": "width:"}, "expected of --prune a share, latency:PCT, width:PCT"),
        ({"prune": "width:10%", "prune_method": "wanda"}, "expected no --prune-method with --prune width:10%"),
        ({"prune": "width:10%", "prune_allocation": "global"}, "expected no --prune-allocation with --prune width:10%"),
        ({"prune": "width:10%", "prune_compensation": "bias"}, "a compensation among none, least-squares"),
        ({"source": "sample:tiny-bert", "prune": "width:10%"}, "expected a decoder with --prune width:10%, found"),
    ],
)
def test_what_cannot_be_asked_for(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        build(BuildOptions(options.pop("source", LLAMA), out=tmp_path / "m", check=False, **options))
    assert message in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_build_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {**GIVEN, "check": False, "resume": tmp_path / "r"}
    run = SliceWidth.run

    def stopped(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(SliceWidth, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        build(BuildOptions(LLAMA, out=tmp_path / "m", **given))
    monkeypatch.setattr(SliceWidth, "run", run)
    monkeypatch.setattr(input_moments, "moments", stopped)  # they are not gathered again
    build(BuildOptions(LLAMA, out=tmp_path / "m", **given))
    monkeypatch.undo()
    whole = build(BuildOptions(LLAMA, out=tmp_path / "w", **{**GIVEN, "check": False}))
    names = [{p.name for p in (path / "blobs").iterdir()} for path in (tmp_path / "m", whole.path)]
    assert names[0] == names[1]
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY broken", None])
def test_damaged_moments_are_made_again(damage: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {**GIVEN, "check": False, "resume": tmp_path / "r"}

    def stopped(*_: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SliceWidth, "run", stopped)
        with pytest.raises(KeyboardInterrupt):
            build(BuildOptions(LLAMA, out=tmp_path / "m", **given))
    files = sorted((tmp_path / "r" / "steps" / "moments").iterdir())
    for path in files:
        path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.warns(ResumeWarning, match="moments.json: the sha256 of its files is another: damaged"):
        build(BuildOptions(LLAMA, out=tmp_path / "m", **given))
    assert np.all([path.name for path in (tmp_path / "m" / "blobs").iterdir()])
