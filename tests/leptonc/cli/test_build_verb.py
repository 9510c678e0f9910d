"""`leptonc build`: what it asks of the compiler, and what it says."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import leptonc.build.to_artifact as compiler
import runtime_edge
from leptonc.options import kinds_of, options_of
from leptonc.report import Report, as_plain
from leptonc.report.quality import Fidelity
from leptonc.report.quantization import Budget, Quantization
from leptonc.report.section import CalibrationText
from leptonc.report.variant import Prefill, Preflight, VariantReport

SOURCE = "sample:tiny-llama"
PREFLIGHT = Preflight(weights_mb=1.5, cache_mb=0.5, workspace_mb=0.25)
VARIANTS = {"cpu": VariantReport(fidelity=Fidelity(max_abs_diff=0.5), preflight=PREFLIGHT)}
REPORT = Report(variants=VARIANTS)
TARGET = "cpu, onnxruntime, weights fp32"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tiny_artifact: Path) -> list[compiler.BuildOptions]:
    """Replaces the compiler; what it was asked for is appended."""
    calls: list[compiler.BuildOptions] = []

    def build(options: compiler.BuildOptions, progress: compiler.Progress | None = None) -> compiler.BuildResult:
        calls.append(options)
        assert progress is not None
        with progress.stage("one", 2) as advance:
            advance(1)
        manifest = runtime_edge.verify(tiny_artifact)
        return compiler.BuildResult(Path("made.lepton"), manifest, REPORT, {"one": 1.25}, total_seconds=1.25)

    monkeypatch.setattr(compiler, "build", build)
    return calls


def test_defaults_are_those_of_the_compiler(leptonc: Callable[..., Any], asked: list[compiler.BuildOptions]) -> None:
    assert leptonc("build", SOURCE).code == 0
    assert asked == [compiler.BuildOptions(SOURCE)]


TEXTS: dict[str, tuple[str, Any]] = {  # what is typed for a type, and what arrives
    "str": ("latency:20%", "latency:20%"), "Path": ("some/file", Path("some/file")), "int": ("7", 7),
    "float": ("1.5", 1.5),
}  # fmt: skip


def test_every_option_arrives(leptonc: Callable[..., Any], asked: list[compiler.BuildOptions]) -> None:
    kinds, arguments, expected = kinds_of(compiler.BuildOptions), [], {}
    for field in dataclasses.fields(compiler.BuildOptions):
        option = options_of(compiler.BuildOptions)[field.name]
        if not option.in_command or field.name == "check":
            continue
        flag = option.flags[-1] if option.flags else f"--{field.name.replace('_', '-')}"
        if kinds[field.name] == "bool":
            arguments.append(flag.split("/")[-1])
            expected[field.name] = "/" not in flag
            continue
        text, value = TEXTS[kinds[field.name]]
        if field.name == "target":
            text = value = "cpu-arm64,memory_gb=4"
        elif option.choices:
            text, value = str(option.choices[0]), option.choices[0]
        arguments += [flag, text]
        expected[field.name] = value
    assert leptonc("build", SOURCE, *arguments).code == 0
    assert asked == [compiler.BuildOptions(SOURCE, **expected)]
    assert leptonc("build", SOURCE, "--no-check").code == 0
    assert asked[1].check is False
    assert leptonc("build", SOURCE, "--max-loss", "2.5%", "--weights", "auto:9MB").code == 0
    assert (asked[2].max_loss, asked[2].weights) == (2.5, "auto:9MB")
    fields = {field.name for field in dataclasses.fields(compiler.BuildOptions)}
    assert fields == {"source", "check", "layers", *expected}  # layers are a recipe's


@pytest.mark.usefixtures("asked")
def test_what_a_person_sees(leptonc: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leptonc.cli.better.better", lambda result, options: ["a text of your own"])
    done = leptonc("build", SOURCE)
    rows = dict(line.strip().split("  ", 1) for line in done.out.splitlines())
    assert re.fullmatch(r" +[\d,]+\.\d MB at most", rows.pop("memory"))
    assert {key: value.strip() for key, value in rows.items()} == {
        "artifact": "made.lepton",
        "size": "0.4 MB",
        "target": TARGET,
        "preflight": "weights mb 1.5, cache mb 0.5, workspace mb 0.25",
        "max abs diff": "0.5",
        "time": "1.2 s",
        "better": "a text of your own",
    }
    assert done.err.startswith("one: 0.")


@pytest.mark.usefixtures("asked")
def test_the_size_that_was_asked_for_and_the_loss_are_side_by_side(
    leptonc: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(bytes=92_000_000, least=80_000_000, spent=11_500_000)
    fidelity = Fidelity(perplexity=30.6, perplexity_reference=30.0)
    monkeypatch.setitem(VARIANTS, "cpu", VariantReport(quantization=Quantization(budget=budget), fidelity=fidelity))
    lines = [line.strip() for line in leptonc("build", SOURCE).out.splitlines()]
    at = next(at for at, line in enumerate(lines) if line.startswith("budget"))
    assert re.sub(" +", " ", lines[at]) == (
        "budget 99.5% of the 92,000,000 bytes asked for: 91,500,000 of weights and graph"
    )
    assert re.sub(" +", " ", lines[at + 1]) == "loss perplexity rises by 2.00 %"


@pytest.mark.usefixtures("asked")
def test_the_loss_is_told_without_a_budget_too(leptonc: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fidelity = Fidelity(perplexity=30.6, perplexity_reference=30.0)
    monkeypatch.setitem(VARIANTS, "cpu", VariantReport(fidelity=fidelity))
    lines = [re.sub(" +", " ", line.strip()) for line in leptonc("build", SOURCE).out.splitlines()]
    assert lines[lines.index("perplexity reference 30.0") - 1] == "loss perplexity rises by 2.00 %"


@pytest.mark.usefixtures("asked")
def test_prompts_stand_beside_what_decodes(leptonc: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = Prefill(
        weights="int8", calibration=CalibrationText(text="t", samples=1, tokens=1),
        fidelity=Fidelity(kl_divergence=0.25, perplexity=20.5, tokens=512),
    )  # fmt: skip
    about = VariantReport(fidelity=Fidelity(kl_divergence=0.125, perplexity=19.5), prefill=prompts)
    monkeypatch.setitem(VARIANTS, "cpu", about)
    rows = [line.strip().split("  ", 1) for line in leptonc("build", SOURCE).out.splitlines()]
    found = [(name, value.strip()) for name, value in rows]
    measured = [("kl divergence", "0.125"), ("perplexity", "19.5")]
    measured += [("prompts: kl divergence", "0.25"), ("prompts: perplexity", "20.5")]
    at = found.index(measured[0])
    assert found[at : at + 4] == measured
    assert found[at + 4][0] == "time"


@pytest.mark.usefixtures("asked")
def test_what_a_program_sees(leptonc: Callable[..., Any]) -> None:
    found = json.loads(leptonc("build", SOURCE, "--json").out)
    assert found["path"] == "made.lepton"
    assert found["manifest"]["name"] == "tiny"
    assert found["report"] == as_plain(REPORT)
    assert found["seconds"] == {"one": 1.25}


def test_a_build_from_end_to_end(leptonc: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "m.lepton"
    done = leptonc("build", SOURCE, "--weights", "fp32", "-o", out, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["path"] == str(out)
    assert found["report"]["fidelity"]["max_abs_diff"] < 1e-3
    assert leptonc("verify", out).out.startswith("tiny-llama: ok, ")
    assert leptonc("run", out, "hello", "--raw", "--max-new-tokens", "4").code == 0
    again = leptonc("build", SOURCE, "-o", out)
    assert (again.code, again.out) == (1, "")
    assert str(out) in again.err
    assert "--force" in again.err
    assert leptonc("verify", out).code == 0  # and it is still there
    assert leptonc("build", SOURCE, "--weights", "int8", "-o", out, "--force", "--no-check").code == 0
    assert "weights int8" in leptonc("inspect", out).out
    assert [path.name for path in tmp_path.iterdir()] == ["m.lepton"]


def test_a_bound_that_is_not_met(leptonc: Callable[..., Any], tmp_path: Path) -> None:
    done = leptonc("build", "sample:tiny-sentence", "--weights", "int4", "--max-loss", "0", "-o", tmp_path / "m.lepton")
    assert (done.code, done.out) == (3, "")
    assert "error: " in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", ["sample:tiny-lama", "/nowhere/at/all", "./nowhere.gguf"])
def test_sources_that_are_none(leptonc: Callable[..., Any], tmp_path: Path, source: str) -> None:
    done = leptonc("build", source, "-o", tmp_path / "m.lepton")
    assert (done.code, done.out) == (1, "")
    assert source.removeprefix("sample:") in done.err
    assert "hint: " in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_text_to_measure_on_that_is_none(leptonc: Callable[..., Any], tmp_path: Path) -> None:
    done = leptonc("build", SOURCE, "--eval-text", tmp_path / "none.txt", "-o", tmp_path / "m.lepton")
    assert (done.code, done.out) == (1, "")
    assert "none.txt" in done.err
    assert list(tmp_path.iterdir()) == []
