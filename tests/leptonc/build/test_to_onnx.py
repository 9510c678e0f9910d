"""`leptonc build --emit onnx`: what is written runs by itself, and builds as the model would have."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import transformers

import runtime_edge
from leptonc.artifact.writer import ArtifactWriter
from leptonc.build.to_artifact import BuildResult, build
from leptonc.build.to_onnx import emit
from leptonc.errors import BoundError, InputError
from leptonc.ir.groups import groups
from leptonc.options import BuildOptions
from leptonc.report import as_plain
from leptonc.sources import open_source
from sample_models import tiny_names
from tests.leptonc import models, pruned

pytestmark = pytest.mark.usefixtures("short_windows")

LLAMA = "sample:tiny-llama"
ALL = models.others_apart(tiny_names())
FIRST = {"model.layers.0/mlp": {"channels": "0-31"}, "model.layers.1/attention": "block"}
SECOND = {"model.layers.1/mlp": {"channels": "5-20"}, "model.layers.2/attention": {"groups": "1"}}


def plan(folder: Path, cuts: dict[str, Any], name: str = "plan.json") -> str:
    path = folder / name
    path.write_text(json.dumps(cuts))
    return str(path)


def random_plan(folder: Path, name: str) -> str:
    with open_source(f"sample:{name}") as source:
        found = groups(models.capture(source, max_seq_len=64).model)
    cuts: tuple[Any, ...] = ()
    seed = 3
    while not cuts:
        cuts, seed = pruned.random_cuts(found, np.random.default_rng(seed)), seed + 1
    return plan(folder, pruned.plan_of(cuts))


def stored(result: BuildResult) -> list[str]:
    """Hashes of graph and weights."""
    return sorted(f.sha256 for f in result.manifest.files if f.path.startswith("blobs/") or f.path.endswith(".onnx"))


@pytest.mark.parametrize("name", ALL)
def test_it_builds_as_the_model_would_have(name: str, tmp_path: Path) -> None:
    """Graph and weights of both ways are the same bytes, and so is what the manifest says of the model."""
    cuts = random_plan(tmp_path, name)
    emitted = emit(BuildOptions(f"sample:{name}", out=tmp_path / "graph", prune=cuts, check=False))
    again = build(BuildOptions(str(emitted.path), out=tmp_path / "again", weights="int8"))
    plain = build(BuildOptions(f"sample:{name}", out=tmp_path / "plain", weights="int8", prune=cuts, check=False))
    assert stored(again) == stored(plain)
    for field in ("task", "architecture", "parameters", "tokenizer", "parts", "settings"):
        assert getattr(again.manifest, field) == getattr(plain.manifest, field)
    assert [each.name for each in again.manifest.passes] == [each.name for each in plain.manifest.passes]
    assert as_plain(again.report)["structure"] == as_plain(plain.report)["structure"]
    assert as_plain(again.report)["pruning"] == as_plain(plain.report)["pruning"]
    fidelity = as_plain(again.report)["fidelity"]
    assert fidelity["reference"] == "the graph emitted as graph"
    assert fidelity.get("kl_divergence", 0) < 0.01  # of int8 alone: the pruned model itself is what it is held against
    assert fidelity.get("cosine_mean", 1) > 0.999
    rows = as_plain(again.report)["variants"]["cpu"]["linears"]
    assert all(30 < row["snr_db"] < 60 for row in rows)


@pytest.mark.parametrize("name", ALL)
def test_the_graph_runs_in_a_plain_session(name: str, tmp_path: Path) -> None:
    """Unpruned, over its cache, from the file as it was written: what transformers computes (1e-4)."""
    emit(BuildOptions(f"sample:{name}", out=tmp_path / "graph", check=False))
    path = tmp_path / "graph" / "model.onnx"
    graph = models.Graph.__new__(models.Graph)
    graph.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    graph.inputs = {i.name: i.shape for i in graph.session.get_inputs()}
    graph.outputs = [o.name for o in graph.session.get_outputs()]
    if name in models.DECODERS:
        ids = models.token_ids(sum(models.CHUNKS))
        found = graph.logits(ids, models.CHUNKS, 64)
        wanted = models.reference_logits(models.reference(name), ids)
    else:
        given = models.padded(graph.inputs, pad=1)
        found, wanted = graph(**given)[graph.outputs[0]], models.reference_embeddings(name, given)
    assert np.abs(found - wanted).max() <= 1e-4
    onnx.checker.check_model(str(path))


def test_quality_is_that_of_a_float32_artifact(tmp_path: Path) -> None:
    options = BuildOptions(LLAMA, out=tmp_path / "graph", prune=plan(tmp_path, FIRST))
    emitted = emit(options)
    plain = build(replace(options, out=tmp_path / "plain", weights="fp32"))
    for name, wanted in as_plain(plain.report)["fidelity"].items():
        found = as_plain(emitted.report)["fidelity"][name]
        assert found == (wanted if isinstance(wanted, str) else pytest.approx(wanted, rel=1e-4)), name
    assert json.loads((emitted.path / "report.json").read_text()) == as_plain(emitted.report)
    again = build(BuildOptions(str(emitted.path), out=tmp_path / "again", weights="fp32"))
    assert as_plain(again.report)["fidelity"]["max_abs_diff"] <= 1e-4
    assert as_plain(again.report)["emitted"]["fidelity"] == as_plain(emitted.report)["fidelity"]


def test_pruned_twice_is_pruned_by_both_plans(tmp_path: Path) -> None:
    both = plan(tmp_path, {**FIRST, **SECOND}, "both.json")
    emit(BuildOptions(LLAMA, out=tmp_path / "1", prune=plan(tmp_path, FIRST), check=False))
    emit(BuildOptions(str(tmp_path / "1"), out=tmp_path / "2", prune=plan(tmp_path, SECOND), check=False))
    again = build(BuildOptions(str(tmp_path / "2"), out=tmp_path / "again", weights="int8", check=False))
    plain = build(BuildOptions(LLAMA, out=tmp_path / "plain", weights="int8", prune=both, check=False))
    assert stored(again) == stored(plain)
    assert [each.name for each in again.manifest.passes[:2]] == ["prune", "prune"]
    assert len(as_plain(again.report)["emitted"]["pruning"]) == 2
    assert again.manifest.source["from_id"] == "tiny-llama"
    last = build(BuildOptions(str(tmp_path / "2"), out=tmp_path / "last", weights="int8", prune="10%"))
    assert last.manifest.parameters < again.manifest.parameters
    assert as_plain(last.report)["fidelity"]["reference"] == "the graph emitted as 2"


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "int4", "method": "gptq"},
        pytest.param({"weights": "int4", "method": "awq"}, marks=pytest.mark.slow),
        pytest.param({"weights": "auto:200kB"}, marks=pytest.mark.slow),
        pytest.param({"weights": "int8", "activations": "int8"}, marks=pytest.mark.slow),
        pytest.param({"weights": "int8", "kv_cache": "int8"}, marks=pytest.mark.slow),
        pytest.param({"weights": "int8", "prefill": "int8"}, marks=pytest.mark.slow),
    ],
)
def test_what_calibrates_sees_the_same(options: dict[str, Any], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(" ".join(f"w{i * j % 97} the lake" for i in range(300)) for j in range(1, 9)))
    emit(BuildOptions(LLAMA, out=tmp_path / "graph", prune=plan(tmp_path, FIRST), check=False))
    common = BuildOptions(LLAMA, out=tmp_path / "a", calibration=text, check=False, **options)
    plain = build(replace(common, prune=str(tmp_path / "plan.json")))
    again = build(replace(common, source=str(tmp_path / "graph"), out=tmp_path / "b"))
    assert stored(again) == stored(plain)


def test_healed_before_it_is_emitted(tmp_path: Path) -> None:
    cuts = plan(tmp_path, FIRST)
    emitted = emit(BuildOptions(LLAMA, out=tmp_path / "graph", prune=cuts, heal="4steps", check=False))
    recovery = as_plain(emitted.report)["recovery"]
    assert recovery["after"]["kl_divergence"] < recovery["before"]["kl_divergence"]
    assert [each.name for each in emitted.about.passes] == ["prune", "heal"]
    plain = build(
        BuildOptions(LLAMA, out=tmp_path / "plain", weights="fp32", prune=cuts, heal="4steps", check=False)
    )  # fmt: skip
    again = build(BuildOptions(str(emitted.path), out=tmp_path / "again", weights="fp32", check=False))
    assert stored(again) == stored(plain)


@pytest.mark.slow
def test_it_heals_after_it_was_read(tmp_path: Path) -> None:
    emit(BuildOptions(LLAMA, out=tmp_path / "graph", prune=plan(tmp_path, FIRST), check=False))
    found = build(BuildOptions(str(tmp_path / "graph"), out=tmp_path / "m", weights="int4", heal="10steps"))
    recovery = as_plain(found.report)["variants"]["cpu"]["recovery"]
    assert recovery["after"]["kl_divergence"] < recovery["before"]["kl_divergence"]


@pytest.mark.parametrize("target", ["jetson-orin", pytest.param("rtx", marks=pytest.mark.slow)])
def test_other_targets(target: str, tmp_path: Path) -> None:
    emit(BuildOptions(LLAMA, out=tmp_path / "graph", prune=plan(tmp_path, SECOND), check=False))
    found = build(BuildOptions(str(tmp_path / "graph"), target, out=tmp_path / "m", weights="int8"))
    assert as_plain(found.report)["fidelity"]["kl_divergence"] < 0.01
    assert [layer.kv_heads for layer in found.manifest.decoder.cache] == [2, 2, 1]  # type: ignore[union-attr]
    assert as_plain(found.report)["fidelity"]["reference"] == "the graph emitted as graph"


def test_fewer_positions_and_no_more(tmp_path: Path) -> None:
    emit(BuildOptions(LLAMA, out=tmp_path / "graph", max_seq_len=128, check=False))
    found = build(BuildOptions(str(tmp_path / "graph"), out=tmp_path / "m", max_seq_len=64, check=False))
    assert found.manifest.decoder.max_seq_len == 64  # type: ignore[union-attr]
    with runtime_edge.load(found.path) as model:
        assert len(model.generate("a", max_new_tokens=4).token_ids) == 4
    with pytest.raises(InputError, match="expected at most the 128 tokens that the graph was emitted with, found") as e:
        build(BuildOptions(str(tmp_path / "graph"), out=tmp_path / "n", max_seq_len=256, check=False))
    assert e.value.hint == "emit it with --max-seq-len 256, if the model itself has as many"


def test_memory_does_not_grow_with_depth(tmp_path: Path) -> None:
    """Weights pass through memory, from the model and from the emitted graph: six times the layers take no more."""
    peaks = []
    for layers in (2, 12):
        config = transformers.LlamaConfig(
            vocab_size=512, hidden_size=64, intermediate_size=4096, num_hidden_layers=layers, num_attention_heads=4,
            max_position_embeddings=64,
        )  # fmt: skip
        source = replace(models.source_of(config, "LlamaForCausalLM"), tokenizer_json=tiny_tokenizer())
        out = tmp_path / str(layers)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("leptonc.build.begin.open_source", lambda *_, source=source: source)
            emit(BuildOptions(LLAMA, out=out, check=False))
        peaks.append((_peak(source, tmp_path), _peak(open_source(str(out)), tmp_path)))
    for few, many in zip(*peaks, strict=True):
        assert few < many < 1.2 * few


def tiny_tokenizer() -> bytes:
    with open_source(LLAMA) as source:
        return source.tokenizer_json


def _peak(source: Any, folder: Path) -> int:
    """Most bytes that writing a source's graph takes; one layer has 3 MB."""
    model = models.capture(source, max_seq_len=64).model
    tracemalloc.start()
    try:
        with ArtifactWriter(folder / "m") as writer:
            writer.add_graph("model.onnx", model, sources=True)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "int4"}, "nothing that says how a graph is lowered with --emit onnx, found weights"),
        ({"weights": "int8", "activations": "int8"}, "found weights, activations"),
        ({"method": "gptq"}, "found method"),
        ({"block_size": 32, "symmetric": False, "embeddings": "int8"}, "found block_size, symmetric, embeddings"),
        ({"kv_cache": "int8", "prefill": "int8"}, "found kv_cache, prefill"),
        ({"calibrator": "mse"}, "found calibrator"),
        ({"target": ("cpu", "jetson-orin")}, "expected one target with --emit onnx, found cpu, jetson-orin"),
        ({"target": "nowhere"}, "unknown target 'nowhere'"),
        ({"heal": "10steps"}, "expected --prune, or weights of integers"),
        ({"resume": Path("x")}, "expected --prune, --heal or a calibration with --resume"),
        ({"prune": "2:4"}, "expected a share, latency:PCT, layers:N or a plan with --emit onnx"),
        ({"calibration": Path("x")}, "expected something that reads a calibration text"),
        ({"prune": "0%"}, "expected a share above 0 %"),
        ({"max_seq_len": 0}, "expected max_seq_len of at least 1, found 0"),
    ],
)
def test_what_cannot_be_asked_for(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        emit(BuildOptions(LLAMA, out=tmp_path / "graph", **options))
    assert message in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken(tmp_path: Path) -> None:
    options = BuildOptions(LLAMA, out=tmp_path / "graph", check=False)
    emit(options)
    with pytest.raises(InputError, match=r"expected nothing at .*, found an emitted graph") as caught:
        emit(options)
    assert "--force" in str(caught.value.hint)
    emit(replace(options, force=True, prune=plan(tmp_path, FIRST)))
    assert json.loads((tmp_path / "graph" / "lepton.json").read_text())["pruning"]
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="found something else at"):
        emit(replace(options, out=tmp_path / "other", force=True))


def test_a_bound_on_quality(tmp_path: Path) -> None:
    options = BuildOptions("sample:tiny-bert", out=tmp_path / "graph", prune="10%", prune_method="magnitude")
    with pytest.raises(BoundError, match=r"at most 0\.001 % for the emitted graph, found that cosine") as e:
        emit(replace(options, max_loss=0.001))
    assert "--heal" in str(e.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("leptonc.build.steps.write_emitted.write_model_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        emit(BuildOptions(LLAMA, out=tmp_path / "graph"))
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_of_an_emitted_graph(tmp_path: Path, leptonc: Callable[..., Any]) -> None:
    emit(BuildOptions(LLAMA, out=tmp_path / "graph", prune=plan(tmp_path, FIRST), check=False))
    result = leptonc("sweep", tmp_path / "graph", "--schemes", "fp32,int8", "--keep", tmp_path / "points", "--json")
    assert result.code == 0, result.err
    points = json.loads(result.out)["points"]
    assert [each["name"] for each in points] == ["fp32", "int8"]
    assert abs(points[0]["loss_percent"]) < 1e-3


def test_inspect_shows_an_emitted_graph(tmp_path: Path, leptonc: Callable[..., Any]) -> None:
    out = tmp_path / "g"
    emit(BuildOptions(LLAMA, out=out, prune=plan(tmp_path, FIRST), max_seq_len=64, check=False))
    text = leptonc("inspect", out).out
    assert "a SOURCE of leptonc build" in text
    assert "prune" in text
    found = json.loads(leptonc("inspect", out, "--json").out)
    assert found["about"]["task"] == "text-generation"
    assert found["report"] == json.loads((out / "report.json").read_text())
    assert "model.layers.0/mlp" in leptonc("inspect", out, "--structure").out
    assert "prune = " in leptonc("inspect", out, "--recipe").out
    (out / "lepton.json").write_text("[]")
    done = leptonc("inspect", out)
    assert (done.code, done.err.startswith("error: lepton.json: expected a JSON object")) == (1, True)
    (out / "lepton.json").unlink()
    assert "manifest.json" in leptonc("inspect", out).err
