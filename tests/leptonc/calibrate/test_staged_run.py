"""A graph run in stages sees what the whole graph sees, whatever the bound on memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from leptonc.calibrate import staged_run
from leptonc.calibrate.stage_session import open_stage
from leptonc.calibrate.staged_run import StagedRun, walk
from leptonc.calibrate.stages import Stage, linear_stages, stages
from leptonc.ir.ports import inputs_of
from leptonc.ir.structure import as_stored, layer_of, linears, weight_of
from leptonc.ir.types import fill_types
from leptonc.passes.quantize.activations import QuantizeActivations, QuantizeActivationsConfig
from leptonc.sources import open_source
from tests.leptonc import models

NAMES = ("tiny-llama", "tiny-gemma3", "tiny-gpt2", "tiny-bert-classifier")


def seen_by(name: str, folder: Path, memory: int, *, whole: bool = False) -> dict[str, np.ndarray]:
    """What linear layers of the layers read, by module path; `whole`: of the graph in one piece."""
    with open_source(f"sample:{name}") as source:
        model = models.capture(source, max_seq_len=64).model
        batches = [inputs_of(model, np.asarray(models.token_ids(20, seed), np.int64)) for seed in (1, 2)]
        found: dict[str, list[np.ndarray]] = {}

        def see(stage: Stage, value: str, x: Any) -> None:
            for linear in stage.linears[value]:
                found.setdefault(linear.path, []).append(np.array(x))

        if whole:
            (one,) = [Stage("", list(model.graph))]
            one.inputs = {str(v.name): v for v in model.graph.inputs}
            for each in stages(model):
                one.linears.update(each.linears)
            fill_types(model.graph)
            session = open_stage(model, one, list(one.linears), {}, folder)
            for batch in batches:
                used = {i.name for i in session.get_inputs()}
                feed = {k: v for k, v in batch.items() if k in used}
                for value, x in zip(one.linears, session.run(None, feed), strict=True):
                    see(one, value, x)
        else:
            walk(model, batches, see, lambda _: {}, folder, memory=memory)
    return {path: np.stack(each) for path, each in found.items()}


@pytest.mark.parametrize(("name", "memory"), list(zip(NAMES, (0, 2**30, 0, 2**30), strict=True)))
def test_layers_see_what_they_see_in_the_whole_graph(name: str, memory: int, tmp_path: Path) -> None:
    found, wanted = seen_by(name, tmp_path, memory), seen_by(name, tmp_path, 0, whole=True)
    assert list(found) == list(wanted)
    assert found
    for path, x in wanted.items():
        np.testing.assert_allclose(found[path], x, rtol=1e-4, atol=1e-4 * float(np.abs(x).max()), err_msg=path)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", NAMES)
def test_stages_of_a_walk_begin_with_linear_layers(name: str) -> None:
    with open_source(f"sample:{name}") as source:
        model = models.capture(source, max_seq_len=64).model
    cut = linear_stages(model, outside=True)
    assert not cut[0].linears
    for stage in cut[1:]:
        groups = list(stage.linears.values())
        assert groups
        assert stage.path == groups[0][0].path
        assert stage.linears.keys() <= stage.inputs.keys()  # nothing has to run before they are seen
    known = [each.path for stage in stages(model, outside=True) for group in stage.linears.values() for each in group]
    assert sorted(each.path for stage in cut for group in stage.linears.values() for each in group) == sorted(known)


def test_a_layer_that_serves_again_has_a_stage_for_each_time(tmp_path: Path) -> None:
    model = models.albert(layers=3).model
    cut = linear_stages(model)
    paths = [stage.path for stage in cut]
    assert len(set(paths)) == len(paths)
    again = [stage for stage in cut if "@" in stage.path]
    assert len(again) == 2 * len([stage for stage in cut if layer_of(stage.path) and stage not in again])
    for stage in cut[1:]:
        assert stage.linears.keys() <= stage.inputs.keys()
    seen: Counter[str] = Counter()
    text = inputs_of(model, np.asarray(models.token_ids(20), np.int64))
    walk(model, [text], lambda stage, value, x: seen.update([value]), lambda _: {}, tmp_path)
    assert seen == Counter({str(each.x.name): 1 for each in linears(model) if layer_of(each.path)})


@pytest.mark.parametrize("with_exact", [False, True])
def test_a_node_runs_once_for_each_graph(
    with_exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    with open_source("sample:tiny-gemma3") as source:
        model = models.capture(source, max_seq_len=64).model
    opened: list[str] = []

    def counted(model: ir.Model, stage: Stage, *more: Any, **named: Any) -> Any:
        opened.extend(str(node.name) for node in stage.nodes)
        return open_stage(model, stage, *more, **named)

    monkeypatch.setattr(staged_run, "open_stage", counted)
    text = inputs_of(model, np.asarray(models.token_ids(20, 1), np.int64))
    walk(model, [text], lambda *_: None, lambda _: {}, tmp_path, with_exact=with_exact)
    assert opened
    assert set(Counter(opened).values()) == {1 + with_exact}


def test_the_graph_as_it_was_runs_beside_nothing_rounded(tmp_path: Path) -> None:
    """Weights become zeros and activations are rounded; what is beside is what the whole graph makes (1e-4)."""
    name = "tiny-llama"
    wanted = seen_by(name, tmp_path, 0, whole=True)
    with open_source(f"sample:{name}") as source:
        model = models.capture(source, max_seq_len=64).model
    layers = tuple((each.path, 0.05, 128) for each in linears(model) if layer_of(each.path))
    QuantizeActivations(QuantizeActivationsConfig(False, layers)).run(model)
    batches = [inputs_of(model, np.asarray(models.token_ids(20, seed), np.int64)) for seed in (1, 2)]
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def see(stage: Stage, value: str, x: np.ndarray, exact: np.ndarray) -> None:
        found.setdefault(stage.linears[value][0].path, []).append((np.array(x), np.array(exact)))

    def solve(stage: Stage) -> dict[str, np.ndarray]:
        group = [each for some in stage.linears.values() for each in some]
        return {str(each.weight.name): 0 * as_stored(weight_of(each), each) for each in group}

    walk(model, batches, see, solve, tmp_path, with_exact=True)
    assert len(found) == 4 * 3
    for path, seen in found.items():
        x, exact = (np.stack(each) for each in zip(*seen, strict=True))
        scale = float(np.abs(wanted[path]).max())
        np.testing.assert_allclose(exact, wanted[path], rtol=1e-4, atol=1e-4 * scale, err_msg=path)
        np.testing.assert_allclose(x / 0.05, np.rint(x / 0.05), atol=1e-3)
        assert (not x.any()) == path.endswith(("o_proj", "down_proj"))  # what zeros made


def chain() -> ir.Model:
    """Three stages: a = x + w; b = 2 a; c = a b, so that `a` is read by two later stages."""
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[1, 3] x) => (float[1, 3] c) <float[3] w = {1, 2, 3}, float two = {2}>
        { a = Add (x, w)  b = Mul (a, two)  c = Mul (a, b) }"""
    )
    for node in model.graph:
        node.name = str(node.outputs[0].name)
    return model


def test_values_stay_until_their_last_reader(tmp_path: Path) -> None:
    model = chain()
    cut = stages(model, lambda node: str(node.name))
    texts = [{"x": np.full((1, 3), n, np.float32)} for n in (1, 5)]
    shown: list[tuple[int, list[str]]] = []
    with StagedRun(tmp_path, memory=0) as run:
        graph, doubled = run.graph(model, texts, cut, keep=["c"]), run.graph(model, texts, cut, keep=["c"])
        known: list[list[str]] = []
        for at, stage in run.over(cut):
            graph.run(at, observer=lambda text, values: shown.append((text, sorted(values))))
            doubled.run(at, {"w": np.array([2, 4, 6], np.float32)} if stage.path == "a" else None)
            known.append(sorted(graph.values[0]))  # before what this stage was the last to read is dropped
        assert graph.values[1].keys() == {"x", "c"}
    # The values are there after the run, whose files are gone.
    assert known == [["x"], ["a", "x"], ["a", "b", "x"], ["a", "b", "c", "x"]]
    assert shown == [(text, names) for names in (["a", "x"], ["a", "b"], ["a", "b", "c"]) for text in (0, 1)]
    for each, w in ((graph, [1, 2, 3]), (doubled, [2, 4, 6])):
        for text, values in zip(texts, each.values, strict=True):
            np.testing.assert_array_equal(values["c"], 2 * (text["x"] + np.float32(w)) ** 2)
    assert not list(tmp_path.iterdir())


def test_a_branch_keeps_what_differs_as_long_as_it_is_read(tmp_path: Path) -> None:
    model = chain()
    cut = stages(model, lambda node: str(node.name))
    texts = [{"x": np.full((1, 3), n, np.float32)} for n in (1, 5)]
    with StagedRun(tmp_path) as run:
        graph = run.graph(model, texts, cut, keep=["c"])
        branch, same = graph.branch(), graph.branch()
        for at, _ in run.over(cut):
            names = graph.needed(at)
            if not names:
                continue
            originals = list(graph.open(at, names)(graph.values))
            changed = graph.open(at, names, {"w": np.array([2, 4, 6], np.float32)}, once=True)
            for text, original in enumerate(originals):
                (mine,) = changed([branch.known(text)])
                branch.keep(at, text, mine, original)
                same.keep(at, text, original, original)
                graph.store(text, original)
    for text, values in zip(texts, branch.values, strict=True):
        assert values.keys() == {"c"}
        np.testing.assert_array_equal(values["c"], 2 * (text["x"] + np.float32([2, 4, 6])) ** 2)
    assert same.values == [{}, {}]
