"""Another basis for the residual stream leaves what a graph computes as it was, over the cache too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from leptonc.errors import InputError
from leptonc.ir import edit
from leptonc.ir.residual import residual
from leptonc.passes.base import Manager
from leptonc.passes.rotate import FoldNorms, Rotate, RotateConfig
from tests.leptonc import models

IDS = models.token_ids(sum(models.CHUNKS))


def orthogonal(size: int, seed: int = 0) -> NDArray[np.float32]:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0].astype(np.float32)


def logits(model: ir.Model, folder: Path) -> NDArray[np.float32]:
    return models.Graph(model.clone(), folder).logits(IDS, models.CHUNKS, 64)


@pytest.mark.parametrize("name", models.others_apart(models.DECODERS, (*models.FEW, "tiny-starcoder2")))
def test_the_graph_computes_the_same(name: str, tmp_path: Path) -> None:
    """Within 1e-5 of the largest logit; norms, whatever kind they were, divide by a root mean square alone."""
    model = models.captured(name).model
    before = logits(model, tmp_path)
    Manager().run(model, [FoldNorms()])
    found = residual(model)
    assert all(norm.op_type == "RMSNormalization" for norm in found.norms)
    assert all((np.asarray(norm.inputs[1].const_value.numpy()) == 1).all() for norm in found.norms)  # type: ignore[union-attr]
    folded = logits(model, tmp_path)
    names = set(model.graph.initializers)
    Manager().run(model, [Rotate(RotateConfig("random"), orthogonal(found.size))])
    turned = logits(model, tmp_path)
    assert set(model.graph.initializers) == names
    for each in (folded, turned):
        assert np.abs(each - before).max() <= 1e-5 * np.abs(before).max()
    weight = model.graph.initializers[str(found.readers[0].weight.name)].const_value
    assert isinstance(weight, ir.LazyTensor)  # made when it is read


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    """The last norm's gains go into a layer of their own: the embedding is not the head's alone."""
    model = models.captured("tiny-gpt2").model
    before = set(model.graph.initializers)
    Manager().run(model, [FoldNorms(), Rotate(RotateConfig("random"), orthogonal(64))])
    added = {name for name in model.graph.initializers if name not in before and "weight" in name}
    assert added == {"transformer.ln_f.gain.weight", "transformer.wte.centre.weight"}
    tables = [n for n, v in model.graph.initializers.items() if list(v.shape or ()) == [512, 64]]
    assert tables == ["lm_head.weight"]


@pytest.mark.parametrize("name", models.others_apart(models.ENCODERS))
def test_a_stream_that_is_an_output_is_refused(name: str) -> None:
    model = models.captured(name).model
    with pytest.raises(InputError, match="expected a residual stream that norms and linear layers alone"):
        Manager().run(model, [FoldNorms()])


@pytest.mark.parametrize(
    ("op", "operand", "found"),
    [
        ("Mul", np.linspace(1, 2, 64, dtype=np.float32), "scales its features apart"),
        ("Add", np.float32(1), "adds a number to it"),
        ("Gelu", None, "it runs through Gelu"),
    ],
)
def test_what_minds_the_basis_is_named(op: str, operand: object, found: str) -> None:
    model = models.captured("tiny-llama").model
    gather = next(node for node in model.graph if node.op_type == "Gather")
    inputs = [gather.outputs[0]]
    if operand is not None:
        inputs.append(edit.initializer(model.graph, "operand", ir.tensor(operand, name="operand")))  # type: ignore[arg-type]
    edit.append(gather, op, inputs, name="strange")
    with pytest.raises(InputError) as caught:
        residual(model)
    assert found in caught.value.message
    assert "model.embed_tokens" in caught.value.message
