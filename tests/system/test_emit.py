"""`leptonc build --emit onnx` as a user runs it, and what is built from what it wrote.

The first build and the one that is interrupted have a process of their own; the others share this one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Outcome

PLAN = {"model.layers.0/mlp": {"channels": "0-31"}, "model.layers.2/attention": {"groups": "1"}}


@pytest.fixture
def run(leptonc: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Runs `leptonc` in a folder, and asserts how it ends."""

    def run(*arguments: object, cwd: Path, code: int = 0) -> Outcome:
        monkeypatch.chdir(cwd)
        done = leptonc(*arguments)
        assert done.code == code, done.err
        assert "Traceback" not in done.err
        return done

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plan, and with the graph that it was emitted to by a process of its own."""
    made = tmp_path_factory.mktemp("emit")
    (made / "plan.json").write_text(json.dumps(PLAN))
    command = [sys.executable, "-m", "leptonc", "build", "sample:tiny-llama", "--prune", "plan.json", "--emit", "onnx"]
    done = subprocess.run([*command, "-o", "graph"], capture_output=True, text=True, check=False, cwd=made)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "of the layers' weights" in done.stdout
    assert "perplexity reference" in done.stdout
    return made


def test_prune_emit_quantize_and_generate(folder: Path, run: Callable[..., Outcome]) -> None:
    written = {"lepton.json", "model.onnx", "blobs", "report.json", "config.json", "generation_config.json"}
    written |= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert set(os.listdir(folder / "graph")) == written
    done = run("build", "graph", "--weights", "int8", "--max-loss", "50%", "-o", "small.lepton", cwd=folder)
    assert "the graph emitted as graph" in done.out
    run("verify", "small.lepton", cwd=folder)
    told = run("run", "small.lepton", "Hello", "--max-new-tokens", 8, "--temperature", 0, cwd=folder)
    assert told.out.strip()
    (folder / "text.txt").write_text("A text of some words that is long enough. " * 20)
    measured = run("eval", "small.lepton", "--text", "text.txt", "--window", 64, "--json", cwd=folder)
    assert json.loads(measured.out)["perplexity"] > 1
    shown = run("inspect", "small.lepton", "--structure", cwd=folder)
    assert "pruning asked" in shown.out
    assert "plan.json" in shown.out


def test_default_place_and_json(folder: Path, tmp_path: Path, run: Callable[..., Outcome]) -> None:
    done = run("build", folder / "graph", "--emit", "onnx", "--no-check", "--json", cwd=tmp_path)
    found = json.loads(done.out)
    assert found["path"] == "graph-onnx"
    assert found["about"]["origin"]["id"] == "tiny-llama"
    assert os.listdir(tmp_path) == ["graph-onnx"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--weights", "int4"), 1, "error: expected nothing that says how a graph is lowered with --emit onnx"),
        (("--target", "cpu", "--target", "jetson-orin"), 1, "error: expected one target with --emit onnx"),
        (("--max-loss", "1%", "--no-check"), 2, "--max-loss needs the measurement"),
        (("--prune", "layers:2", "--max-loss", "0.0001%", "--eval-text", "text.txt"), 3, "error: expected a loss of"),
    ],
)
def test_what_is_refused(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path, run: Callable[..., Outcome]
) -> None:
    # A text that the model finds as likely as any: cutting makes it less so.
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 8)
    source = "sample:tiny-bert" if code == 3 else "sample:tiny-llama"
    done = run("build", source, "--emit", "onnx", "-o", "graph", *arguments, cwd=tmp_path, code=code)
    assert message in done.err
    assert os.listdir(tmp_path) == ["text.txt"]


def test_a_graph_that_was_damaged(folder: Path, tmp_path: Path, run: Callable[..., Outcome]) -> None:
    subprocess.run(["cp", "-r", str(folder / "graph"), str(tmp_path / "graph")], check=True)
    blob = next((tmp_path / "graph" / "blobs").iterdir())
    blob.write_bytes(blob.read_bytes()[:-4])
    done = run("build", "graph", "-o", "m.lepton", cwd=tmp_path, code=1)
    assert "error: " in done.err
    assert "hint: it is damaged, or was changed" in done.err
    assert os.listdir(tmp_path) == ["graph"]


def test_an_emission_that_is_interrupted(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "leptonc", "build", "sample:tiny-llama", "--emit", "onnx", "-o", "graph"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("writing weights: "):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.splitlines()[-1]) == (130, "", "interrupted")
    assert list(tmp_path.iterdir()) == []
