"""A bound on a build's memory: what it leaves for activations, and what it is too small for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import targets
from leptonc.build import memory_bound as needs_module
from leptonc.build import to_artifact, to_onnx
from leptonc.build.engine import Ending, checked_plan
from leptonc.build.memory_bound import ACTIVATIONS, ModelSizes, room_for_activations
from leptonc.build.step import Need
from leptonc.build.steps import check_emitted, compile_engine, measure, write_graph
from leptonc.build.to_artifact import build
from leptonc.errors import InputError
from leptonc.formats import FORMATS
from leptonc.frontend.capture import Captured, capture
from leptonc.options import BuildOptions
from leptonc.report import as_plain
from leptonc.sources import open_source
from runtime_edge.process import most_resident, resident

TAKEN = 10**9
CAPTURE = "the check of the capture"


@pytest.fixture(scope="module")
def captured() -> Captured:
    with open_source("sample:tiny-gpt2") as source:
        return capture(source, max_seq_len=64)


def needs(
    captured: Captured, ending: Ending[Any] = to_artifact.ENDING, *, emitted: bool = False, **options: Any
) -> list[Need]:  # fmt: skip
    plan = checked_plan(BuildOptions("m", **options), ending)
    sizes = ModelSizes(captured, emitted=emitted)
    return [need for step in ending.steps if step.wanted(plan) for need in step.needs(plan, sizes)]


def steps(captured: Captured, ending: Ending[Any] = to_artifact.ENDING, **options: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for need in needs(captured, ending, **options):
        found[need.what] = max(need.bytes, found.get(need.what, 0))
    return found


def room(captured: Captured, bound: float | None, **options: Any) -> int:
    return room_for_activations(bound, needs(captured, **options))


def test_steps_that_are_not_taken_need_nothing(captured: Captured, tmp_path: Path) -> None:
    assert set(steps(captured, fast=True, check=False)) == {"writing a weight", CAPTURE}
    assert set(steps(captured, fast=True)) == {"writing a weight", CAPTURE, "the check"}
    whole = steps(captured, heal="1steps", weights="int4", method="gptq")
    calibrating = {"calibrating a layer", "the model that writes"}
    assert set(whole) == {"writing a weight", CAPTURE, *calibrating, "the check", "healing"}
    assert "the model that writes" not in steps(captured, weights="int4", fast=True)
    text = tmp_path / "text.txt"
    text.write_text("The valves close when the pressure falls. " * 40)
    assert "the model that writes" not in steps(captured, weights="int4", method="gptq", calibration=text)
    assert "calibrating a layer" in steps(captured, prune="20%", prune_method="magnitude", prune_compensation="none")
    one, all_of_them = (steps(captured, **each) for each in ({"activations": "int8"}, {"weights": "auto:1MB"}))
    assert 0 < one["weighing layers"] < all_of_them["weighing layers"]


def test_needs_follow_weights_inputs_and_bits(captured: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((write_graph, "WRITING"), (needs_module, "CALIBRATING"), (measure, "CHECKING")):
        monkeypatch.setattr(module, name, 0)
    weights = [each.const_value for each in captured.model.graph.initializers.values()]
    sizes = [4 * each.size for each in weights if each is not None]
    found = steps(captured, weights="int4", method="gptq")
    assert found["writing a weight"] == 2 * max(sizes)
    assert found["calibrating a layer"] > needs_module.SQUARES * 256**2  # of the layer with most inputs
    checks = [steps(captured, weights=each)["the check"] for each in ("int4", "int8", "fp32")]
    assert checks == sorted(checks)
    assert checks[2] == max(sizes) + int(measure.OPENED * sum(sizes))
    for scheme in (*sorted({*FORMATS} & {*targets.load("rtx").precisions}), "auto:1MB"):
        assert steps(captured, target="rtx", weights=scheme)["the check"] >= checks[0]
    assert steps(captured, weights="int4", prefill="int8")["the check"] > checks[0]


def test_what_runs_whole_counts_whole(captured: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder's original is kept for all texts, a decoder's and an emitted graph's run a layer at a time."""
    for module, name in (
        (measure, "CHECKING"), (check_emitted, "CHECKING"), (measure, "LOGITS"), (compile_engine, "ENGINE"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, 0)
    with open_source("sample:tiny-bert-classifier") as source:
        encoder = capture(source, max_seq_len=64)
    sizes = [4 * v.const_value.size for v in encoder.model.graph.initializers.values() if v.const_value is not None]
    assert steps(encoder, weights="int4")["the check"] == max(sizes) + sum(sizes)
    assert steps(encoder, weights="fp32")["the check"] == max(sizes) + int(measure.OPENED * sum(sizes))
    found = steps(encoder, weights="int4", emitted=True)["the check"]
    assert max(sizes) < found < max(sizes) + 0.3 * sum(sizes)
    assert steps(encoder, to_onnx.ENDING, emitted=True)["the check"] == max(sizes)
    whole = sum(4 * v.const_value.size for v in captured.model.graph.initializers.values() if v.const_value is not None)
    table = 4 * 512 * int(captured.config.hidden_size)
    assert "building an engine" not in steps(captured, weights="int4", fast=True)
    for scheme, bits, head in (("fp16", 16, 16), ("int8", 9, 16), ("int4", 5, 16), ("fp32", 32, 32)):
        written = ((whole - table) * bits + table * head) / 32
        engine = steps(captured, target="rtx", weights=scheme)["building an engine"]
        assert engine == pytest.approx(compile_engine.PLANNED * written, rel=0.05)  # positions are a table, too


def test_a_bound_leaves_the_rest_for_activations(captured: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs_module, "resident", lambda: TAKEN)
    found = steps(captured, weights="int4", method="gptq")
    most, layer = max(found.values()), found["calibrating a layer"]
    assert most == found["the check"] > layer
    assert room(captured, None, weights="int4", method="gptq") == ACTIVATIONS
    assert room(captured, 4, weights="int4", method="gptq") == 4 * 10**9 - TAKEN - layer
    assert room(captured, 4, weights="int4", fast=True) == 4 * 10**9 - TAKEN
    least = (TAKEN + most) / 1e9
    assert room(captured, least + 1e-6, weights="int4", method="gptq") >= most - layer
    unchecked = max(steps(captured, weights="int4", method="gptq", check=False).values())
    assert most > unchecked == found[CAPTURE]
    assert (
        room(captured, (TAKEN + unchecked) / 1e9 + 1e-6, weights="int4", method="gptq", check=False)
        >= unchecked - layer
    )
    with pytest.raises(InputError, match=r"at least 1\.\d GB .* found --memory-gb 0\.25: 1\.00 GB are") as refused:
        room(captured, 0.25, weights="int4", method="gptq")
    assert re.fullmatch(r"--memory-gb 1\.\d, or --no-check", str(refused.value.hint))
    assert float(str(refused.value.hint).split(",")[0].split()[-1]) >= least


def test_a_bound_that_cannot_be_met_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "m.lepton"
    with pytest.raises(InputError, match="GB are taken before anything is built") as refused:
        build(BuildOptions("sample:tiny-gpt2", out=out, memory_gb=0.01))
    assert not list(tmp_path.iterdir())
    least = float(str(refused.value.hint).split(",")[0].split()[-1])
    made = build(BuildOptions("sample:tiny-gpt2", out=out, weights="int4", memory_gb=least + 0.2))
    assert as_plain(made.report)["recipe"]["memory_gb"] == least + 0.2


def test_what_is_in_memory_is_known() -> None:
    before = resident()
    assert before is not None
    taken = bytearray(50 * 10**6)
    taken[::4096] = b"x" * len(taken[::4096])
    now, most = resident(), most_resident()
    assert now is not None and most is not None  # noqa: PT018
    assert 40e6 < now - before < 70e6
    assert most >= now - 2**20
