"""`leptonc build --prune 2:4` from end to end: what is stored, what the report says, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import runtime_edge
from leptonc.build.to_artifact import BuildResult, build
from leptonc.errors import BoundError, LeptonError
from leptonc.ir.dialect import DialectError
from leptonc.ir.structure import layer_of, linears, weight_of
from leptonc.options import BuildOptions
from leptonc.passes.prune.sparse import CheckSparsity
from leptonc.report import as_plain

HAS_RTX = importlib.util.find_spec("tensorrt_rtx") is not None
needs_rtx = pytest.mark.skipif(not HAS_RTX, reason="TensorRT-RTX (the extra rtx) is not installed")
LLAMA, ORIN = "sample:tiny-llama", "jetson-orin,jetpack=7.2"


def sparse(out: Path, target: Any = ORIN, method: str | None = "magnitude", **options: Any) -> BuildResult:
    return build(
        BuildOptions(LLAMA, target, out, **{"max_seq_len": 128, "prune": "2:4", "prune_method": method, **options})
    )  # fmt: skip


def stored(result: BuildResult) -> dict[str, np.ndarray]:
    """Weights or codes [out, in] of the linear layers in the artifact's graph."""
    found = linears(ir.load(result.path / result.manifest.variants[0].main.file))
    return {linear.path: weight_of(linear) for linear in found}


def most(weight: np.ndarray) -> int:
    """The most weights other than zero in four inputs that follow each other."""
    return max(int(np.count_nonzero(row[at : at + 4])) for row in weight for at in range(0, len(row), 4))


@pytest.mark.parametrize("options", [{"weights": "fp16"}, {"weights": "int8"}, {"activations": "int8"}], ids=str)
def test_what_is_stored_has_the_pattern(options: dict[str, Any], text: Path, tmp_path: Path) -> None:
    given = {"calibration": text} if "activations" in options else {}
    result = sparse(tmp_path / "m", check=False, **options, **given)
    found = stored(result)
    assert len(found) == 3 * 7 + 1
    for path, weight in found.items():
        assert most(weight) == (2 if layer_of(path) else 4), path
    about = as_plain(result.report)["variants"]["jetson-orin"]["sparsity"]
    assert (about["pattern"], "note" in about, "dense_on" in about) == ("2:4", False, False)
    rows = {row["path"]: row for row in about["linears"]}
    assert {path: row["nonzero"] for path, row in rows.items()} == {p: np.count_nonzero(w) for p, w in found.items()}
    assert all(row["beyond_pattern"] == 0 for row in rows.values() if row["sparse"])
    assert [(row["path"], row["why"]) for row in rows.values() if not row["sparse"]] == [
        ("lm_head", "it is outside the layers")
    ]
    inner = {row["stored"] for row in rows.values() if row["sparse"]}
    assert inner == {"float16" if options.get("weights") == "fp16" else "int8"}
    engine = result.manifest.variants[0].engine
    assert engine is not None
    assert engine.spec.sparse_weights
    assert runtime_edge.verify(result.path).variants[0].engine == engine


def test_sparsegpt_keeps_closer_and_the_report_says_what_was_done(text: Path, tmp_path: Path) -> None:
    plain = sparse(tmp_path / "a", eval_text=text)
    solved = sparse(tmp_path / "b", method=None, eval_text=text, calibration=text)
    losses = [as_plain(each.report)["fidelity"]["kl_divergence"] for each in (plain, solved)]
    assert losses[1] < losses[0]
    about = as_plain(solved.report)["pruning"]
    assert (about["asked"], about["method"], about["removed_percent"]) == ("2:4", "sparsegpt", 50.0)
    assert about["weights"] == {"before": 129024, "after": 64512}
    assert about["calibration"]["text"] == text.name
    assert about["left_dense"] == [{"path": "lm_head", "why": "it is outside the layers"}]
    assert len(about["linears"]) == 3 * 7
    assert all(each["error"] <= each["by_magnitude"] for each in about["linears"])
    assert as_plain(plain.report)["pruning"]["weights"] == about["weights"]
    assert "calibration" not in as_plain(plain.report)["pruning"]
    for each in (plain, solved):
        assert each.manifest.variants[0].weights == "fp16"  # without being asked for
        (record,) = (record for record in each.manifest.passes if record.name == "sparsify")
        assert record.config["pattern"] == "2:4"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-bert-classifier"])
def test_other_families(name: str, tmp_path: Path) -> None:
    """GPT-2's weights lie the other way round; an encoder has a head outside its layers."""
    result = build(BuildOptions(f"sample:{name}", ORIN, tmp_path / "m", prune="2:4", max_seq_len=64, check=False))
    assert all(each["error"] <= each["by_magnitude"] for each in as_plain(result.report)["pruning"]["linears"])
    for path, weight in stored(result).items():
        assert (most(weight) <= 2) == bool(layer_of(path)), path


@needs_rtx
@pytest.mark.parametrize("weights", ["fp16", "int8"])
def test_one_engine_for_capabilities_with_and_without_sparse_tensor_cores(weights: str, tmp_path: Path) -> None:
    result = sparse(tmp_path / "m", "rtx", weights=weights, check=False)
    found = as_plain(result.report)["variants"]["rtx"]
    assert found["engine"]["built"]
    assert found["sparsity"]["dense_on"] == "compute capabilities 7.5: they have no sparse tensor cores"
    assert "same plan" in found["sparsity"]["note"]
    engine = result.manifest.variants[0].engine
    assert engine is not None
    assert (engine.spec.sparse_weights, len(engine.plans)) == (True, 1)
    other = as_plain(sparse(tmp_path / "n", "rtx-30", check=False).report)
    assert "dense_on" not in other["variants"]["rtx-30"]["sparsity"]


def test_a_dense_build_says_nothing_of_it(tmp_path: Path) -> None:
    result = sparse(tmp_path / "m", prune=None, method=None, weights="fp16", check=False)
    engine = result.manifest.variants[0].engine
    assert engine is not None
    assert not engine.spec.sparse_weights
    assert "sparsity" not in as_plain(result.report)["variants"]["jetson-orin"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "cpu"}, "expected a target with sparse tensor cores (NVIDIA's from Ampere on) for --prune 2:4, "
         "found cpu"),
        ({"target": (ORIN, "cpu")}, "for --prune 2:4, found cpu"),
        ({"target": "rtx-20"}, "for --prune 2:4, found rtx-20"),
        ({"target": "rtx,compute_capabilities=7.5"}, "for --prune 2:4, found rtx,compute_capabilities=7.5"),
        ({"weights": "int8", "method": "gptq"}, "expected method rtn with --prune 2:4, found gptq"),
        ({"weights": "int8", "method": "awq"}, "expected method rtn with --prune 2:4, found awq"),
        ({"weights": "int4"}, "TensorRT: expected 2:4 weights to be one of fp16 and int8, found int4"),
        ({"weights": "fp32"}, "expected 2:4 weights to be one of fp16 and int8, found fp32"),
        ({"symmetric": False}, "expected symmetric weights"),
        ({"heal": "1s"}, "expected no --heal for target jetson-orin"),
        ({"prune_method": "wanda"}, "expected with --prune 2:4 a pruning method among sparsegpt, magnitude, found"),
        ({"prune": "20%", "prune_method": "sparsegpt"}, "expected a pruning method among reconstruction"),
        ({"prune_compensation": "bias"}, "expected no --prune-compensation with --prune 2:4, found 'bias'"),
        ({"prune_allocation": "global"}, "expected no --prune-allocation with --prune 2:4, found 'global'"),
        ({"prune": "2:3"}, "expected of --prune a share, latency:PCT, width:PCT, layers:N, 2:4 or a plan"),
        ({"calibration": Path("text.txt")}, "expected something that reads a calibration text"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Before the model is opened: there is none of that name."""
    given = {"target": ORIN, "prune": "2:4", "prune_method": "magnitude", **options}
    with pytest.raises(LeptonError) as caught:
        build(BuildOptions("sample:none-such", out=tmp_path / "m", **given))
    assert message in caught.value.message
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_layers_of_a_recipe_have_formats_that_sparse_kernels_take(tmp_path: Path) -> None:
    from leptonc.options import LayerRule

    rule = LayerRule(match=("*.down_proj",), weights="int4")
    with pytest.raises(LeptonError, match="layers of a recipe in fp16 or int8 with 2:4 weights, found int4"):
        sparse(tmp_path / "m", weights="int8", layers=(rule,))


def test_a_bound_on_loss_holds(tmp_path: Path) -> None:
    with pytest.raises(BoundError, match="nothing was written"):
        sparse(tmp_path / "m", max_loss=-99)
    assert list(tmp_path.iterdir()) == []


def test_a_pattern_that_is_lost_on_the_way_is_never_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leptonc.passes.prune.sparse import Sparsify

    monkeypatch.setattr(Sparsify, "run", lambda *_: 0)
    with pytest.raises(DialectError, match=r"q_proj: expected 2:4 weights, found \d+ groups beyond"):
        sparse(tmp_path / "m", check=False)
    assert list(tmp_path.iterdir()) == []


def test_two_builds_give_the_same_weights(text: Path, tmp_path: Path) -> None:
    both = [sparse(tmp_path / n, method=None, calibration=text, check=False) for n in ("a", "b")]
    assert both[0].manifest.variants == both[1].manifest.variants


def test_an_interrupted_run_leaves_nothing(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(CheckSparsity, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sparse(tmp_path / "m", method=None, calibration=text, check=False)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(leptonc: Callable[..., Any], text: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    arguments = ("--target", ORIN, "--prune", "2:4", "--calibration", text, "--max-seq-len", "128", "-o", out)
    done = leptonc("build", LLAMA, *arguments)
    assert done.code == 0, done.err
    assert "50 % of the layers' weights, 64,512 left" in done.out
    assert "pattern 2:4" in done.out
    report = json.loads((out / "report.json").read_text())
    assert report["recipe"]["prune"] == "2:4"
    assert report["fidelity"]["kl_divergence"] > 0
    assert "beyond pattern" in (out / "report.html").read_text()
    shown = leptonc("inspect", out, "--structure")
    assert "sparsegpt" in shown.out
