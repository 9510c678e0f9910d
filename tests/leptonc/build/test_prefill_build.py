"""Builds with a second graph for prefill: what is stored, what runs, and requests that cannot be met."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.numpy_helper import to_array

import runtime_edge
from leptonc.artifact.pack import pack
from leptonc.build.to_artifact import BuildResult, build
from leptonc.errors import BoundError, InputError
from leptonc.evaluate.bounds import loss
from leptonc.options import BuildOptions, LayerRule
from leptonc.report import as_plain
from runtime_edge import kernels
from runtime_edge.derived import PAIR, integers, read
from runtime_edge.verify import read_manifest
from tests.runtime_edge.kernels import with_tiles

pytestmark = pytest.mark.usefixtures("short_windows")

TEXT = "The valves close when the pressure falls, and a lamp tells the driver which of them did so. " * 12


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def built(source: str, text: Path, out: Path, **options: object) -> BuildResult:
    given = {"weights": "int4", "prefill": "int8", "method": "rtn", "calibration": text, "eval_text": text, **options}
    return build(BuildOptions(f"sample:{source}", out=out, **given))  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["tiny-llama", "tiny-gemma3", "tiny-gpt2"])
def test_prompts_go_through_8_bits_and_tokens_through_4(source: str, text: Path, tmp_path: Path) -> None:
    result = built(source, text, tmp_path / "a")
    (variant,) = result.manifest.variants
    assert (variant.weights, [each.file for each in variant.graphs]) == ("int4", ["cpu.onnx", "cpu.prefill.onnx"])
    about = as_plain(result.report)["variants"]["cpu"]
    assert about["prefill"]["activations"]["int8_share"] >= 0.9
    # 8 bits with 8-bit inputs are much nearer to the original than 4 bits are.
    assert about["prefill"]["fidelity"]["kl_divergence"] < about["fidelity"]["kl_divergence"] / 1.5
    layers = len(as_plain(result.report)["structure"]["heads"])
    assert len(variant.blobs) == 2 * layers + 1  # what lies outside of the layers is stored once
    only = build(BuildOptions(f"sample:{source}", out=tmp_path / "b", weights="int4", fast=True, eval_text=text))
    # The same weights; one graph runs all tokens through kernels for few of them, which may sum in another order.
    for name in ("perplexity", "kl_divergence"):
        assert about["fidelity"][name] == pytest.approx(as_plain(only.report)["fidelity"][name], rel=2e-3)
    inputs = [[len(n.input) for n in nodes_of(result.path / graph.file)] for graph in variant.graphs]
    assert inputs == [[12] * layers] * 2  # a sink of minus infinity: all scores at once
    long, short = list(range(3, 43)), list(range(3, 12))
    with runtime_edge.load(result.path) as both, runtime_edge.load(only.path) as four:
        np.testing.assert_allclose(both.score(short), four.score(short), atol=0.02)
        assert not np.array_equal(both.score(long), four.score(long))
        np.testing.assert_allclose(both.score(long), four.score(long), atol=5)  # of the same model, roughly
        assert len(both.generate(long, max_new_tokens=80, stop_token_ids=[]).token_ids) == 80


def nodes_of(graph: Path) -> list[onnx.NodeProto]:
    """Nodes of attention."""
    return [n for n in onnx.load(graph, load_external_data=False).graph.node if n.op_type == "GroupQueryAttention"]


def graph_bytes(result: BuildResult) -> int:
    """Bytes of graphs and weights."""
    return sum(f.size for f in result.manifest.files if f.path.startswith("blobs/") or ".onnx" in f.path)


BUDGET = 300_000  # bytes of graphs and weights
OPTIONS: list[Any] = [
    ("tiny-llama", {"method": "gptq", "symmetric": False}),
    ("tiny-llama", {"weights": f"auto:{BUDGET // 1000}kB"}),
    pytest.param("tiny-llama", {"weights": "int2", "symmetric": False}, marks=pytest.mark.families),
    ("tiny-llama", {"heal": "3steps", "calibration": None}),
    ("tiny-llama", {"rotate": True, "kv_cache": "int8"}),
    ("tiny-gemma3", {"weights": "int8"}),
    pytest.param("tiny-gpt2", {"block_size": 64}, marks=pytest.mark.families),
    ("tiny-qwen3", {"prune": "20%"}),
]


@pytest.mark.parametrize(("source", "options"), OPTIONS)
def test_weights_that_both_graphs_share(source: str, options: dict[str, object], text: Path, tmp_path: Path) -> None:
    """One stored set of weights: prompts go through integers that are made of those that decode."""
    result = built(source, text, tmp_path / "a", **{**options, "prefill": "shared"})
    (variant,) = result.manifest.variants
    prompts_graph = variant.graph("decoder", "prompts")
    assert (prompts_graph.file, prompts_graph.derived) == ("cpu.prefill.onnx", "cpu.prefill.json")
    about = as_plain(result.report)["variants"]["cpu"]
    assert about["prefill"]["activations"]["int8_share"] >= 0.9
    decode, prompts = (each["fidelity"]["kl_divergence"] for each in (about, about["prefill"]))
    assert prompts <= 1.15 * decode + 0.01  # what 8 bits add is little
    derived = read(result.path / "cpu.prefill.json", "", {f.path: f.size for f in result.manifest.files})
    assert len(derived.weights) >= len(as_plain(result.report)["structure"]["heads"])
    if str(options.get("weights")).startswith("auto:"):
        whole = graph_bytes(result) + (result.path / prompts_graph.derived).stat().st_size
        assert 0.9 * BUDGET <= whole <= BUDGET
        assert as_plain(result.report)["variants"]["cpu"]["quantization"]["budget"]["spent"] > 0
    if source != "tiny-llama":  # one of each model: builds take long
        twice = built(source, text, tmp_path / "b", check=False, **options)
        made = sum(each.rows * each.columns for each in derived.weights)
        # But for norms and factors of the inputs, which are many among weights of 64 inputs.
        assert graph_bytes(twice) - graph_bytes(result) >= 0.85 * made
    long = list(range(3, 43))
    with runtime_edge.load(result.path) as model:
        assert np.isfinite(model.score(long)).all()
        assert len(model.generate(long, max_new_tokens=80, stop_token_ids=[]).token_ids) == 80
    packed = pack(result.path, ["cpu"], tmp_path / "c")
    assert packed.variants == (variant,)
    with runtime_edge.load(tmp_path / "c") as model, runtime_edge.load(result.path) as whole:
        np.testing.assert_array_equal(model.score(long), whole.score(long))


@with_tiles
def test_our_products_change_no_bit(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = built("tiny-llama", text, tmp_path / "a", prefill="shared", check=False).path
    monkeypatch.setattr(kernels, "_fits", lambda decoder: False)  # attention, which sums in another order
    long = list(range(3, 43))
    packed, pack = [], kernels.packed
    monkeypatch.setattr(kernels, "packed", lambda weight: packed.append(weight.shape) or pack(weight))
    with runtime_edge.load(path) as model:
        ours = model.score(long)
    assert packed  # they were ours
    monkeypatch.setenv(kernels.VARIABLE, "onnxruntime")
    with runtime_edge.load(path) as model:
        np.testing.assert_array_equal(ours, model.score(long))


def test_what_decodes_is_as_without_a_graph_for_prompts(text: Path, tmp_path: Path) -> None:
    """Smoothing is the other graph's alone: codes, gains and scales of this one are those of a build without it."""
    options = {"method": "gptq", "symmetric": False, "check": False}
    paths = [built("tiny-llama", text, tmp_path / str(each), prefill=each, **options).path for each in ("shared", None)]
    graphs = (onnx.load(path / "cpu.onnx").graph.initializer for path in paths)
    both, alone = ({each.name: to_array(each) for each in graph} for graph in graphs)
    assert sum(name.endswith(".codes") for name in alone) >= 10
    assert {name for name in alone if not name.startswith("no_sink")} <= both.keys()
    for name, array in alone.items():
        np.testing.assert_array_equal(both.get(name, array), array)
    (smooth,) = (each for each in read_manifest(paths[0]).passes if each.name == "smooth-linears")
    assert smooth.config["strengths"]


def test_a_layer_of_a_format_of_its_own(text: Path, tmp_path: Path) -> None:
    """It stays codes in both graphs; what reads what it makes has integers nonetheless."""
    rules = (LayerRule(match=("*.up_proj",), weights="int8"),)
    result = built("tiny-llama", text, tmp_path / "a", prefill="shared", layers=rules)
    about = as_plain(result.report)["variants"]["cpu"]
    decode, prompts = (each["fidelity"]["kl_divergence"] for each in (about, about["prefill"]))
    assert prompts <= 1.15 * decode + 0.01
    graph = onnx.load(result.path / "cpu.prefill.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node if any("up_proj" in name for name in node.input)]
    assert kinds.count("MatMulNBits") == len(as_plain(result.report)["structure"]["heads"])
    derived = read(result.path / "cpu.prefill.json", "", {f.path: f.size for f in result.manifest.files})
    assert sum("down_proj" in each.name for each in derived.weights) == kinds.count("MatMulNBits")


def test_integers_of_the_graph_for_prefill_are_those_of_the_other(text: Path, tmp_path: Path) -> None:
    """All that the graph lacks is described, in its shape, and no two neighbours are too much for 16 bits."""
    result = built("tiny-llama", text, tmp_path / "a", prefill="shared", check=False)
    derived = read(result.path / "cpu.prefill.json", "", {f.path: f.size for f in result.manifest.files})
    graph = onnx.load(result.path / "cpu.prefill.onnx", load_external_data=False)
    made = {each.name: each for each in graph.graph.initializer if "derived" in str(each.external_data)}
    assert sorted(made) == sorted(each.name for each in derived.weights)
    products = [n for n in graph.graph.node if n.op_type == "MatMulIntegerToFloat" and n.input[1] in made]
    low = [n for n in products if len(n.input) < 7]  # of inputs of 16 bits; the other half's product has the bias
    assert len(products) == len(made) + len(low)
    assert {n.input[1] for n in low} <= made.keys()
    assert all(n.input[6].endswith(".int8.bias") for n in products if n not in low)
    for each in derived.weights:
        assert list(made[each.name].dims) == [each.columns, each.rows]
        made_of = integers(result.path, each).astype(int)
        assert np.abs(made_of[0::2] + made_of[1::2]).max() <= PAIR
        assert np.abs(made_of).max() > PAIR // 2  # eight bits are used


@pytest.mark.parametrize("prefill", ["int8", "shared"])
def test_the_same_bytes_from_the_same_request(prefill: str, text: Path, tmp_path: Path) -> None:
    first, second = (built("tiny-llama", text, tmp_path / name, check=False, prefill=prefill).manifest for name in "ab")
    assert first == second


def test_the_bound_holds_for_prompts_too(text: Path, tmp_path: Path) -> None:
    with pytest.raises(BoundError, match="expected a loss of at most"):
        built("tiny-llama", text, tmp_path / "a", weights="int8", max_loss=0.0)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("weights", "prefill"), [("int8", "int8"), ("int4", "shared")])
def test_where_prompts_alone_lose_too_much_the_hint_is_about_them(
    weights: str, prefill: str, text: Path, tmp_path: Path
) -> None:
    result = built("tiny-llama", text, tmp_path / "a", weights=weights, prefill=prefill)
    assert result.report.variants is not None
    variant = result.report.variants["cpu"]
    assert variant.fidelity is not None
    assert variant.prefill is not None
    assert variant.prefill.fidelity is not None
    (_, decodes), (_, prompts) = loss(variant.fidelity), loss(variant.prefill.fidelity)
    assert decodes < prompts
    message = f"for cpu in prompts, found that perplexity rises by {prompts:.2f} %"
    bound = (decodes + prompts) / 2
    with pytest.raises(BoundError, match=message) as caught:
        built("tiny-llama", text, tmp_path / "b", weights=weights, prefill=prefill, max_loss=bound)
    assert not (tmp_path / "b").exists()
    hint = str(caught.value.hint)
    inputs = [each for each in as_plain(variant.prefill)["activations"]["inputs"] if each["bits"] == 8]
    worst = sorted(inputs, key=lambda each: each["divergence"])[-3:]
    named = [f"{' and '.join(each['layers'])} ({each['divergence']:.2g} nats)" for each in reversed(worst)]
    assert f"what these read loses most in 8 bits: {', '.join(named)}." in hint
    alone = {"weights": weights, "prefill": None, "calibration": None, "check": False}
    without = built("tiny-llama", text, tmp_path / "c", **alone)
    (less,) = re.findall(r"without --prefill, .* there are ([\d,]+) bytes less", hint)
    derived = sum(f.size for f in result.manifest.files if f.path == "cpu.prefill.json")
    added = graph_bytes(result) + derived - graph_bytes(without)
    assert int(less.replace(",", "")) == pytest.approx(added, rel=0.01)
    assert ("--prefill int8" in hint) == (prefill == "shared")
    if prefill == "shared":
        twice = built("tiny-llama", text, tmp_path / "d", weights=weights, prefill="int8", check=False)
        (more,) = re.findall(r"takes about ([\d,]+) bytes more", hint)
        # Of a model whose widths are 64, what the graph says of its weights is many bytes: the runtime's are none here.
        assert int(more.replace(",", "")) == pytest.approx(graph_bytes(twice) - graph_bytes(result) - derived, rel=0.25)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("tiny-llama", {"weights": "fp32"}, "expected weights of integers without activations int8"),
        ("tiny-llama", {"weights": "int8", "activations": "int8"}, "found weights int8 and activations int8"),
        ("tiny-llama", {"prefill": "int4"}, "expected prefill among int8, shared, found 'int4'"),
        ("tiny-llama", {"prefill": "shared", "method": "awq"}, "expected method rtn or gptq with 8-bit activations"),
        ("tiny-llama", {"target": "rtx"}, "expected no graph for prefill for target rtx"),
        ("tiny-bert", {}, "expected a model that generates text for --prefill"),
    ],
)
def test_what_is_refused(source: str, options: dict[str, object], message: str, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        built(source, text, tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()
