"""The steps of a build: their order, whose options they are, and what an order of one's own does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import pytest

from leptonc.build import steps, to_artifact, to_onnx
from leptonc.build.context import BuildContext
from leptonc.build.engine import Ending, checked_plan, run, text_readers
from leptonc.build.plan import artifact_plan
from leptonc.build.step import ModelStep, Step, VariantStep
from leptonc.build.steps.choose_codes import ChooseCodes
from leptonc.build.steps.write_text import WriteText
from leptonc.build.to_artifact import build
from leptonc.build.to_onnx import emit
from leptonc.errors import InputError
from leptonc.options import BuildOptions
from leptonc.passes.base import Pass
from leptonc.report import as_plain
from leptonc.variant import VariantBuild

pytestmark = pytest.mark.usefixtures("short_windows")

LLAMA = "sample:tiny-llama"
# Options of the build as a whole: what is built, where it goes, and what every step reads.
OWN = {
    "source", "target", "out", "resume", "memory_gb", "max_seq_len", "max_loss", "seed", "dump_ir", "eval_text",
    "check", "force",
}  # fmt: skip


def blobs(path: Path) -> set[str]:
    return {file.name for file in (path / "blobs").iterdir()}


def test_every_option_belongs_to_one_step_or_to_the_build() -> None:
    owned = [name for step in steps.TO_ARTIFACT for name in step.options]
    assert len(owned) == len(set(owned))
    assert {*owned, *OWN} == {field.name for field in dataclasses.fields(BuildOptions)}
    assert not OWN & set(owned)


@pytest.mark.parametrize("order", [steps.TO_ARTIFACT, steps.TO_ONNX])
def test_an_order_has_each_step_once_and_variants_after_the_model(order: tuple[Step, ...]) -> None:
    names = [step.name for step in order]
    assert len(names) == len(set(names))
    kinds = [isinstance(step, VariantStep) for step in order]
    assert kinds == sorted(kinds)
    assert all(isinstance(step, ModelStep | VariantStep) for step in order)


def test_what_reads_a_text_says_so(tmp_path: Path) -> None:
    for options, reader in (
        ({"method": "gptq"}, "--method gptq"), ({"kv_cache": "int8"}, "--kv-cache"),
        ({"weights": "auto:1MB"}, "--weights auto:SIZE"), ({"prefill": "int8"}, "--prefill"),
        ({"activations": "int8"}, "--activations int8"), ({"prune": "20%"}, "--prune"), ({"heal": "1steps"}, "--heal"),
    ):  # fmt: skip
        plan = artifact_plan(BuildOptions("m", **options))  # type: ignore[arg-type]
        assert text_readers(plan, steps.TO_ARTIFACT)[reader], reader
        assert not text_readers(artifact_plan(BuildOptions("m", fast=True)), steps.TO_ARTIFACT)[reader]
    text = tmp_path / "text.txt"
    text.write_text("The valves close when the pressure falls. " * 40)
    with pytest.raises(InputError, match="expected something that reads a calibration text, one of --prune, "):
        checked_plan(BuildOptions("m", weights="int4", fast=True, calibration=text), to_artifact.ENDING)


def test_pruned_weights_get_the_codes_that_are_asked_for(text: Path, tmp_path: Path) -> None:
    """What pruning tries out on the way, and the check after it, leave the method as it was asked for."""
    options = BuildOptions(
        LLAMA, out=tmp_path / "gptq", weights="int4", method="gptq", prune="20%", calibration=text, max_seq_len=96
    )  # fmt: skip
    solved = build(options)
    rounded = build(dataclasses.replace(options, method="rtn", out=tmp_path / "rtn", check=False))
    reports = [as_plain(made.report)["variants"]["cpu"] for made in (solved, rounded)]
    assert reports[0]["quantization"]["method"] == "gptq"
    assert len(reports[0]["quantization"]["linears"]) >= 14
    assert "quantization" not in reports[1]
    assert len(blobs(solved.path) - blobs(rounded.path)) >= 2  # a blob a layer
    unchecked = build(dataclasses.replace(options, out=tmp_path / "unchecked", check=False))
    assert blobs(unchecked.path) == blobs(solved.path)


def test_the_text_is_written_by_the_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the steps that read it come before what is cut, or after."""
    written: list[int] = []
    write = WriteText.run

    def watched(self: WriteText, context: BuildContext) -> BuildContext:
        written.append(context.captured.parameters)
        return write(self, context)

    monkeypatch.setattr(WriteText, "run", watched)
    common: dict[str, Any] = {"weights": "int8", "method": "gptq", "check": False, "max_seq_len": 96}
    whole = build(BuildOptions(LLAMA, out=tmp_path / "whole", **common))
    cut: dict[str, Any] = {"prune": "20%", "prune_method": "magnitude", "prune_compensation": "none"}
    pruned = build(BuildOptions(LLAMA, out=tmp_path / "pruned", **common, **cut))
    assert written == [whole.manifest.parameters] * 2
    assert pruned.manifest.parameters < whole.manifest.parameters
    texts = [as_plain(made.report)["variants"]["cpu"]["quantization"]["calibration"] for made in (whole, pruned)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("options", [{"weights": "int4", "prefill": "int8"}, {"weights": "int8", "prune": "width:25%"}])
def test_the_graph_is_dumped_after_every_pass(options: dict[str, str], text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ir"
    given = BuildOptions(LLAMA, out=tmp_path / "m", calibration=text, check=False, dump_ir=folder, **options)  # type: ignore[arg-type]
    result = build(given)
    files = sorted(path.name for path in folder.iterdir())
    assert [int(name[:2]) for name in files] == list(range(len(files)))
    dumped = [name[3:].removesuffix(".onnx.txt").removeprefix("prefill-") for name in files]
    assert dumped[0] == "capture"
    assert set(dumped[1:]) == {record.name for record in result.manifest.passes}
    assert len(dumped) > len(result.manifest.passes)  # those of both graphs are recorded once


def test_variants_dump_apart(tmp_path: Path) -> None:
    folder = tmp_path / "ir"
    targets = ("cpu", "jetson-orin")
    build(BuildOptions(LLAMA, targets, tmp_path / "m", weights="int8", check=False, dump_ir=folder))
    assert sorted(path.name for path in folder.iterdir()) == ["00-capture.onnx.txt", *sorted(targets)]


class Counted(Pass):
    """Changes nothing."""

    name = "counted"

    def run(self, model: Any) -> int:
        return 0


class Count(ModelStep):
    """A step that no order of ours has."""

    name: ClassVar[str] = "count"

    def run(self, context: BuildContext) -> BuildContext:
        context.run_passes([Counted()])
        context.report.operations["count"] = {"nodes": len(list(context.captured.model.graph))}
        return context


def test_a_step_in_an_order_runs(tmp_path: Path) -> None:
    order = (*steps.TO_ARTIFACT[:3], Count(), *steps.TO_ARTIFACT[3:])
    ending = Ending(artifact_plan, order, "{}.lepton", to_artifact.ENDING.finish)
    result = run(BuildOptions(LLAMA, out=tmp_path / "m", weights="int8", check=False), ending)
    assert as_plain(result.report)["operations"]["count"]["nodes"] > 10
    assert result.about.passes[0].name == "counted"


def test_a_step_of_another_version_is_not_resumed(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = BuildOptions(
        LLAMA, out=tmp_path / "m", weights="int4", method="gptq", calibration=text, check=False, max_seq_len=96,
        resume=tmp_path / "steps",
    )  # fmt: skip

    def stopped(self: Step, context: BuildContext, variant: VariantBuild) -> VariantBuild:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("leptonc.build.steps.write_graph.WriteGraph.run", stopped)
        with pytest.raises(KeyboardInterrupt):
            build(options)
    assert list((tmp_path / "steps" / "steps").iterdir())
    monkeypatch.setattr(ChooseCodes, "version", ChooseCodes.version + 1)
    with pytest.raises(InputError, match="what this very build left when it was interrupted, found another's"):
        build(options)


@pytest.mark.parametrize("name", sorted(steps.LOWERED_OPTIONS))
def test_an_emission_refuses_what_only_an_artifact_has(name: str, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "layers": (object(),), "symmetric": True, "block_size": 32, "calibrator": "mse", "method": "gptq",
    }  # fmt: skip
    with pytest.raises(InputError, match=f"how a graph is lowered with --emit onnx, found {name}"):
        emit(BuildOptions(LLAMA, out=tmp_path / "g", **{name: values.get(name, "int8")}))
    assert list(tmp_path.iterdir()) == []


def test_an_emission_reads_a_text_for_what_it_has() -> None:
    plan = checked_plan(BuildOptions("m", prune="20%"), to_onnx.ENDING)
    assert plan.texts > 0
    assert not plan.lowered
