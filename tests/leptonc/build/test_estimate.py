"""What a build's steps foresee: the stages that come, and amounts that grow with what is asked for."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import leptonc
from leptonc.backends.traits import TRAITS
from leptonc.build import steps as steps_module
from leptonc.build import to_artifact
from leptonc.build.engine import checked_plan
from leptonc.build.estimate import Estimate, _layers
from leptonc.build.memory_bound import ModelSizes
from leptonc.build.rates import Rates
from leptonc.build.to_artifact import build
from leptonc.build.to_onnx import emit
from leptonc.build.work import KINDS, Work, checking, reading
from leptonc.frontend.capture import Captured, capture
from leptonc.options import BuildOptions
from leptonc.progress import TITLES, Timed, plain, shown
from leptonc.sources import open_source

pytestmark = pytest.mark.usefixtures("short_windows")
LLAMA = "sample:tiny-llama"


class Watching:
    """Records what is foreseen, and what comes."""

    def __init__(self) -> None:
        self.foreseen: list[str] = []
        self.came: list[str] = []

    def note(self, text: str) -> None:
        pass

    @contextlib.contextmanager
    def forecast(self, stages: Any) -> Iterator[None]:
        self.foreseen = [name for name, _ in stages]
        assert all(seconds >= 0 for _, seconds in stages)
        yield

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        yield lambda _: None
        self.came.append(plain(name))


@pytest.fixture(scope="module")
def captured() -> Captured:
    with open_source(LLAMA) as source:
        return capture(source, max_seq_len=128)


def works(captured: Captured, *, written: bool = False, **options: Any) -> dict[str, Work]:
    plan = checked_plan(BuildOptions("m", **options), to_artifact.ENDING)
    estimate = Estimate(Rates())
    wanted = [step for step in to_artifact.ENDING.steps if step.wanted(plan)]
    estimate.steps(plan, wanted, ModelSizes(captured), written=written)
    return {each.stage: each for each in estimate.works}


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "fp32"},
        {"weights": "auto:260kB", "prefill": "shared"},
        {"activations": "int8", "kv_cache": "int8", "prune": "20%", "prune_compensation": "sequential"},
        {"weights": "int4", "method": "awq", "prune": "layers:1", "prune_compensation": "bias"},
        {"weights": "int8", "prune": "20%", "prune_method": "taylor", "prune_compensation": "none", "heal": "1steps"},
        {"target": ("cpu", "jetson-orin"), "weights": "int4"},
        {"source": "sample:tiny-bert", "activations": "int8"},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_stages_that_are_foreseen_come_and_no_others(options: dict[str, Any], tmp_path: Path) -> None:
    watching = Watching()
    (text := tmp_path / "text.txt").write_text("The valves close, and a lamp tells the driver which did so. " * 20)
    if "fp32" not in options.values() and "target" not in options:
        options = {**options, "calibration": text}
    build(BuildOptions(**{"source": LLAMA, "out": tmp_path / "m", **options}), watching)
    begun = {TITLES["open"], TITLES["capture"]}
    assert sorted(watching.foreseen) == sorted(name for name in watching.came if name not in begun)


def test_an_emission_foresees_its_own_stages(tmp_path: Path) -> None:
    watching = Watching()
    result = emit(BuildOptions(LLAMA, out=tmp_path / "m"), watching)
    assert watching.foreseen == [TITLES["capture check"], TITLES["weights"], TITLES["check"]]
    assert list(result.estimated_seconds) == ["capture", "capture check", "weights", "check"]


def test_amounts_grow_with_what_is_read(captured: Captured, tmp_path: Path) -> None:
    solved = works(captured, weights="int4", method="gptq")
    eight = works(captured, weights="int8", method="gptq")
    assert eight["pass calibrate"].amounts["products"] < 0.5 * solved["pass calibrate"].amounts["products"]
    assert "pass calibrate" not in works(captured, weights="int4", method="rtn")
    (short := tmp_path / "short.txt").write_text("A lamp tells the driver. " * 40)
    brief = works(captured, weights="int4", method="gptq", calibration=short)
    assert "calibration text" in solved
    assert "calibration text" not in brief
    assert brief["pass calibrate"].amounts["products"] < 0.2 * solved["pass calibrate"].amounts["products"]
    assert "calibration text" not in works(captured, written=True, weights="int4", method="gptq")
    assert "check" not in works(captured, check=False)


def test_amounts_are_those_of_the_model(captured: Captured) -> None:
    sizes = ModelSizes(captured)
    plan = checked_plan(BuildOptions("m", weights="int4", method="gptq"), to_artifact.ENDING)
    weights = 3 * (64 * (64 + 2 * 32 + 64) + 3 * 64 * 160)
    assert sizes.multiplications - sizes.head == weights
    assert sizes.inputs.count(160) == 3
    assert sizes.squares == sum(width**2 for width in sizes.inputs)
    assert checking(sizes)["compared"] == 512 * sizes.multiplications
    read = reading(plan, sizes, 4, moments=0.5)
    assert read["products"] == 4 * 128 * (weights + sizes.squares / 2)


def test_every_kind_is_known_and_used(captured: Captured) -> None:
    used = {"captured", "sentences"}
    for options in (
        {"weights": "auto:1MB", "prefill": "int8", "heal": "30s"}, {"weights": "int4", "method": "awq"},
        {"prune": "10%"}, {"target": "rtx"}, {"activations": "int8"},
    ):  # fmt: skip
        for each in works(captured, **options).values():
            used |= {kind for kind, amount in each.amounts.items()}
    assert used == set(KINDS)


def test_layers_of_a_config() -> None:
    assert _layers({"num_hidden_layers": 7}) == 7
    assert _layers({"n_layer": 5}) == 5
    assert _layers({"text_config": {"num_hidden_layers": 9}}) == 9
    assert _layers({"num_hidden_layers": "many"}) == 12


def test_a_stage_inside_another_is_timed_apart() -> None:
    clock = Timed(Watching())
    with clock.stage("a: passes"), clock.stage("pass calibrate"):
        pass
    assert clock.seconds["a: passes"] >= clock.seconds["pass calibrate"]
    assert clock.own["passes"] + clock.own["pass calibrate"] == pytest.approx(clock.seconds["a: passes"])
    assert clock.total == pytest.approx(clock.seconds["a: passes"])  # a stage inside another counts once


def test_every_stage_has_a_title_for_people() -> None:
    """All that is named in the sources where a stage is opened or foreseen; no two share a title."""
    rooms = [Path(leptonc.__file__).parent / room for room in ("build", "backends", "calibrate", "heal")]
    sources = "".join(path.read_text() for room in rooms for path in room.rglob("*.py"))
    named = set(re.findall(r"""\b(?:stage|_stage|work)\(f?"(?:{[\w.]*prefix})?([a-z ]+)\"""", sources))
    named |= {traits.compiles for traits in TRAITS.values()} - {""}
    assert len(named) > 20
    assert named <= set(TITLES)
    assert len(set(TITLES.values())) == len(TITLES)
    assert (shown("cpu: decoder: passes"), shown("other")) == ("cpu: decoder: preparing the graph", "other")


def test_what_a_build_took_is_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[set[str]] = []
    monkeypatch.setattr(Rates, "learn", lambda self, works, seconds: learnt.append(set(seconds)))
    build(BuildOptions(LLAMA, out=tmp_path / "a", weights="int8", fast=True, check=False))
    assert learnt == [{"open", "capture", "capture check", "passes", "weights"}]
    build(BuildOptions(LLAMA, out=tmp_path / "b", method="gptq", check=False, resume=tmp_path / "steps"))
    assert len(learnt) == 1  # parts of stages may have been there


def test_steps_that_have_stages_say_so() -> None:
    """A new step that opens a stage says what it does there."""
    folder = Path(str(steps_module.__file__)).parent
    for file in sorted(folder.glob("[a-z]*.py")):
        source = file.read_text()
        assert "clock.stage(" not in source or "def work(" in source, file.name
