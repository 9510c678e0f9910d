"""A graph run a layer at a time sees what the whole graph sees, whatever the bound on memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leptonc.calibrate.solve import inputs_of
from leptonc.calibrate.walk import Stage, stages, walk
from leptonc.frontend.capture import capture
from leptonc.sources import open_source
from tests.leptonc import models

NAMES = ("tiny-llama", "tiny-gemma3", "tiny-gpt2", "tiny-bert-classifier")


def seen_by(name: str, folder: Path, memory: int, *, whole: bool = False) -> dict[str, np.ndarray]:
    """What linear layers of the layers read, by module path; `whole`: of the graph in one piece."""
    with open_source(f"sample:{name}") as source:
        model = capture(source, max_seq_len=64).model
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
            from leptonc.calibrate import walk as module

            module.fill_types(model.graph)
            session = module.open_stage(model, one, list(one.linears), {}, folder)
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
