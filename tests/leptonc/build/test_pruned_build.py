"""`leptonc build --prune` from end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime_edge
from leptonc.build.to_artifact import build
from leptonc.errors import InputError
from leptonc.ir.groups import groups
from leptonc.options import BuildOptions
from leptonc.passes.prune.plan import Cut
from leptonc.passes.prune.request import parse_prune
from leptonc.report import as_plain
from leptonc.sources import open_source
from leptonc.sources.base import ComputedTensor
from sample_models import tiny_names
from sample_models.export import write_directory
from tests.leptonc import models, pruned

pytestmark = pytest.mark.usefixtures("short_windows")

LLAMA = "sample:tiny-llama"


def with_zeros(name: str, folder: Path, seed: int) -> tuple[Path, Path]:
    """Writes a model in which what random cuts take is zero, and the cuts as a plan."""
    with open_source(f"sample:{name}") as source:
        model = models.capture(source, max_seq_len=64).model
        cuts = pruned.random_cuts(groups(model), np.random.default_rng(seed))
        weights: dict[str, Any] = dict(source.weights)
        for value, array in pruned.zeroed(groups(model), cuts):
            stored = str(value.const_value.metadata_props["lepton.source"])  # type: ignore[union-attr]
            weights[stored] = ComputedTensor(array.shape, "F32", lambda array=array: array)
        path = write_directory(replace(source, weights=weights), folder / "hf")
    plan = folder / "plan.json"
    plan.write_text(json.dumps(pruned.plan_of(cuts)))
    return path, plan


@pytest.mark.parametrize("name", models.others_apart(tiny_names()))
def test_cutting_zeros_changes_nothing_in_the_artifact(name: str, tmp_path: Path, leptonc: Callable[..., Any]) -> None:
    """Through the whole command line, over the runtime's cache: as far from transformers as unpruned (1e-5)."""
    path, plan = with_zeros(name, tmp_path, seed=5)
    out = tmp_path / "m"
    result = leptonc("build", str(path), "--weights", "fp32", "--prune", str(plan), "-o", str(out))
    assert result.code == 0, result.err
    assert "% of the layers' weights" in result.out
    report = json.loads((out / "report.json").read_text())
    found = report["fidelity"]
    assert report["pruning"]["weights"]["after"] < report["pruning"]["weights"]["before"]
    if name in models.DECODERS:
        with open_source(str(path)) as source, runtime_edge.load(out) as model:
            ids = models.token_ids(sum(models.CHUNKS) * 6)
            chunks = models.CHUNKS * 6
            wanted = models.reference_logits(models.reference_of(source), ids)
            assert np.abs(models.runtime_logits(model, ids, chunks) - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert found["max_abs_diff"] <= 2e-4


def test_a_share_by_text_and_by_weights(text: Path, tmp_path: Path) -> None:
    """Sizes fall as the weights do, the caches' shapes follow, and the figures say so."""
    plain = build(BuildOptions(LLAMA, out=tmp_path / "plain", weights="fp32", check=False))
    for method, compensation in (("magnitude", "none"), ("flap", "bias"), ("taylor", "none")):
        result = build(
            BuildOptions(
                LLAMA, out=tmp_path / method, weights="fp32", prune="30%", prune_method=method,
                prune_compensation=compensation, calibration=None if method == "magnitude" else text,
            )
        )  # fmt: skip
        about = as_plain(result.report)["pruning"]
        assert abs(about["removed_percent"] - 30) < 3
        weights = about["weights"]
        gone = plain.manifest.parameters - result.manifest.parameters
        assert gone == weights["before"] - weights["after"]
        added = 4 * 64 * 6 if compensation == "bias" else 0  # float32 biases of six linear layers of 64 outputs
        sizes = [as_plain(each.report)["bytes"]["weights"] for each in (plain, result)]
        assert sizes[0] - sizes[1] == pytest.approx(4 * gone - added, abs=64 * 30)
        decoder = result.manifest.decoder
        assert decoder is not None
        assert [layer.kv_heads for layer in decoder.cache] == as_plain(result.report)["structure"]["kv_heads"]
        assert as_plain(result.report)["fidelity"]["kl_divergence"] > 0.01  # it is another model
        assert result.manifest.passes[0].name == "prune"


def test_reconstruction_keeps_closer_than_other_methods(tmp_path: Path) -> None:
    found = {}
    for method in (None, "wanda"):
        result = build(
            BuildOptions(
                LLAMA, out=tmp_path / "m", weights="fp32", prune="20%", prune_method=method, prune_compensation="none",
                force=True,
            )
        )  # fmt: skip
        about = as_plain(result.report)["pruning"]
        assert 18 < about["removed_percent"] < 24
        found[method] = as_plain(result.report)["fidelity"]["kl_divergence"]
    assert found[None] < found["wanda"]
    assert about["calibration"]["text"] == "written by the model, seed 0, and built-in"


def test_report_of_a_reconstruction(text: Path, tmp_path: Path) -> None:
    result = build(
        BuildOptions(
            LLAMA, out=tmp_path / "m", weights="int4", method="gptq", prune="20%", check=False, calibration=text
        )
    )
    about = as_plain(result.report)["pruning"]
    assert (about["method"], about["compensation"]) == ("reconstruction", "least-squares")
    blocks = [f"model.layers.{i}/{kind}" for i in range(3) for kind in ("attention", "mlp")]
    whole = [f"{name}#block" for name in blocks if name.endswith("attention")]  # at this share no MLP goes whole
    assert set(about["divergence"]) == {*blocks, *whole}
    assert about["divergence_expected"] > 0
    assert all(each["after"] <= each["before"] for each in about["fitted"])
    assert as_plain(result.report)["variants"]["cpu"]["quantization"]["linears"]


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-bert-classifier"])
def test_quality_before_and_after_what_makes_up_for_cuts(name: str, text: Path, tmp_path: Path) -> None:
    """What a build of the same cuts without compensation measures, and what this one measures at its end."""
    options = BuildOptions(
        f"sample:{name}", out=tmp_path / "m", weights="fp32", prune="20%", prune_method="wanda", calibration=text
    )
    result = build(options)
    about = as_plain(result.report)["pruning"]
    taken = [record for record in result.manifest.passes if record.name == "prune"]
    cuts = tuple(Cut(*(each[field] for field in ("block", "space", "units"))) for each in taken[0].config["cuts"])
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(pruned.plan_of(cuts)))
    plain = as_plain(build(replace(options, prune=str(plan), prune_method=None, calibration=None, force=True)).report)
    assert plain["pruning"]["compensation"] == "none"
    assert set(plain["pruning"]["quality"]) == {"cut"}
    for found, wanted in (
        (about["quality"]["compensated"], as_plain(result.report)["fidelity"]),
        (about["quality"]["cut"], plain["fidelity"]),
        (plain["pruning"]["quality"]["cut"], plain["fidelity"]),
    ):
        assert found["text"] == "built-in"
        assert {"perplexity", "kl_divergence"} <= set(found) or {"cosine_mean", "top1_agreement"} <= set(found)
        for key, value in found.items():
            assert key == "text" or value == pytest.approx(wanted[key], rel=1e-3)
    speed = about["speed"]
    assert speed["of"] == ("a token over a cache of 256" if name == "tiny-llama" else "a text of 128 tokens")
    assert speed["weights"] == "fp32"
    assert speed["times_as_fast"] == pytest.approx(speed["before_ms"] / speed["after_ms"], rel=0.02)
    page = (tmp_path / "m" / "report.html").read_text()
    assert "times as fast" in page


def test_compensations_are_never_worse_on_the_calibration_text(text: Path, tmp_path: Path) -> None:
    for compensation in ("least-squares", "sequential"):
        made = build(
            BuildOptions(
                LLAMA, out=tmp_path / "m", weights="fp32", prune="20%", prune_method="wanda",
                prune_compensation=compensation, check=False, force=True, calibration=text,
            )
        )  # fmt: skip
        about = as_plain(made.report)["pruning"]
        assert about["compensation"] == compensation
        assert about["fitted"]
        assert all(each["after"] <= each["before"] for each in about["fitted"])
        assert any(each["after"] < 0.99 * each["before"] for each in about["fitted"])


def test_whole_layers_and_quantization(text: Path, tmp_path: Path) -> None:
    result = build(
        BuildOptions("sample:tiny-gemma3", out=tmp_path / "m", weights="int4", prune="layers:2", calibration=text)
    )
    assert as_plain(result.report)["pruning"]["method"] == "influence"
    assert as_plain(result.report)["structure"]["layers"] == 2
    assert len(result.manifest.decoder.cache) == 2  # type: ignore[union-attr]
    influence = as_plain(result.report)["pruning"]["influence"]
    gone = {name.partition("/")[0] for name in as_plain(result.report)["pruning"]["blocks"]}
    assert gone == set(sorted(influence, key=lambda path: influence[path])[:2])
    with runtime_edge.load(result.path) as model:
        assert len(model.generate("a", max_new_tokens=4).token_ids) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune": "0%"}, "expected a share above 0 % and below 100 %, found 0%"),
        ({"prune": "100%"}, "below 100 %, found 100%"),
        ({"prune": "250%"}, "below 100 %, found 250%"),
        ({"prune": "latency:0%"}, "expected a latency above 0 % and below 100 %, found latency:0%"),
        ({"prune": "latency:20%", "target": "jetson-orin"}, "expected a CPU's target with --prune latency:PCT"),
        ({"prune": "layers:0"}, "at least one layer"),
        ({"prune": "layers:3"}, "expected fewer layers to prune than the model has, found 3 of 3"),
        ({"prune": "99%", "prune_method": "wanda"}, "expected a share that leaves something of every block"),
        ({"prune": "99%"}, "expected a share of at most"),
        ({"prune": "much"}, "expected of --prune a share, latency:PCT, width:PCT, layers:N, 2:4 or a plan's .json"),
        ({"prune": "none.json"}, "expected a plan at none.json, found: No such file"),
        ({"prune": "20%", "prune_method": "guess"}, "expected prune_method among"),
        ({"prune_method": "wanda"}, "expected --prune with --prune-method"),
        ({"prune": "20%", "prune_allocation": "global"}, "expected --prune-allocation with a method among"),
        ({"prune": "20%", "prune_method": "flap", "prune_allocation": "best"}, "expected prune_allocation among"),
    ],
)
def test_what_cannot_be_asked_for(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        build(BuildOptions(LLAMA, out=tmp_path / "m", check=False, **options))
    assert message in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_plans_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for text, message in (("{", "expected JSON"), ("[]", "expected a JSON object"), ('{"a": 1}', "expected of a ")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            parse_prune(str(path))


@pytest.mark.slow
def test_layers_of_different_shapes_for_tensorrt(tmp_path: Path) -> None:
    """The lowered graph in half precision, run on the CPU; what is cut is zero: as far from transformers as fp16."""
    path, plan = with_zeros("tiny-llama", tmp_path, 5)
    result = build(BuildOptions(str(path), "jetson-orin", out=tmp_path / "m", weights="fp16", prune=str(plan)))
    heads = as_plain(result.report)["structure"]["kv_heads"]
    assert len(set(heads)) > 1
    assert [layer.kv_heads for layer in result.manifest.decoder.cache] == [n for n in heads if n]  # type: ignore[union-attr]
    assert as_plain(result.report)["fidelity"]["kl_divergence"] < 1e-3
    assert as_plain(result.report)["fidelity"]["top1_agreement"] > 0.98


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leptonc.passes.prune.remove import Prune

    def interrupted(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Prune, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(BuildOptions(LLAMA, out=tmp_path / "m", prune="20%", prune_method="wanda", check=False))
    assert list(tmp_path.iterdir()) == []
