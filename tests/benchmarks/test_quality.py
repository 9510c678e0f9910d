"""benchmarks/quality.py and what it reads: windows over a text, losses, and the texts themselves."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra compiler")

from benchmarks import quality, texts
from leptonc.build.to_artifact import build
from leptonc.options import BuildOptions
from runtime_edge import load

TEXT = "The valves close when the pressure falls, and a lamp tells the driver which of them did so. " * 80


def test_windows_lie_evenly_over_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "WINDOW", 4)
    windows = quality.spread(range(100, 111), [], 3)
    assert windows == [([100, 101, 102, 103], 3), ([103, 104, 105, 106], 3), ([106, 107, 108, 109], 3)]
    begun = quality.spread([7, *range(100, 110)], [7, 8], 2)  # 7 begins every text
    assert begun == [([7, 100, 101, 102], 3), ([7, 107, 108, 109], 3)]
    with pytest.raises(SystemExit, match="expected a text of at least 4 tokens, found 3"):
        quality.spread([1, 2, 3], [], 2)


def test_losses_are_of_mean_likelihoods() -> None:
    found = quality.row("b", [math.log(11), math.log(24)], [math.log(10), math.log(20)])
    assert (found["perplexity"], found["loss_percent"]) == ([11.0, 24.0], [10.0, 20.0])
    assert found["mean_loss_percent"] == pytest.approx(100 * (math.sqrt(1.1 * 1.2) - 1), abs=0.01)


def test_builds_and_artifacts_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    artifact = build(BuildOptions("sample:tiny-llama", out=tmp_path / "a.lepton", weights="fp32", check=False)).path
    given = ["sample:tiny-llama", str(artifact), "--weights int4 --fast --no-check", "--text", str(text)]
    monkeypatch.setattr(sys, "argv", ["quality.py", *given, "--windows", "2", "--threads", "1", "--json"])
    quality.main()
    plain, same, rounded = map(json.loads, capsys.readouterr().out.splitlines())
    assert plain["mean_loss_percent"] == same["mean_loss_percent"] == 0
    assert rounded["mean_loss_percent"] != 0
    assert rounded["mb"] < plain["mb"] == same["mb"]
    assert rounded["seconds"] > 0 < rounded["peak_mb"]
    with load(artifact, threads=1) as model:
        windows = quality.spread(model.tokenize(TEXT), model.tokenize(""), 2)
        nats = [-float(value) for token_ids, _ in windows for value in model.score(token_ids)]
    assert plain["perplexity"] == [pytest.approx(math.exp(sum(nats) / len(nats)), abs=0.01)]


def test_texts(tmp_path: Path) -> None:
    spoken = tmp_path / "d.jsonl"
    lines = [{"dialogue": f"#Person1#: {i}\n#Person2#: at #Address#"} for i in range(60)]
    spoken.write_text("\n".join(map(json.dumps, lines)))
    told = texts.dialogue(spoken).split("\n\n")
    assert (told[0], len(told)) == ("Anna: 0\nBen: at Mr. Lee", 50)
    assert len(texts.code(0)) > 100_000
    assert texts.code(0)[:500] not in texts.code(20)
