"""What is imported when, the choice of a variant, threads, and what the backend refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

import runtime_edge
from runtime_edge import probe
from runtime_edge.errors import ArtifactError, MissingDependencyError, RequestError
from runtime_edge.installation import install_command
from tests.runtime_edge import tiny
from tests.runtime_edge.test_verify import edit, relist

ROOT = Path(runtime_edge.__file__).parents[1]
COMPILER = {"torch", "transformers", "onnx", "onnx_ir", "leptonc", "targets", "sample_models"}
SCRIPT = """
import json, sys
import runtime_edge
first = [name for name in sys.modules if "." not in name]
with runtime_edge.load(sys.argv[1], threads=1) as model:
    model.generate("a", max_new_tokens=2)
second = [name for name in sys.modules if "." not in name]
with runtime_edge.load(sys.argv[1], threads=1) as model:
    model.generate([{"role": "user", "content": "a"}], max_new_tokens=2)
print(json.dumps([first, second, [name for name in sys.modules if "." not in name]]))
"""


def test_imports_come_when_needed_and_the_compiler_never(built: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(built)], capture_output=True, text=True, check=True, env=environment
    )
    at_import, at_text, at_chat = (set(names) for names in json.loads(done.stdout))
    assert done.stderr == ""
    assert not at_import & (COMPILER | {"numpy", "tokenizers", "onnxruntime", "jinja2", "click", "rich"})
    assert {"numpy", "tokenizers", "onnxruntime"} <= at_text
    assert not at_text & (COMPILER | {"jinja2", "click", "rich"})
    assert not at_chat & COMPILER


def test_public_names_are_there() -> None:
    for name in runtime_edge.__all__:
        assert getattr(runtime_edge, name) is not None
    assert callable(runtime_edge.load)
    assert callable(runtime_edge.verify)
    assert set(runtime_edge.__all__) <= set(dir(runtime_edge))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        runtime_edge.nothing  # noqa: B018


def test_repr_is_short(model: runtime_edge.Model) -> None:
    assert repr(model) == "<runtime_edge.Model 'tiny': text-generation, cpu, onnxruntime, 1 threads>"


def test_no_variant_for_the_backend_that_is_asked_for(built: Path) -> None:
    names = "tensorrt-rtx, tensorrt, onnxruntime-cuda, onnxruntime"
    with pytest.raises(RequestError, match=f"backend: expected one of {names}, found 'cuda'"):
        runtime_edge.load(built, backend="cuda")
    with pytest.raises(RequestError, match=r"variants: expected one for tensorrt, found cpu \(onnxruntime\)") as caught:
        runtime_edge.load(built, backend="tensorrt")
    assert caught.value.hint == "build the artifact for this machine with `leptonc build --target`"


def test_an_artifact_for_the_cpu_loads_without_anything_of_tensorrt(built: Path) -> None:
    program = (
        "import sys, warnings, runtime_edge\n"
        "warnings.simplefilter('error')\n"
        "model = runtime_edge.load(sys.argv[1], threads=1)\n"
        "assert (model.backend, model.why) == ('onnxruntime', ()), (model.backend, model.why)\n"
        "print(*sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(built)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "runtime_edge.backends.onnxruntime" in done.stdout
    for name in ("runtime_edge.backends.choice", "runtime_edge.backends.tensorrt", "runtime_edge.tensorrt", "cuda"):
        assert name not in done.stdout.split()


def test_missing_package_names_the_extra(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="expected the package onnxruntime, found none") as caught:
        runtime_edge.load(built)
    assert caught.value.hint == install_command("cpu")
    assert caught.value.exit_code == 4


def change_graph(root: Path, change: Any) -> None:
    graph = onnx.load(root / "cpu.onnx", load_external_data=False)
    change(graph)
    (root / "cpu.onnx").write_bytes(graph.SerializeToString())
    relist(root, "cpu.onnx")


def test_graph_with_other_inputs_is_named(artifact: Path) -> None:
    edit(artifact, lambda data: data["parts"][0]["states"].pop())
    message = r"cpu.onnx: expected the inputs that .* 2 unknown \['past_key_values.1.key', 'past_key_values.1.value'\]"
    with pytest.raises(ArtifactError, match=message):
        runtime_edge.load(artifact)


def test_graph_that_the_backend_refuses(artifact: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change_graph(artifact, lambda model: setattr(model.graph.node[-1], "op_type", "Erf"))
    with pytest.raises(ArtifactError, match=r"cpu\.onnx: expected a graph that ONNX Runtime .* opens, found: .*Erf"):
        runtime_edge.load(artifact)
    assert capfd.readouterr().err == ""


def test_graph_that_fails_when_it_runs(artifact: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edit(artifact, lambda data: data["parts"][0]["outputs"][0]["dims"].__setitem__(-1, 299))
    change_graph(artifact, lambda model: model.graph.output[0].type.tensor_type.shape.dim[2].Clear())
    with (
        runtime_edge.load(artifact, threads=1) as model,
        pytest.raises(ArtifactError, match=r"cpu\.onnx: expected a graph that runs, found"),
    ):
        model.generate("a", max_new_tokens=1)
    assert capfd.readouterr().err == ""


def test_tokenizer_that_is_none(artifact: Path) -> None:
    (artifact / "tokenizer.json").write_text("{}")
    relist(artifact, "tokenizer.json")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: expected a tokenizer with a `model`, found"):
        runtime_edge.load(artifact)


def test_a_tokenizer_neither_cuts_nor_pads_a_prompt(artifact: Path) -> None:
    tokenizer = tiny.byte_tokenizer()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    for text, length in (("a longer text", 14), ("a", 2)):
        assert len(tokenizer.encode(text).ids) != length  # as it was saved
    (artifact / "tokenizer.json").write_text(tokenizer.to_str())
    relist(artifact, "tokenizer.json")
    with runtime_edge.load(artifact, threads=1) as model:
        assert [len(model.tokenize(text)) for text in ("a longer text", "a")] == [14, 2]


@pytest.mark.parametrize("threads", [0, -1, 5000, 1.5, "2"])
def test_bad_threads(built: Path, threads: Any) -> None:
    with pytest.raises(RequestError, match="threads: expected a whole number"):
        runtime_edge.load(built, threads=threads)


def test_threads_by_the_environment(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(probe.THREADS_VARIABLE, "3")
    with runtime_edge.load(built) as model:
        assert model.threads == 3
    with runtime_edge.load(built, threads=1) as model:
        assert model.threads == 1
    monkeypatch.setenv(probe.THREADS_VARIABLE, "many")
    with pytest.raises(RequestError, match="LEPTON_THREADS: expected a number from 1 to 1024, found 'many'"):
        runtime_edge.load(built)


@pytest.mark.parametrize(
    ("cpus", "siblings", "quota", "expected"),
    [
        ({0, 1, 2, 3}, "0-1 0-1 2-3 2-3", "", 2),  # two hardware threads a core
        ({1, 3}, "0-1 0-1 2-3 2-3", "", 2),
        ({2, 3}, "0-1 0-1 2-3 2-3", "", 1),
        ({0, 1, 2, 3}, "0 1 2 3", "max 100000", 4),
        ({0, 1, 2, 3}, "0 1 2 3", "150000 100000", 2),
        ({0, 1, 2, 3}, "0 1 2 3", "10000 100000", 1),
        ({0, 1, 2}, "", "garbage", 3),  # a kernel that does not say
    ],
)
def test_usable_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: set[int], siblings: str, quota: str, expected: int
) -> None:
    for cpu, names in enumerate(siblings.split()):
        folder = tmp_path / f"cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{names}\n")
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(probe, "_CPUS", tmp_path)
    monkeypatch.setattr(probe, "_CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cpus, raising=False)
    assert probe.usable_cores() == expected


def test_quota_of_the_older_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("200000")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
    monkeypatch.setattr(probe, "_CGROUPS", tmp_path)
    assert probe._quota() == 2
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1")
    assert probe._quota() > 10**6
