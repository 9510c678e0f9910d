"""A model of two parts from a checkpoint to the runtime: a task is a file in the compiler and one in the runtime."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import runtime_edge
from leptonc.build.to_artifact import build
from leptonc.build.to_onnx import emit
from leptonc.errors import InputError
from leptonc.frontend import tasks
from leptonc.options import BuildOptions
from runtime_edge import tasks as rooms
from runtime_edge.errors import ArtifactError, LeptonError, RequestError
from tests.leptonc import pair_task

IDS = [5, 9, 33, 2, 61, 7]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The task's two files, each registered by a line."""
    transformers.AutoConfig.register("pair", pair_task.PairConfig)
    transformers.AutoModelForSeq2SeqLM.register(pair_task.PairConfig, pair_task.PairForAnswers)
    monkeypatch.setattr(tasks, "TASKS", [pair_task.Answers, *tasks.TASKS])
    monkeypatch.setitem(rooms.ROOMS, "answers", "tests.runtime_edge.pair_room")
    yield
    del transformers.models.auto.configuration_auto.CONFIG_MAPPING._extra_content["pair"]
    del transformers.AutoModelForSeq2SeqLM._model_mapping._extra_content[pair_task.PairConfig]


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, Any]:
    folder = tmp_path / "pair"
    return folder, pair_task.save(folder)


def expected(model: Any, ids: list[int], count: int) -> list[int]:
    """What the torch module answers."""
    given = torch.tensor([ids])
    written = [1]
    with torch.inference_mode():
        hidden = model.encode(given, torch.ones_like(given))
        for _ in range(count):
            logits = model.decode(torch.tensor([written]), hidden)
            written.append(int(logits[0, -1].argmax()))
    return written[1:]


@pytest.mark.parametrize(("weights", "difference"), [("fp32", 1e-4), ("int8", 0.5)])
def test_two_parts_are_built_checked_and_run(
    weights: str, difference: float, checkpoint: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, model = checkpoint
    result = build(BuildOptions(str(folder), out=tmp_path / "m", weights=weights))
    stored = json.loads((result.path / "manifest.json").read_text())
    assert [part["name"] for part in stored["parts"]] == ["encoder", "decoder"]
    assert [graph["file"] for graph in stored["variants"][0]["graphs"]] == ["cpu.encoder.onnx", "cpu.decoder.onnx"]
    assert result.manifest.parts[1].inputs[1].source == "encoder/hidden"
    fidelity = json.loads((result.path / "report.json").read_text())["fidelity"]
    assert 0 < fidelity["max_abs_diff"] < difference
    assert fidelity["cosine_min"] > 0.999
    rows = json.loads((result.path / "report.json").read_text())["variants"]["cpu"]["linears"]
    paths = {row["path"] for row in rows}
    assert {"encoder.encoder.layer.0.attention.self.query", "layers.1.down", "head"} <= paths
    if weights == "int8":
        assert all(row["snr_db"] > 25 for row in rows)
    with runtime_edge.load(result.path, threads=1) as opened:
        given = np.array([IDS])
        run = {"encoder/input_ids": given, "encoder/attention_mask": np.ones_like(given)}
        got = opened.task.program.run({**run, "decoder/decoder_input_ids": given[:, :3]})
        with torch.inference_mode():
            want = model.decode(torch.tensor([IDS[:3]]), model.encode(torch.tensor([IDS]), torch.ones(1, 6).long()))
        np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=difference)
        if weights == "fp32":
            assert opened.task.answer(IDS, 8) == expected(model, IDS, 8)
        with pytest.raises(RequestError, match="expected a model for text-generation, found one for answers"):
            opened.generate("a")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune": "20%"}, "expected a model of one part for .*, found one for answers of 2: encoder, decoder"),
        ({"weights": "int4", "method": "gptq"}, "expected a model of one part for .*, found one for answers of 2"),
        ({"weights": "int8", "activations": "int8"}, "expected a model of one part for "),
        ({"heal": "3steps", "weights": "int8"}, "expected a model of one part for "),
    ],
)
def test_steps_that_know_one_graph_are_refused(
    options: dict[str, Any], message: str, checkpoint: tuple[Path, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        build(BuildOptions(str(checkpoint[0]), out=tmp_path / "m", **options))
    assert not (tmp_path / "m").exists()


def test_an_engine_is_of_one_part(checkpoint: tuple[Path, Any], tmp_path: Path) -> None:
    with pytest.raises(LeptonError, match="expected a model of one part, found one for answers of 2: encoder, decoder"):
        build(BuildOptions(str(checkpoint[0]), target="jetson-orin", out=tmp_path / "m", weights="fp16"))
    assert not (tmp_path / "m").exists()


def test_several_parts_are_not_emitted(checkpoint: tuple[Path, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a model of one part for "):
        emit(BuildOptions(str(checkpoint[0]), out=tmp_path / "m"))


def test_a_manifest_without_one_of_the_parts_is_refused(checkpoint: tuple[Path, Any], tmp_path: Path) -> None:
    path = build(BuildOptions(str(checkpoint[0]), out=tmp_path / "m", weights="fp32", check=False)).path
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["variants"][0]["graphs"].pop()
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="expected a graph of part 'decoder' in one of them, found none"):
        runtime_edge.load(path)


def test_inspect_names_the_parts(
    checkpoint: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from runtime_edge.cli import main

    path = build(BuildOptions(str(checkpoint[0]), out=tmp_path / "m", weights="int8", check=False)).path
    capsys.readouterr()
    with contextlib.suppress(SystemExit):
        main(["inspect", str(path)])
    assert "encoder, decoder" in capsys.readouterr().out
