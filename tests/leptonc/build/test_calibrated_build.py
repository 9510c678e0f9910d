"""Builds with GPTQ: what they change, and requests that cannot be met."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import runtime_edge
from leptonc.build.recipe import with_recipe
from leptonc.build.steps import spend_budget
from leptonc.build.to_artifact import BuildResult, build
from leptonc.errors import BoundError, InputError
from leptonc.options import BuildOptions
from leptonc.report import as_plain


@pytest.mark.parametrize("source", ["sample:tiny-llama", "sample:tiny-bert-classifier"])
def test_gptq_runs_and_says_what_it_looked_at(source: str, text: Path, tmp_path: Path) -> None:
    options = {"weights": "int4", "symmetric": False, "embeddings": "int8"}
    plain = build(BuildOptions(source, out=tmp_path / "a", **options))  # type: ignore[arg-type]
    solved = build(BuildOptions(source, out=tmp_path / "b", method="gptq", calibration=text, **options))  # type: ignore[arg-type]
    about = as_plain(solved.report)["variants"]["cpu"]["quantization"]
    assert about["method"] == "gptq"
    assert about["calibration"]["text"] == "text.txt"
    assert all(0 <= each["error"] < 0.1 for each in about["linears"])
    assert about["linears"]
    assert as_plain(solved.report)["bytes"]["weights"] == as_plain(plain.report)["bytes"]["weights"]
    assert not [p for p in solved.path.rglob("*") if p.name.startswith(".")]
    runtime_edge.verify(solved.path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "auto:many"}, "expected weights auto:SIZE, found auto:many"),
        ({"weights": "auto:1MB", "target": "rtx-20"}, "found rtx-20 without int8 and int4"),
        ({"weights": "auto:1MB", "target": "rtx", "embeddings": "int8"}, "expected no format for embeddings"),
        ({"calibration": True, "fast": True}, "found .*text.txt and none of them"),
        ({"method": "gptq", "fast": True}, "expected no method with --fast, which rounds to nearest, found gptq"),
        ({"method": "gptq", "calibration": True, "weights": "fp32"}, "found fp32"),
        ({"embeddings": "int8", "weights": "fp32"}, "found fp32"),
        ({"method": "gptq", "calibration": True, "target": "rtx", "weights": "fp16"}, "expected weights int8 or int4"),
    ],
)
def test_requests_that_cannot_be_met(changes: dict[str, object], message: str, text: Path, tmp_path: Path) -> None:
    wanted = {"weights": "int4", **changes, **({"calibration": text} if "calibration" in changes else {})}
    with pytest.raises(InputError, match=message):
        build(BuildOptions("sample:tiny-llama", out=tmp_path / "a", **wanted))  # type: ignore[arg-type]
    assert not (tmp_path / "a").exists()


def test_awq_scales_channels_and_says_so(text: Path, tmp_path: Path) -> None:
    options = {"weights": "int4", "symmetric": False, "eval_text": text}
    plain = build(BuildOptions("sample:tiny-llama", out=tmp_path / "a", fast=True, **options))  # type: ignore[arg-type]
    scaled = build(BuildOptions("sample:tiny-llama", out=tmp_path / "b", method="awq", calibration=text, **options))  # type: ignore[arg-type]
    about = as_plain(scaled.report)["variants"]["cpu"]["quantization"]
    assert about["method"] == "awq"
    assert about["scaling"]
    assert all(each["error"] < each["unscaled"] for each in about["scaling"])
    assert [each.name for each in scaled.manifest.passes[:2]] == ["smooth-linears", "quantize-weights"]
    kl = [as_plain(each.report)["fidelity"]["kl_divergence"] for each in (scaled, plain)]
    assert kl[0] < kl[1]
    assert as_plain(scaled.report)["bytes"]["weights"] == as_plain(plain.report)["bytes"]["weights"]


def test_chats_are_read_as_the_runtime_writes_them(tmp_path: Path) -> None:
    """A text with --chat, and the same as a conversation, are the very tokens of a prompt with that message."""
    text = "Which valve closes first? " * 20
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}), encoding="utf-8")
    talk = {"messages": [{"role": "user", "content": text}]}
    (tmp_path / "b.jsonl").write_text(json.dumps(talk), encoding="utf-8")
    common = {"weights": "int4", "method": "gptq", "check": False}
    plain, chat, given = (
        build(BuildOptions("sample:tiny-llama", out=tmp_path / name, calibration=tmp_path / file, chat=flag, **common))  # type: ignore[arg-type]
        for name, file, flag in (("p", "a.jsonl", False), ("c", "a.jsonl", True), ("g", "b.jsonl", False))
    )
    tokens = [
        as_plain(made.report)["variants"]["cpu"]["quantization"]["calibration"]["tokens"]
        for made in (plain, chat, given)
    ]
    with runtime_edge.load(plain.path) as model:
        assert tokens[1] == tokens[2] == len(model.tokenize(talk["messages"]))
    assert tokens[0] < tokens[1]
    assert [file.sha256 for file in chat.manifest.files if file.path.startswith("blobs/")] == [
        file.sha256 for file in given.manifest.files if file.path.startswith("blobs/")
    ]
    for source, changes, message in (
        ("tiny-llama", {"chat": True, "calibration": None}, "expected a calibration text with --chat"),
        ("tiny-llama", {"method": "awq", "weights": "int8", "activations": "int8"}, "expected method rtn or gptq"),
        ("tiny-bert", {"chat": True, "calibration": tmp_path / "a.jsonl"}, "expected a model with a chat template"),
    ):
        with pytest.raises(InputError, match=message):
            build(BuildOptions(f"sample:{source}", out=tmp_path / "x", **{**common, **changes}))  # type: ignore[arg-type]


def test_a_tiny_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.txt"
    path.write_text("Hello.", encoding="utf-8")
    with pytest.raises(InputError, match="at least 64 tokens"):
        build(BuildOptions("sample:tiny-llama", out=tmp_path / "a", weights="int4", method="gptq", calibration=path))
    assert not (tmp_path / "a").exists()


def test_a_model_writes_its_own_text(tmp_path: Path) -> None:
    found = [
        build(BuildOptions("sample:tiny-llama", out=tmp_path / str(i), weights="int4", method="gptq", seed=seed))
        for i, seed in enumerate((3, 3, 4))
    ]
    about = as_plain(found[0].report)["variants"]["cpu"]["quantization"]["calibration"]
    assert about == {"text": "written by the model, seed 3, and built-in", "samples": 32, "tokens": 32 * 512}
    blobs = [sorted(file.path for file in each.manifest.files if file.path.startswith("blobs/")) for each in found]
    assert blobs[0] == blobs[1] != blobs[2]


def test_an_encoder_has_a_text_of_ours(tmp_path: Path) -> None:
    source = "sample:tiny-bert-classifier"
    result = build(BuildOptions(source, out=tmp_path / "a", weights="int4", method="gptq"))
    about = as_plain(result.report)["variants"]["cpu"]["quantization"]["calibration"]
    assert about["text"] == "built-in"
    assert about["samples"] == 64


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("sample:tiny-llama", "cpu"),
        ("sample:tiny-gemma3", "cpu"),
        ("sample:tiny-bert-classifier", "cpu"),
        ("sample:tiny-llama", "rtx"),
        ("sample:tiny-bert-classifier", "jetson-orin"),
    ],
)
def test_a_budget_is_kept_and_spent_on_what_matters(source: str, target: str, text: Path, tmp_path: Path) -> None:
    def size(result: BuildResult) -> int:
        return int(as_plain(result.report)["bytes"]["weights"] + as_plain(result.report)["bytes"]["graph"])

    plain = {"target": target, "weights": "int4", "fast": True}
    plain |= {"symmetric": False, "embeddings": "int8"} if target == "cpu" else {}
    lowest = build(BuildOptions(source, out=tmp_path / "least", **plain))  # type: ignore[arg-type]
    budget = size(lowest) + 16_000
    wanted = f"auto:{budget / 1000:.3f}kB"
    result = build(BuildOptions(source, target=target, out=tmp_path / "a", weights=wanted, calibration=text))
    assert budget - 8_000 < size(result) <= budget
    about = as_plain(result.report)["variants"][target]["quantization"]
    measure = "kl_divergence" if "kl_divergence" in as_plain(result.report)["fidelity"] else "mean_abs_diff"
    assert as_plain(result.report)["fidelity"][measure] < as_plain(lowest.report)["fidelity"][measure]
    bits = {each["path"]: each["bits"] for each in about["sensitivity"]}
    # With a tied head an embedding is one of what is chosen among, where there is a format for it.
    table = [path for path in bits if path.endswith(("embed_tokens", "word_embeddings"))]
    assert len(table) == (target == "cpu")
    if table:
        assert about["budget"]["embeddings"] == f"int{bits[table[0]]}"
    raised = sorted(path for path, found in bits.items() if found == 8 and path not in table)
    (record,) = (each for each in result.manifest.passes if each.name == "quantize-weights")
    assert sorted(path for each in record.config["layers"] for path in each["paths"]) == raised
    assert 0 < len(raised) < len(bits)
    assert result.manifest.variants[0].weights == f"int4, {len(raised)} layers int8"
    assert about["method"] == "gptq"
    runtime_edge.verify(result.path)


def test_a_budget_is_kept_where_more_nodes_are_made_than_reckoned_with(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def size_of(*args: Any) -> int:
        sizes.append(known(*args))
        return sizes[-1]

    known = spend_budget.size_of
    monkeypatch.setattr(spend_budget, "size_of", size_of)
    monkeypatch.setattr(spend_budget, "NODES", -600)
    options = {"prefill": "shared", "calibration": text, "embeddings": "int4"}
    result = build(BuildOptions("sample:tiny-llama", out=tmp_path / "a", weights="auto:260kB", **options))  # type: ignore[arg-type]
    assert max(sizes) > 260_000 >= sizes[-1]
    variant = result.manifest.variants[0]
    parts = {part for _, part in variant.references}
    assert sum(each.size for each in result.manifest.files if each.path in parts) <= 260_000
    assert "layers int8" in variant.weights


def test_a_budget_below_the_least_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BoundError, match=r"at most 100,000 bytes, found .* with all weights in 4 bits"):
        build(BuildOptions("sample:tiny-llama", out=tmp_path / "a", weights="auto:100kB", method="rtn"))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("size", ["1KB", "1kB", "0.02MB"])
def test_a_budget_that_codes_alone_exceed_is_refused_before_anything_is_measured(
    size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leptonc.build.engine.ArtifactWriter", None)  # what comes next
    with pytest.raises(BoundError, match=r"expected a budget that weights of 4 bits fit, found .* codes of 80,896"):
        build(BuildOptions("sample:tiny-llama", out=tmp_path / "a", weights=f"auto:{size}"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("short_windows")
def test_the_text_of_many_kinds_is_named_in_a_files_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the command line, and in a recipe, whose files lie beside it."""
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {"weights": "int4", "method": "gptq", "check": False}
    result = build(BuildOptions("sample:tiny-llama", out=tmp_path / "a", calibration=Path("built-in"), **given))
    about = as_plain(result.report)["variants"]["cpu"]["quantization"]["calibration"]
    assert about == {"text": "built-in", "samples": 32, "tokens": 32 * 128}
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "r.toml").write_text('weights = "int4"\nmethod = "gptq"\ncalibration = "built-in"\n')
    options = with_recipe(BuildOptions("sample:tiny-llama", out=tmp_path / "b", check=False), "far/r.toml")
    again = build(options)
    assert [file.sha256 for file in again.manifest.files if file.path.startswith("blobs/")] == [
        file.sha256 for file in result.manifest.files if file.path.startswith("blobs/")
    ]
