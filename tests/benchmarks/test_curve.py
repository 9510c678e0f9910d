"""benchmarks/curve.py: the front, and the whole command with an artifact of ours in a peer's place."""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TEXT = "The valves close when the pressure falls, and a lamp tells the driver which of them did so. " * 80


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def point(name: str, size: int, perplexity: float, decode: float, ours: bool) -> dict[str, Any]:
    return {"name": name, "bytes": size, "perplexity": perplexity, "decode_tok_s": decode, "ours": ours,
            "prefill_tok_s": 1.0}  # fmt: skip


def test_who_beats_whom() -> None:
    curve = load("curve")
    a, b = point("a", 10, 5.0, 9.0, True), point("b", 10, 5.0, 8.0, False)
    assert curve.beats(a, b)
    assert not curve.beats(b, a)
    assert not curve.beats(a, dict(a))  # as good everywhere is no better
    assert not curve.beats(a, point("c", 9, 5.0, 8.0, False))
    rows = curve.markdown([a, b, point("d", 11, 6.0, 7.0, True)], 4.0).splitlines()
    assert rows[2].startswith("| **a** | 0.00 | 5.000 | +25.00 % |")
    assert rows[3].endswith("| a |")
    assert rows[4].endswith("| b |")
    drawn = curve.picture([a, b], "bytes", "MB", 1e6).decode()
    assert drawn.startswith("<!DOCTYPE html>")
    assert [drawn.count(f'<svg class="{width}"') for width in ("wide", "narrow")] == [1, 1]
    assert drawn.count("<circle") == 4  # two points in two widths


def test_what_an_earlier_run_judged(tmp_path: Path) -> None:
    curve, windows = load("curve"), tmp_path / "windows.json"
    windows.write_text("[[1, 2]]")
    known = tmp_path / "known"
    known.mkdir()
    (known / "windows.json").write_text("[[1, 2]]")
    before = [point("a", 10, 5.0, 9.0, False) | {"tokens": 7}, point("b", 10, 5.0, 9.0, True) | {"tokens": 7}]
    (known / "curve.json").write_text(json.dumps(before))
    assert curve.judged(known, windows) == {("a", 10): {"perplexity": 5.0, "tokens": 7}}
    windows.write_text("[[1, 3]]")
    with pytest.raises(SystemExit, match="found others"):
        curve.judged(known, windows)
    (known / "windows.json").unlink()
    with pytest.raises(SystemExit, match=r"found no windows\.json"):
        curve.judged(known, windows)


def test_log_probabilities_of_logits() -> None:
    import numpy as np

    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [1.0, 1.0, 1.0]], np.float32))
    quality = load("peer_quality")
    assert np.allclose(np.exp(quality.chosen(logits, [0, 1, 2])), [0.25, 0.7], atol=1e-7)
    with pytest.raises(SystemExit, match="expected logits of 2 tokens"):
        quality.chosen(logits, [0, 1])


@pytest.mark.slow
def test_the_command_with_an_artifact_as_the_peer(
    artifact: Callable[..., Path], leptonc: Callable[..., Any], tmp_path: Path
) -> None:
    mine, theirs = (artifact("sample:tiny-llama", weights=weights) for weights in ("int4", "fp32"))
    (tmp_path / "text.txt").write_text(TEXT)
    python, other = shlex.quote(sys.executable), shlex.quote(str(theirs))
    listing = tmp_path / "peers.toml"
    listing.write_text(
        f'[[peer]]\nname = "a peer"\nfiles = ["peer.bin"]\n'
        f"quality = '{python} {BENCHMARKS}/peer_quality.py lepton {other} --windows {{windows}}'\n"
        f"speed = '{python} {BENCHMARKS}/speed.py {other} --prompt 32 --new 8'\n"
    )
    (tmp_path / "peer.bin").write_bytes(bytes(1000))
    out = tmp_path / "curve"
    command = [sys.executable, BENCHMARKS / "curve.py", listing, "--ours", mine, "--text", tmp_path / "text.txt"]
    command += ["--window", "64", "--max-windows", "3", "--rounds", "1", "--out", out, "--plain", theirs]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=BENCHMARKS.parent)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads((out / "curve.json").read_text())}
    assert rows["a peer"]["bytes"] == 1000
    assert rows["a peer"]["tokens"] == 3 * 63
    for path, name in ((mine, "model"), (theirs, "a peer")):
        shown = leptonc("eval", path, "--text", tmp_path / "text.txt", "--window", 64, "--max-windows", 3, "--json")
        assert rows[name]["perplexity"] == pytest.approx(json.loads(shown.out)["perplexity"], rel=1e-6)
        assert rows[name]["decode_tok_s"] > 0
    assert "of our 1 points are beaten by a peer's" in done.stdout
    lost = 100 * (rows["model"]["perplexity"] / rows["a peer"]["perplexity"] - 1)  # the peer is what is not quantized
    table = (out / "curve.md").read_text()
    assert f"| {lost:+.2f} % |" in table
    assert "| +0.00 % |" in table
    assert "<circle" in (out / "size.html").read_text(encoding="utf-8")
    listing.write_text('[[peer]]\nname = "a peer"\n')
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=BENCHMARKS.parent)
    assert (done.returncode, "expected [[peer]] with" in done.stderr) == (1, True)
