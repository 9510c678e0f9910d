"""What two states of a model say is compared over rows of logits that are made a few at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from leptonc.calibrate import output_change as said_module
from leptonc.calibrate.output_change import OutputChange
from leptonc.ir.ports import inputs_of
from tests.leptonc import models

FIRST = 2


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma2", "tiny-phi3"])  # with a soft cap; a head of its own
def test_divergences_are_those_of_whole_logits_in_float64(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.captured(name, max_seq_len=64).model
    said = OutputChange(model, tmp_path, first=FIRST)
    head = next(v for node in model.graph for v in node.outputs if v.name == said.name)
    texts = [np.asarray(models.token_ids(23, seed), np.int64) for seed in (1, 2)]
    graph = model.clone()
    graph.graph.outputs.append(next(v for node in graph.graph for v in node.outputs if v.name == head.name))
    run = models.Graph(graph, tmp_path)
    made = [run(**inputs_of(model, text)) for text in texts]

    # Rows of three: the text does not divide.
    monkeypatch.setattr(said_module, "LOGITS", 3 * made[0]["logits"].shape[-1])
    before, after = (each[said.name] for each in made)
    found = said.divergences(before, {"other": after, "same": before})

    logits = [each["logits"].reshape(-1, each["logits"].shape[-1])[FIRST:].astype(np.float64) for each in made]
    old, new = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in logits)
    wanted = (np.exp(old) * (old - new)).sum(-1).mean()
    assert found["other"] == pytest.approx(wanted, rel=1e-4)
    assert found["same"] == pytest.approx(0, abs=1e-7)
    assert wanted > 1e-3


def test_a_model_without_logits_says_its_output(tmp_path: Path) -> None:
    model = models.captured("tiny-bert", max_seq_len=64).model
    assert OutputChange(model, tmp_path).name == model.graph.outputs[0].name


def test_a_classifiers_row_is_of_the_whole_text(tmp_path: Path) -> None:
    """Leaving the first token out would leave nothing."""
    model = models.captured("tiny-bert-classifier", max_seq_len=64).model
    rng = np.random.default_rng(0)
    before, after = rng.standard_normal((2, 1, 3)).astype(np.float32)
    old, new = (x.astype(np.float64) - np.log(np.exp(x.astype(np.float64)).sum()) for x in (before, after))
    wanted = float((np.exp(old) * (old - new)).sum())
    found = OutputChange(model, tmp_path, first=1).divergences(before, {"other": after})
    assert found["other"] == pytest.approx(wanted, rel=1e-5)
