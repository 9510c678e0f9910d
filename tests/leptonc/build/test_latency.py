"""A latency that is asked for becomes a share: the arithmetic with given times, and graphs that are really timed."""

from __future__ import annotations

from pathlib import Path

import pytest

import leptonc.build.latency as module
from leptonc.build.to_artifact import build
from leptonc.calibrate.latency import seconds
from leptonc.errors import InputError
from leptonc.options import BuildOptions
from leptonc.report import as_plain


def test_what_lies_between_two_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2.0 ms whole and 1.2 ms without t % of the weights: 20 % less time needs t / 2 %."""
    times = iter((0.002, 0.0012))
    monkeypatch.setattr(module, "seconds", lambda *_: next(times))
    result = build(
        BuildOptions(
            "sample:tiny-llama", out=tmp_path / "m", weights="int8", prune="latency:20%", prune_method="magnitude",
            prune_compensation="none", check=False,
        )
    )  # fmt: skip
    about = as_plain(result.report)["pruning"]
    found = about["latency"]
    assert 40 < found["trial_percent"] < 60
    assert found["share_percent"] == pytest.approx(found["trial_percent"] / 2, abs=0.01)
    assert abs(about["removed_percent"] - found["share_percent"]) < 3
    assert (found["asked_percent"], found["whole_ms"], found["trial_ms"]) == (20, 2.0, 1.2)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_weights_that_save_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "seconds", lambda *_: 0.002)
    with pytest.raises(InputError, match="save 0 % of the time, where 20 % are asked for"):
        build(BuildOptions("sample:tiny-llama", out=tmp_path / "m", prune="latency:20%", check=False))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("longest", [512, 24])  # a short one has no room for the usual cache, nor for the usual text
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-sentence"])
def test_graphs_are_timed(name: str, longest: int, tmp_path: Path) -> None:
    source = f"sample:{name}"
    built = build(BuildOptions(source, out=tmp_path / "m", weights="int8", max_seq_len=longest, check=False))
    assert 0 < seconds(built.path / "cpu.onnx", built.manifest.parts[0], 512, longest, 0.01) < 60
