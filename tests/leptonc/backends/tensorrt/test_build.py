"""Builds for TensorRT targets: every family's lowered graph on the CPU, real plans, rehearsals, refusals."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import runtime_edge
import targets
from leptonc.backends.tensorrt.device_memory import Need, check
from leptonc.backends.tensorrt.operators import unsupported
from leptonc.build.to_artifact import BuildResult, build
from leptonc.errors import BoundError, InputError
from leptonc.options import BuildOptions
from leptonc.report import as_plain
from runtime_edge.errors import LeptonError
from tests.leptonc import models

HAS_RTX = importlib.util.find_spec("tensorrt_rtx") is not None
needs_rtx = pytest.mark.skipif(not HAS_RTX, reason="TensorRT-RTX (the extra rtx) is not installed")
JETPACK_6, JETPACK_7 = "jetson-orin,jetpack=6.2", "jetson-orin,jetpack=7.2"
# Each form of attention and of norms once, on either version; a plain model and one with windows on both.
PAIRS = [("tiny-llama", JETPACK_6), ("tiny-llama", JETPACK_7), ("tiny-gemma3", JETPACK_6), ("tiny-gemma3", JETPACK_7),
         ("tiny-gpt2", JETPACK_6), ("tiny-gemma2", JETPACK_7), ("tiny-qwen3", JETPACK_6), ("tiny-olmo2", JETPACK_7),
         ("tiny-bert", JETPACK_6), ("tiny-bert-classifier", JETPACK_7), ("tiny-sentence", JETPACK_6),
         ("tiny-distilbert", JETPACK_7)]  # fmt: skip
LENGTH = 512  # a short cache: tests write few bytes


def built(
    tmp_path: Path, source: str, target: str | tuple[str, ...], weights: str | None = "fp16", **options: Any
) -> BuildResult:
    given = {"max_seq_len": LENGTH, "method": "rtn", **options}
    return build(BuildOptions(f"sample:{source}", target, tmp_path / "m", weights, **given))


def graph_of(result: BuildResult, index: int = 0) -> ir.Model:
    return ir.load(result.path / result.manifest.variants[index].main.file)


def report_of(result: BuildResult, name: str = "jetson-orin") -> dict[str, Any]:
    found: dict[str, Any] = as_plain(result.report)["variants"][name]
    return found


def pairs(names: Iterable[str]) -> list[Any]:
    """Every model with every version, those that are not among `PAIRS` apart."""
    every = [(name, target) for name in names for target in (JETPACK_6, JETPACK_7)]
    return [each if each in PAIRS else pytest.param(*each, marks=pytest.mark.families) for each in every]


@pytest.mark.parametrize(("name", "target"), pairs(models.DECODERS))
def test_decoders(tmp_path: Path, name: str, target: str) -> None:
    """The half precision graph, run on the CPU: the report's own figures, and the operators that the version has."""
    result = built(tmp_path, name, target)
    found = as_plain(result.report)["fidelity"]
    assert found["tokens"] == LENGTH
    assert found["top1_agreement"] >= 0.98  # random weights: many logits nearly tie
    assert found["kl_divergence"] < 1e-3
    assert 0 < found["max_abs_diff"] < 0.2  # half precision it is
    assert "ONNX Runtime on the CPU" in found["executed"]
    assert unsupported(graph_of(result), "tensorrt", "10.3" if target == JETPACK_6 else "10.16") == []
    engine = result.manifest.variants[0].engine
    assert engine is not None
    assert (engine.cache_in_place, engine.cache_dtype, engine.plans) == (target == JETPACK_7, "float16", ())
    assert [profile.name for profile in engine.spec.profiles] == ["prefill", "decode"]
    if HAS_RTX:
        rehearsal = report_of(result)["rehearsal"]
        assert rehearsal["done"], rehearsal
        assert "rehearsal" in rehearsal["note"]
    assert json.loads((result.path / "report.json").read_text())["variants"]["jetson-orin"]["fidelity"] == found


@pytest.mark.parametrize(("name", "target"), pairs(models.ENCODERS))
def test_encoders(tmp_path: Path, name: str, target: str) -> None:
    result = built(tmp_path, name, target)
    assert as_plain(result.report)["fidelity"]["cosine_min"] > 0.9999
    assert unsupported(graph_of(result), "tensorrt", "10.3" if target == JETPACK_6 else "10.16") == []
    if HAS_RTX:
        assert report_of(result)["rehearsal"]["done"], report_of(result)


@pytest.mark.parametrize("target", [JETPACK_6, JETPACK_7])
def test_the_cache_carries_on_over_odd_chunks(tmp_path: Path, target: str) -> None:
    """The lowered graph, a run at a time as the runtime calls it, against transformers."""
    from leptonc.backends.tensorrt.execute import decoder_inputs, empty_cache, open_session

    result = built(tmp_path, "tiny-gemma3", target, check=False)  # sliding windows of 8
    session, (part,) = open_session(result.path / result.manifest.variants[0].main.file), result.manifest.parts
    ids = models.token_ids(101)
    want = models.reference_logits(models.reference("tiny-gemma3"), ids)
    cache, names, at = empty_cache(session, part), [value.name for value in session.get_outputs()], 0
    for count in (61, 1, 1, 7, 1, 30):
        found = session.run(None, {**decoder_inputs(part, ids[at : at + count], at, [count - 1, 0]), **cache})
        last, first = found[names.index("logits")][0]
        assert np.abs(last - want[at + count - 1]).max() < 0.05
        assert np.abs(first - want[at]).max() < 0.05
        cache = {name: found[names.index(name.replace("past_key_values", "present"))] for name in cache}
        at += count


@pytest.mark.parametrize("target", [JETPACK_6, JETPACK_7])
def test_a_shorter_cache_computes_the_same(tmp_path: Path, target: str) -> None:
    """What the check runs in the artifact's place; the artifact's own graph is run here."""
    from leptonc.backends.tensorrt.decoder import with_capacity
    from leptonc.backends.tensorrt.execute import logits_blocks

    result = built(tmp_path, "tiny-gemma3", target, check=False)
    path = result.path / result.manifest.variants[0].main.file
    ids = models.token_ids(70)
    short = result.path / "short.onnx"
    ir.save(with_capacity(ir.load(path), 70), short)
    assert {v.shape[2] for v in ir.load(short).graph.inputs if v.name.startswith("past_key")} == {70}  # type: ignore[index, union-attr]
    both = [[block for _, block in logits_blocks(each, result.manifest.parts[0], ids, 33)] for each in (path, short)]
    assert all(np.array_equal(a, b) for a, b in zip(*both, strict=True))


def rounded(weight: np.ndarray[Any, Any], bits: int, size: int) -> np.ndarray[Any, Any]:
    """What the codes of a weight [out, in] stand for, in float64: the end of the codes that is further out is used."""
    half = 2 ** (bits - 1)
    blocks = weight.astype(np.float64).reshape(len(weight), -1, size)
    low, high = -blocks.min(-1, keepdims=True), blocks.max(-1, keepdims=True)
    scales = np.where(low >= high, low / half, high / (half - 1)).astype(np.float16).astype(np.float64)
    codes = np.clip(np.rint(blocks / np.maximum(scales, 1e-30)), -half, half - 1)
    return (codes * scales).reshape(weight.shape)


def has_forms(model: ir.Model, weights: str, size: int) -> None:
    """Signed codes, zero points that are zero, scales above zero; a scale an output channel, or blocks of a size."""
    nodes = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    assert len(nodes) in (3 * 7, 3 * 6)  # the head is tied to the embedding and stays
    for node in nodes:
        codes, scales, zeros = (value.const_value for value in node.inputs if value is not None)
        assert codes is not None and scales is not None and zeros is not None  # noqa: PT018
        assert codes.dtype == zeros.dtype == ir.DataType[weights.upper()]
        assert (scales.numpy() > 0).all()
        assert not zeros.numpy().any()
        assert scales.shape == ((codes.shape[0], codes.shape[1] // size) if weights == "int4" else (codes.shape[0],))


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("target", ["rtx-30", JETPACK_6, JETPACK_7])
def test_quantized_weights_have_the_quality_of_their_codes(tmp_path: Path, target: str, weights: str) -> None:
    """The lowered graph beside the original with its weights rounded by hand; and TensorRT builds it."""
    import torch

    from leptonc.backends.tensorrt.execute import logits_blocks
    from leptonc.evaluate.fidelity import compare_logits

    if target == "rtx-30" and not HAS_RTX:
        pytest.skip("TensorRT-RTX (the extra rtx) is not installed")
    result = built(tmp_path, "tiny-llama", target, weights)
    name = result.manifest.variants[0].name
    size = 32 if target == "rtx-30" else 64
    has_forms(graph_of(result), weights, size)
    about, ids = report_of(result, name), models.token_ids(200)
    model = copy.deepcopy(models.reference("tiny-llama"))
    exact = models.reference_logits(model, ids)
    kept, bits = about["kept_in_half_precision"], int(weights[3:])
    assert bool(kept) == (weights == "int4" and size == 64)  # blocks of 64 do not divide 160 inputs
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and path.startswith("model.layers.") and path not in kept:
            own = module.weight.detach().numpy()
            with torch.no_grad():
                module.weight.copy_(torch.from_numpy(rounded(own, bits, size if bits == 4 else own.shape[1])))
    by_hand = models.reference_logits(model, ids)
    graph = result.path / result.manifest.variants[0].main.file
    found = np.concatenate([block for _, block in logits_blocks(graph, result.manifest.parts[0], ids, 200)])
    beside = compare_logits([(0, by_hand)], [(0, found)], ids)
    assert (beside.kl_divergence or 0.0) < 1e-4
    assert (beside.max_abs_diff or 0.0) < 0.1  # half precision
    lost = [compare_logits([(0, exact)], [(0, each)], ids).kl_divergence for each in (by_hand, found)]
    assert lost[1] == pytest.approx(lost[0], rel=0.05 if bits == 4 else 0.3)
    if HAS_RTX:
        assert about["engine"]["built"] if target == "rtx-30" else about["rehearsal"]["done"]


@needs_rtx
@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("tiny-gemma2", "fp32"),
        ("tiny-gemma2", "int4"),
        ("tiny-bert-classifier", "fp16"),
        ("tiny-bert-classifier", "int8"),
    ],
)
def test_plans_for_rtx(tmp_path: Path, name: str, weights: str) -> None:
    result = built(tmp_path, name, "rtx-30", weights, check=False)
    (variant,) = runtime_edge.verify(result.path).variants
    assert variant.engine is not None
    (plan,) = variant.engine.plans
    assert (result.path / plan.file).stat().st_size > 10_000
    assert plan.compute_capabilities == ("8.6",)
    assert plan.version == result.manifest.toolchain["tensorrt-rtx"]
    assert report_of(result, "rtx-30")["engine"]["layers"] > 50


@needs_rtx
def test_float8_from_ada_on(tmp_path: Path) -> None:
    result = built(tmp_path, "tiny-llama", "rtx-40", "fp8")
    nodes = [node for node in graph_of(result).graph if node.op_type == "DequantizeLinear"]
    assert len(nodes) == 3 * 7
    assert {node.inputs[0].dtype for node in nodes} == {ir.DataType.FLOAT8E4M3FN}  # type: ignore[union-attr]
    assert 0.7 < as_plain(result.report)["fidelity"]["top1_agreement"] < 1
    engine = result.manifest.variants[0].engine
    assert engine is not None
    assert engine.plans[0].compute_capabilities == ("8.9",)
    (tmp_path / "other").mkdir()
    error = refused(tmp_path / "other", "rtx-30", "fp8")
    assert "expected weights among fp32, fp16, int8, int4 for target rtx-30, found fp8" in error.message


@needs_rtx
@pytest.mark.parametrize("weights", ["fp16", "int4"])
def test_one_plan_for_several_capabilities(tmp_path: Path, weights: str) -> None:
    result = built(tmp_path, "tiny-llama", "rtx,compute_capabilities=8.0+8.6+8.9+12.0", weights, check=False)
    engine = result.manifest.variants[0].engine
    assert engine is not None
    assert engine.plans[0].compute_capabilities == ("8.0", "8.6", "8.9", "12.0")


@needs_rtx
def test_a_family_s_capability_that_cannot_run_the_scheme_is_left_out_and_told(tmp_path: Path) -> None:
    result = built(tmp_path, "tiny-llama", "rtx", "int4", check=False)
    engine = result.manifest.variants[0].engine
    assert engine is not None
    assert "7.5" not in engine.spec.compute_capabilities
    assert "8.6" in engine.spec.compute_capabilities
    assert report_of(result, "rtx")["left_out"] == "compute capabilities 7.5: they cannot run int4 weights"


def refused(tmp_path: Path, target: str, weights: str, source: str = "tiny-llama", **options: Any) -> LeptonError:
    with pytest.raises(LeptonError) as caught:
        built(tmp_path, source, target, weights, **options)
    assert list(tmp_path.iterdir()) == []
    assert caught.value.hint
    return caught.value


def test_what_a_gpu_cannot_do_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    error = refused(tmp_path, "rtx,compute_capabilities=7.5+8.6", "int4", "none-such")
    assert isinstance(error, InputError)
    assert error.message == "TensorRT-RTX: expected a compute capability of 8.0 or more for int4, found 7.5"
    assert "expected weights among" in refused(tmp_path, "rtx-20", "int4").message
    error = refused(tmp_path, "rtx,compute_capabilities=8.7", "fp16")
    assert "found 8.7" in error.message
    assert "jetson-orin" in (error.hint or "")
    error = refused(tmp_path, JETPACK_6, "int4", block_size=32)
    assert error.message == "TensorRT: expected int4 weights in blocks of 64 and 128, found 32"
    assert "--block-size 64" in (error.hint or "")
    assert "symmetric" in refused(tmp_path, JETPACK_7, "int4", symmetric=False).message


def test_a_model_that_does_not_fit_is_refused_with_the_length_that_does() -> None:
    target = targets.load("jetson-orin-nano-4gb")
    need = Need(weights=10**9, read=8 * 10**8, token=10**5, workspace=10**8, length=20_000)
    with pytest.raises(InputError) as caught:
        check(need, target)
    assert caught.value.message == (
        "expected weights, cache and workspace within the 2.5 GB that jetson-orin-nano-4gb leaves a model (4 GB less "
        "1.5 for the system), found 1.00 + 2.00 + 0.10 GB at 20000 tokens"
    )
    assert caught.value.hint == "at most 14000 tokens fit: --max-seq-len 14000"
    with pytest.raises(InputError) as caught:
        check(dataclasses.replace(need, weights=3 * 10**9), target)
    assert "--weights int4" in (caught.value.hint or "")
    found = check(dataclasses.replace(need, length=14_000), target)
    assert found.longest_that_fits == 14_000
    assert found.decode_tokens_per_s_at_most == 34e9 / 8e8
    assert check(need, targets.load("jetson-orin")).memory_mb is None


def test_the_preflight_of_a_build(tmp_path: Path) -> None:
    result = built(tmp_path, "tiny-llama", "jetson-orin-nano-8gb", check=False)
    found = report_of(result, "jetson-orin-nano-8gb")["preflight"]
    assert found["memory_mb"] == 6500
    assert found["cache_mb"] == round(3 * 2 * 2 * 16 * 2 * LENGTH * 2 / 1e6, 1)  # two copies: JetPack 6.2
    assert found["decode_tokens_per_s_at_most"] > 1000
    assert found["longest_that_fits"] > LENGTH
    assert found["weights_mb"] < 1
    options = {"weights": "auto:1MB", "method": "rtn", "check": False}
    spent = build(BuildOptions("sample:tiny-llama", "jetson-orin-nano-8gb", tmp_path / "b", **options))  # type: ignore[arg-type]
    assert report_of(spent, "jetson-orin-nano-8gb")["preflight"]["weights_mb"] >= 1  # a budget counts as spent


def test_two_builds_give_the_same_graph(tmp_path: Path) -> None:
    """And the same blobs and spec; a plan is no function of them alone."""
    both = []
    for name in ("a", "b"):
        options = BuildOptions("sample:tiny-gemma3", (JETPACK_6, JETPACK_7), tmp_path / name, "int4", check=False)
        result = build(options)
        both.append(result)
    files = [{f.path: f.sha256 for f in r.manifest.files if not f.path.startswith("report.")} for r in both]
    assert files[0] == files[1]
    assert both[0].manifest.variants == both[1].manifest.variants


def test_several_targets_share_what_is_equal(tmp_path: Path) -> None:
    result = built(tmp_path, "tiny-llama", ("cpu", "cpu-arm64", JETPACK_7), None, check=False)
    cpu, arm, jetson = result.manifest.variants
    assert [v.name for v in (cpu, arm, jetson)] == ["cpu", "cpu-arm64", "jetson-orin"]
    assert cpu.blobs == arm.blobs
    assert set(as_plain(result.report)["operations"]) == {"captured", "cpu", "cpu-arm64", "jetson-orin"}
    with runtime_edge.load(result.path, backend="onnxruntime") as model:
        assert model.variant.name == "cpu"
        assert len(model.generate("a b c", max_new_tokens=3).token_ids) == 3


def test_variants_of_one_profile_are_told_apart(tmp_path: Path) -> None:
    result = built(tmp_path, "tiny-llama", (JETPACK_6, JETPACK_7), check=False)
    assert [v.name for v in result.manifest.variants] == ["jetson-orin-jetpack-6.2", "jetson-orin-jetpack-7.2"]
    assert [v.target for v in result.manifest.variants] == [JETPACK_6, JETPACK_7]
    with pytest.raises(InputError, match="expected each target once, found cpu twice"):
        build(BuildOptions("sample:tiny-llama", ("cpu", "cpu")))


def test_a_bound_on_loss_names_the_variant(tmp_path: Path) -> None:
    with pytest.raises(BoundError, match="for jetson-orin"):
        built(tmp_path, "tiny-llama", (JETPACK_7, "cpu"), "int4", max_loss=-90)
    assert list(tmp_path.iterdir()) == []
