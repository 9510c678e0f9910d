"""Low-rank terms begin in the principal directions of what their layers read: beside numpy's, in float64."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from leptonc.calibrate.moments import is_sink
from leptonc.heal.directions import principal
from leptonc.heal.graph import Graph
from leptonc.heal.trainable import Free, LowRank, low_rank
from leptonc.ir.ports import inputs_of
from leptonc.ir.structure import Linear, linears
from tests.leptonc import models
from tests.leptonc.heal.test_graph import on_torch

WINDOWS = [np.asarray(models.token_ids(40, seed), np.int64) for seed in range(4)]
RANK = 3


def read_by(model: ir.Model, linear: Linear) -> np.ndarray:
    """What a layer reads of all texts, float64 [rows, in], without massive activations."""
    found = []
    for window in WINDOWS:
        x = on_torch(Graph(model, [str(linear.x.name)]), inputs_of(model, window))[0].astype(np.float64)
        rows = x.reshape(-1, x.shape[-1])
        found.append(rows[~is_sink(np.square(rows).sum(-1))])
    return np.concatenate(found)


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-bert-classifier"])
def test_all_directions_vary_alike_and_none_varies_more(name: str) -> None:
    model = models.captured(name, max_seq_len=64).model
    trainable = low_rank(model, RANK)
    found = principal(model, WINDOWS, trainable)
    assert list(found) == list(trainable)
    terms = 0
    for linear in linears(model):
        kind = found.get(str(linear.weight.name))
        if not isinstance(kind, LowRank) or kind.start is None:
            continue
        terms += 1
        rows = read_by(model, linear)
        energies = np.linalg.svd(rows, compute_uv=False)
        assert kind.start.shape == (RANK, linear.shape[1])
        made = rows @ kind.start.T.astype(np.float64)
        np.testing.assert_allclose(made.T @ made / np.square(made[:, 0]).sum(), np.eye(RANK), atol=1e-3)
        assert np.square(kind.start).sum(-1).mean() == pytest.approx(1, rel=1e-5)
        span = np.linalg.qr(kind.start.T.astype(np.float64))[0]
        assert np.square(rows @ span).sum() == pytest.approx(np.square(energies[:RANK]).sum(), rel=1e-4)
        # A matrix of the inputs' directions leaves the weight as it is until the other part is learned.
        value = model.graph.initializers[str(linear.weight.name)]
        term = kind.of(value, np.random.default_rng(0))
        np.testing.assert_array_equal(term.stored(term.start), value.const_value.numpy())  # type: ignore[union-attr]
        reads = term.start[0].T if kind.turned else term.start[1]
        np.testing.assert_array_equal(reads.numpy(), kind.start)
    assert terms == sum(isinstance(kind, LowRank) for kind in trainable.values())


def test_what_has_no_directions_begins_at_random() -> None:
    model = models.captured("tiny-llama", max_seq_len=64).model
    name = next(name for name, kind in low_rank(model, 2).items() if isinstance(kind, LowRank))
    few = principal(model, [WINDOWS[0][:3]], {name: LowRank(8), "model.norm.weight": Free()})
    assert few == {name: LowRank(8), "model.norm.weight": Free()}
    kind = few[name]
    assert isinstance(kind, LowRank)
    assert kind.start is None
    value = model.graph.initializers[name]
    one, other = (kind.of(value, np.random.default_rng(seed)).start[1] for seed in (0, 1))
    assert one.shape == (8, linears(model)[0].shape[1])
    assert not np.allclose(one, other)
    assert principal(model, WINDOWS, {"model.norm.weight": Free()}) == {"model.norm.weight": Free()}
