"""Builds with --heal: what they store and report, interruption and resumption, and requests that cannot be met."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import runtime_edge
from leptonc.build import memory_bound
from leptonc.build.to_artifact import BuildResult, build
from leptonc.calibrate.texts import built_in_texts
from leptonc.errors import InputError, MissingExtraError
from leptonc.heal import distill
from leptonc.options import BuildOptions
from leptonc.report import as_plain

pytestmark = pytest.mark.usefixtures("short_windows")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(built_in_texts()), encoding="utf-8")
    return path


def built(out: Path, text: Path | None, **options: Any) -> BuildResult:
    given = {"weights": "int4", "method": "rtn", "calibration": text, "max_seq_len": 64, "check": False, **options}
    return build(BuildOptions(given.pop("source", "sample:tiny-llama"), out=out, **given))


def blobs(result: BuildResult) -> list[str]:
    return sorted(file.path for file in result.manifest.files if file.path.startswith("blobs/"))


@pytest.mark.parametrize("source", ["sample:tiny-llama", "sample:tiny-bert-classifier"])
def test_a_healed_build_has_its_size_and_says_what_it_learned(source: str, text: Path, tmp_path: Path) -> None:
    healed = built(tmp_path / "b", text, source=source, heal="12steps")
    again = built(tmp_path / "c", text, source=source, heal="12steps")
    plain = built(tmp_path / "a", None, source=source)
    assert as_plain(healed.report)["bytes"]["weights"] == as_plain(plain.report)["bytes"]["weights"]
    assert blobs(healed) == blobs(again) != blobs(plain)
    about = as_plain(healed.report)["variants"]["cpu"]["recovery"]
    assert (about["steps"], about["text"]) == (12, "text.txt")
    assert about["held_out"] >= 1
    before, after = (next(iter(about[when].values())) for when in ("before", "after"))
    assert 0 < after < before
    (record,) = (each for each in healed.manifest.passes if each.name == "heal")
    assert record.config == {"budget": "12steps", "seed": 0}
    runtime_edge.verify(healed.path)


def test_of_a_file_there_is_more_to_learn_from_than_statistics_need(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("\n".join(built_in_texts() * 20), encoding="utf-8")
    result = built(tmp_path / "m", path, heal="40steps", max_seq_len=24, method="gptq")
    about = as_plain(result.report)["variants"]["cpu"]
    assert about["quantization"]["calibration"]["samples"] == 32
    assert (about["recovery"]["learned_from"], about["recovery"]["held_out"]) == (40, 8)


def test_an_interrupted_build_leaves_its_state_and_goes_on(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"heal": "8steps", "resume": tmp_path / "kept"}
    whole = built(tmp_path / "a", text, heal="8steps")
    plain, taken = distill.Learner.step, [0]

    def step(self: Any, *arguments: Any) -> float:
        taken[0] += 1
        if taken[0] == 5:
            raise KeyboardInterrupt
        return plain(self, *arguments)

    monkeypatch.setattr(distill.Learner, "step", step)
    with pytest.raises(KeyboardInterrupt):
        built(tmp_path / "b", text, **options)
    assert not (tmp_path / "b").exists()
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["heal-cpu.safetensors"]
    resumed = built(tmp_path / "b", text, **options)
    assert taken[0] == 5 + 4
    assert blobs(resumed) == blobs(whole)
    assert not list((tmp_path / "kept").iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heal": "0"}, "expected a time or a number of steps for healing, found '0'"),
        ({"heal": "soon"}, "found 'soon'"),
        ({"heal": "1s", "weights": "fp32", "prune": "20%", "heal_rank": "0"}, "from 1 to 1024, or full, found '0'"),
        ({"heal": "1s", "weights": "fp32", "prune": "20%", "heal_rank": "1.5"}, "or full, found '1.5'"),
        ({"heal": "1s", "prune": "20%", "heal_rank": "4"}, "of a model in float32 with --heal-rank"),
        ({"weights": "fp32", "prune": "20%", "heal_rank": "full"}, "expected --heal and --prune"),
        ({"heal": "1s", "weights": "fp32"}, "found fp32, which has lost nothing"),
        ({"heal": "1s", "weights": "int8", "activations": "int8"}, "with --heal, found activations int8"),
        ({"heal": "1s", "target": "rtx"}, "expected no --heal for target rtx"),
        ({"heal": "1s", "calibration": "The valves close. " * 20}, "expected at least 2 windows"),
        ({"resume": True, "weights": "int8"}, "expected --prune, --heal or a calibration with --resume"),
        ({"heal": "1s", "resume": True}, "expected a directory for --resume, found a file"),
    ],
)
def test_requests_that_cannot_be_met(changes: dict[str, Any], message: str, text: Path, tmp_path: Path) -> None:
    given = {"calibration": None, **changes, **({"resume": text} if "resume" in changes else {})}
    if given["calibration"]:
        text.write_text(given["calibration"], encoding="utf-8")
        given |= {"calibration": text, "max_seq_len": 512}
    with pytest.raises(InputError, match=message):
        built(tmp_path / "a", text, **given)
    assert not (tmp_path / "a").exists()


def test_without_torch_it_says_what_to_install(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match="--heal needs the package `torch`") as error:
        built(tmp_path / "a", text, heal="1s")
    assert "[compiler]" in str(error.value.hint)


def test_the_command_line_shows_how_it_goes(leptonc: Any, text: Path, tmp_path: Path) -> None:
    outcome = leptonc(
        "build", "sample:tiny-llama", "-o", tmp_path / "m", "--weights", "int4", "--calibration", text, "--heal",
        "5steps", "--no-check",
    )  # fmt: skip
    assert outcome.code == 0
    assert "heal: step 5" in outcome.err
    assert "recovery" in outcome.out


@pytest.mark.parametrize("rank", [None, "3", "full"])
def test_a_pruned_model_in_float32_recovers(rank: str | None, text: Path, tmp_path: Path) -> None:
    """From the original as it was before anything was cut out, through low-rank terms that are folded in."""
    options = {"weights": "fp32", "prune": "30%", "prune_method": "magnitude", "prune_compensation": "none"}
    plain = built(tmp_path / "a", None, **options)  # which reads no text
    healed = built(tmp_path / "b", text, **options, heal="20steps", heal_rank=rank)
    about = as_plain(healed.report)["variants"]["cpu"]["recovery"]
    assert about["rank"] == {None: 16, "3": 3, "full": "full"}[rank]
    assert about["after"]["kl_divergence"] < 0.98 * about["before"]["kl_divergence"]
    assert as_plain(healed.report)["bytes"] == as_plain(plain.report)["bytes"]
    runtime_edge.verify(healed.path)


def test_a_bound_on_memory_is_healings_too(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it may keep in memory is what the bound leaves beside the student, its gradients and moments."""
    given: list[int] = []

    def watched(*_: Any, memory: int, **__: Any) -> None:
        given.append(memory)
        raise KeyboardInterrupt

    monkeypatch.setattr(distill, "heal", watched)
    monkeypatch.setattr(memory_bound, "resident", lambda: 10**9)
    for bound in (None, 3.0, 4.0):
        with pytest.raises(KeyboardInterrupt):
            built(tmp_path / "m", text, heal="1steps", memory_gb=bound)
    usual, few, many = given
    assert usual == memory_bound.ACTIVATIONS
    assert many - few == 10**9
    assert 10**9 < few < 2 * 10**9 - memory_bound.CALIBRATING
    with pytest.raises(InputError, match=r"at least 1\.\d GB for this model, found --memory-gb 1: 1\.00 GB are taken"):
        built(tmp_path / "m", text, heal="1steps", memory_gb=1.0)
