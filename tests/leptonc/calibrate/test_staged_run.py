"""A graph run in stages sees what the whole graph sees, whatever the bound on memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from leptonc.calibrate import staged_run as walk_module
from leptonc.calibrate.code_solver import as_stored, inputs_of
from leptonc.calibrate.staged_run import Stage, linear_stages, stages, walk
from leptonc.ir.structure import layer_of, linears, weight_of
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
            walk_module.fill_types(model.graph)
            session = walk_module.open_stage(model, one, list(one.linears), {}, folder)
            for batch in batches:
                used = {i.name for i in session.get_inputs()}
                feed = {k: v for k, v in batch.items() if k in used}
                for value, x in zip(one.linears, session.run(None, feed), strict=True):
                    see(one, value, x)
        else:
            walk(model, batches, see, lambda _: {}, folder, memory=memory)
    return {path: np.stack(each) for path, each in found.items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("memory", [0, 2**30])
def test_layers_see_what_they_see_in_the_whole_graph(name: str, memory: int, tmp_path: Path) -> None:
    found, wanted = seen_by(name, tmp_path, memory), seen_by(name, tmp_path, 0, whole=True)
    assert list(found) == list(wanted)
    assert found
    for path, x in wanted.items():
        np.testing.assert_allclose(found[path], x, rtol=1e-4, atol=1e-4 * float(np.abs(x).max()), err_msg=path)
    assert not list(tmp_path.glob(".calibrate*"))


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


@pytest.mark.parametrize("beside", [False, True])
def test_a_node_runs_once_for_each_stream(beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_source("sample:tiny-gemma3") as source:
        model = models.capture(source, max_seq_len=64).model
    opened: list[str] = []
    real = walk_module.open_stage

    def counted(model: ir.Model, stage: Stage, *more: Any) -> Any:
        opened.extend(str(node.name) for node in stage.nodes)
        return real(model, stage, *more)

    monkeypatch.setattr(walk_module, "open_stage", counted)
    batch = inputs_of(model, np.asarray(models.token_ids(20, 1), np.int64))
    walk(model, [batch], lambda *_: None, lambda _: {}, tmp_path, beside=beside)
    assert opened
    assert set(Counter(opened).values()) == {1 + beside}


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

    walk(model, batches, see, solve, tmp_path, beside=True)
    assert len(found) == 4 * 3
    for path, seen in found.items():
        x, exact = (np.stack(each) for each in zip(*seen, strict=True))
        scale = float(np.abs(wanted[path]).max())
        np.testing.assert_allclose(exact, wanted[path], rtol=1e-4, atol=1e-4 * scale, err_msg=path)
        np.testing.assert_allclose(x / 0.05, np.rint(x / 0.05), atol=1e-3)
        assert (not x.any()) == path.endswith(("o_proj", "down_proj"))  # what zeros made
