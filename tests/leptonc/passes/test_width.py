"""The residual stream in the basis of its principal components, and a graph with fewer of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from leptonc.ir.groups import residual_stream
from leptonc.ir.residual import residual
from leptonc.ir.structure import embeddings
from leptonc.ir.weights import change, tensor_of
from leptonc.passes.base import Manager
from leptonc.passes.prune.width import SliceWidth, SliceWidthConfig, principal_axes, projection
from leptonc.passes.rotate import FoldNorms, Rotate, RotateConfig
from tests.leptonc import models

IDS = models.token_ids(sum(models.CHUNKS))
KEPT = 40
RANDOM = np.random.default_rng(3)
BASIS = np.linalg.qr(RANDOM.standard_normal((64, 64)))[0].astype(np.float32)
# A norm before an addition has gains that lead out of any subspace.
PRENORM = [n for n in models.DECODERS if n not in ("tiny-gemma2", "tiny-gemma3", "tiny-olmo2")]


def logits(model: ir.Model, folder: Path) -> NDArray[np.float32]:
    return models.Graph(model.clone(), folder).logits(IDS, models.CHUNKS, 64)


def in_a_subspace(name: str) -> ir.Model:
    """Returns a model whose residual stream has all of its features in `KEPT` dimensions, which no axis knows of."""
    model = models.captured(name).model
    found = residual(model)
    projector = BASIS[:, :KEPT] @ BASIS[:, :KEPT].T
    if found.spread.centred:  # what norms take the mean off is in the subspace too
        ones = np.full((64, 1), 1 / 8, np.float32)
        axes = np.linalg.qr(np.concatenate([ones, BASIS], 1))[0][:, :KEPT]
        projector = axes @ axes.T
    for value in found.weights():
        array = np.asarray(tensor_of(value).numpy())
        for axis in found.axes(value):
            array = np.moveaxis(np.moveaxis(array, axis, -1) @ projector, -1, axis)
        change(value, lambda array=array: array)
    return model


@pytest.mark.parametrize("name", models.others_apart(PRENORM))
def test_cutting_what_is_never_used_changes_nothing(name: str, tmp_path: Path) -> None:
    """Within 1e-5 of the largest logit, over the cache; the tied head included, through its projection."""
    model = in_a_subspace(name)
    before = logits(model, tmp_path)
    Manager().run(model, [FoldNorms()])
    table = np.asarray(tensor_of(next(embeddings(model)).inputs[0]).numpy())  # type: ignore[arg-type]
    basis = principal_axes([table.T @ table])  # its rows have all directions that the stream has
    Manager().run(model, [Rotate(RotateConfig("principal-components"), basis)])
    Manager().run(model, [SliceWidth(SliceWidthConfig(KEPT, 64))])
    assert residual_stream(model).counts["width"] == KEPT
    after = logits(model, tmp_path)
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma3", "tiny-gpt2"])
def test_everything_gets_narrower(name: str, tmp_path: Path) -> None:
    model = models.captured(name).model
    caches = {str(v.name): list(v.shape or ()) for v in model.graph.inputs}
    Manager().run(model, [FoldNorms(), SliceWidth(SliceWidthConfig(KEPT, 64))])
    found = residual(model)
    assert found.size == KEPT
    assert all(each.shape[1] == KEPT for each in found.readers)
    assert {str(v.name): list(v.shape or ()) for v in model.graph.inputs} == caches
    ratio = KEPT / 64
    for norm in found.norms:  # a mean over fewer
        gain = np.asarray(norm.inputs[1].const_value.numpy())  # type: ignore[union-attr]
        np.testing.assert_allclose(gain, np.full(KEPT, ratio**-0.5), rtol=1e-6)
    assert np.isfinite(logits(model, tmp_path)).all()


def test_axes_are_principal_components() -> None:
    scales = np.array([5.0, 0.1, 3.0, 1.0], np.float32)
    turn = np.linalg.qr(RANDOM.standard_normal((4, 4)))[0].astype(np.float32)
    moments = (turn * scales**2) @ turn.T
    axes = principal_axes([moments, 100 * moments])
    np.testing.assert_allclose(axes.T @ axes, np.eye(4), atol=1e-6)
    np.testing.assert_allclose(np.abs(axes.T @ turn), np.eye(4)[[0, 2, 3, 1]], atol=1e-4)


def test_a_projection_says_what_the_columns_that_stay_can() -> None:
    """Reference: least squares in float64 over centred logits, which softmax does not tell from others."""
    table = RANDOM.standard_normal((200, 12)).astype(np.float32) @ RANDOM.standard_normal((12, 12)).astype(np.float32)
    centred = table.astype(np.float64) - table.mean(0, dtype=np.float64)
    best = np.linalg.lstsq(centred[:, :9], centred, rcond=None)[0]
    np.testing.assert_allclose(projection(table, 9), best, rtol=1e-3, atol=1e-3)
