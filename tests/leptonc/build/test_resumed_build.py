"""Builds that were interrupted: `--resume` goes on where they were, and gives what they would have given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leptonc.build import static_inputs
from leptonc.build.calibration_text import Calibration
from leptonc.build.steps import quantize_cache, scale_channels, spend_budget
from leptonc.build.steps.lower import Lower
from leptonc.build.to_artifact import build
from leptonc.calibrate import input_moments, reconstruct
from leptonc.calibrate.methods import gptq
from leptonc.errors import InputError, ResumeWarning
from leptonc.options import BuildOptions
from leptonc.passes.prune.remove import Prune

LLAMA = "sample:tiny-llama"
GIVEN: dict[str, Any] = {
    "weights": "int4", "method": "gptq", "prune": "20%", "check": False, "max_seq_len": 96,
}  # fmt: skip
STEPS = {  # what is interrupted, and at which call
    "text": (Calibration, "_written", 1),
    "moments": (input_moments, "moments", 1),
    "choice": (reconstruct, "measure", 1),
    "cut": (Prune, "run", 1),
    "codes": (gptq, "gptq_with_errors", 7),
}
MEASURED: list[tuple[dict[str, Any], dict[str, Callable[[Any], Any]]]] = [  # a build; its steps, and what damages each
    (
        {"weights": "auto:150kB", "method": "rtn", "kv_cache": "int8", "prefill": "int8"},
        {
            "cache-cpu": lambda found: found.popitem(),
            "prefill-cpu": lambda found: found.pop(),
            "prefill-divergences-cpu": lambda found: found.popitem(),
            "sensitivity-cpu": lambda found: found[0].pop("error"),
        },
    ),
    (
        {"weights": "int8", "activations": "int8", "method": "rtn"},
        {
            "activations-cpu": lambda found: found[0]["grid"].update(zero="none"),
            "activations-divergences-cpu": lambda found: found.update(dict.fromkeys(found)),
        },
    ),
    ({"weights": "int4", "method": "awq"}, {"scaling-cpu": lambda found: found[0].update(scales=["wide"])}),
]


def blobs(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.suffix == ".bin" or p.parent != path}


def counted(monkeypatch: pytest.MonkeyPatch, stop: str | None) -> dict[str, int]:
    """Counts the calls of each step, and interrupts one."""
    calls = dict.fromkeys(STEPS, 0)

    def watch(name: str, inner: Callable[..., Any], at: int) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            calls[name] += 1
            if name == stop and calls[name] == at:
                raise KeyboardInterrupt
            return inner(*args, **named)

        return call

    for name, (owner, attribute, at) in STEPS.items():
        monkeypatch.setattr(owner, attribute, watch(name, getattr(owner, attribute), at))
    return calls


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "m"
    build(BuildOptions(LLAMA, out=out, **GIVEN))
    return blobs(out)


@pytest.mark.parametrize("stop", list(STEPS))
def test_an_interrupted_build_goes_on(
    stop: str, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, out = tmp_path / "kept", tmp_path / "m"
    options = BuildOptions(LLAMA, out=out, resume=kept, **GIVEN)
    with monkeypatch.context() as patch:
        counted(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            build(options)
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))
    with monkeypatch.context() as patch:
        calls = counted(patch, None)
        report = build(options).report
        assert report.pruning is not None
        assert report.pruning.calibration is not None
    assert blobs(out) == whole
    assert not kept.exists()
    done = list(STEPS)[: list(STEPS).index(stop)]
    assert not any(calls[name] for name in done if name != "cut")  # cutting takes no time, and is done again
    # Of 12 groups of linear layers that read one value, and the head, those of a layer at a time.
    assert stop != "codes" or 0 < calls["codes"] < 13
    assert report.pruning.calibration.text == "written by the model, seed 0, and built-in"
    assert report.pruning.fitted
    assert len(report.variants["cpu"].choices().linears or ()) == 22


def test_another_build_is_refused_and_damaged_files_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, out = tmp_path / "kept", tmp_path / "m"
    with monkeypatch.context() as patch:
        counted(patch, "cut")
        with pytest.raises(KeyboardInterrupt):
            build(BuildOptions(LLAMA, out=out, resume=kept, **GIVEN))
    found = {path.name: path.read_bytes() for path in (kept / "steps").iterdir() if path.is_file()}
    assert "prune-cuts.json" in found
    for changes in ({"prune": "30%"}, {"seed": 1}, {"source": "sample:tiny-gpt2"}, {"target": "rtx"}):
        options = {"source": LLAMA, **GIVEN, **changes}
        with pytest.raises(InputError, match="what this very build left when it was interrupted, found another's"):
            build(BuildOptions(out=out, resume=kept, **options))
    for name in ("text.safetensors", "prune-cuts.json"):
        flipped = found[name][:-3] + bytes([found[name][-3] ^ 1]) + found[name][-2:]
        for data in (b"", found[name][: len(found[name]) // 2], flipped):
            (kept / "steps" / name).write_bytes(data)
            with monkeypatch.context() as patch:
                counted(patch, "cut")
                with pytest.warns(ResumeWarning, match=f"{name}: .*: damaged"), pytest.raises(KeyboardInterrupt):
                    build(BuildOptions(LLAMA, out=out, resume=kept, **GIVEN))
            assert (kept / "steps" / name).stat().st_size == len(found[name])  # made again
    assert not out.exists()
    with monkeypatch.context() as patch:  # a build that ran out of memory goes on with a bound, and another loss
        calls = counted(patch, None)
        build(BuildOptions(LLAMA, out=out, resume=kept, memory_gb=8, max_loss=10**6, **{**GIVEN, "check": True}))
    assert not calls["text"]
    assert not calls["moments"]
    assert not kept.exists()


@pytest.mark.parametrize(("options", "damages"), MEASURED)
def test_what_was_measured_is_not_measured_again(
    options: dict[str, Any], damages: dict[str, Callable[[Any], Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, steps = tmp_path / "text.txt", tmp_path / "kept" / "steps"
    text.write_text("The valves close when the pressure falls, and a lamp tells which of them did so. " * 12)
    given: dict[str, Any] = {"calibration": text, "check": False, "max_seq_len": 48, **options}
    whole = build(BuildOptions(LLAMA, out=tmp_path / "whole", **given))
    resumed = BuildOptions(LLAMA, out=tmp_path / "m", resume=tmp_path / "kept", **given)

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Lower, "run", stopped)  # what comes after all measuring
        with pytest.raises(KeyboardInterrupt):
            build(resumed)
    assert {path.stem for path in steps.glob("*.json")} == set(damages)
    for module, name in (
        (spend_budget, "sensitivities"), (quantize_cache, "cache_scales"), (scale_channels, "scalings"),
        (static_inputs, "choices"), (static_inputs, "divergences"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, stopped)
    for name, damage in damages.items():
        path = steps / f"{name}.json"
        before = path.read_text()
        damaged = json.loads(before)
        damage(damaged["value"])
        damaged["sha256"] = hashlib.sha256(json.dumps(damaged["value"]).encode()).hexdigest()
        path.write_text(json.dumps(damaged))
        with pytest.raises(InputError, match=f"left in .*{name}.json, found what cannot be read: ") as caught:
            build(resumed)
        assert caught.value.hint == "delete the file: its step is done again"
        path.write_text(before)
    assert build(resumed).manifest == whole.manifest  # the digest of every file, the report's among them
    assert not (tmp_path / "kept").exists()


def test_a_directory_that_nothing_would_be_kept_in(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected --prune, --heal or a calibration with --resume"):
        build(BuildOptions(LLAMA, out=tmp_path / "m", fast=True, resume=tmp_path / "kept"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="expected a directory for --resume, found a file"):
        build(BuildOptions(LLAMA, out=tmp_path / "m", prune="20%", resume=tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"
