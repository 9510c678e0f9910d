"""The reference is transformers' own forward, with its weights in memory only while they are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from leptonc.errors import InputError
from leptonc.evaluate import reference as module
from leptonc.evaluate.reference import Reference, streamed
from leptonc.frontend.tasks import task_of
from leptonc.sources import open_source
from leptonc.sources.base import ComputedTensor
from tests.leptonc import models


def reference_of(name: str) -> Reference:
    with open_source(f"sample:{name}") as source:
        return Reference(source, task_of(source.config, source.modules))


def real(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if not p.is_meta}


@pytest.mark.parametrize("name", models.DECODERS)
@pytest.mark.parametrize("rows", [7, 1000])
def test_logits(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Soft caps and scales of the head are the model's own; blocks of rows follow each other."""
    monkeypatch.setattr(module, "BLOCK_BYTES", 4 * 512 * rows)
    ids = models.token_ids(40)
    reference = reference_of(name)
    found = list(reference.logits(ids))
    assert [start for start, _ in found] == list(range(0, 40, rows))
    got = np.concatenate([block for _, block in found])
    want = models.reference_logits(models.reference(name), ids)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 1e-5
    assert real(reference.model) == set()


@pytest.mark.parametrize("name", models.ENCODERS)
def test_rows(name: str) -> None:
    reference = reference_of(name)
    texts = [models.token_ids(n, seed=i) for i, n in enumerate((19, 3, 1))]
    got = reference.rows(texts)
    (form,) = reference.task.interface(reference.model.config).parts.values()
    names = [port.name for port in form.inputs]
    for row, ids in zip(got, texts, strict=True):
        given = {n: np.array([ids]) if n == "input_ids" else np.ones((1, len(ids)), np.int64) for n in names}
        if "token_type_ids" in given:
            given["token_type_ids"][:] = 0
        assert np.abs(row - models.reference_embeddings(name, given)[0]).max() <= 1e-5
    assert real(reference.model) == set()


class Two(nn.Module):
    def __init__(self, fail: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.fail = fail
        self.seen: list[set[str]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hook = self.second.register_forward_pre_hook(lambda *_: self.seen.append(real(self)))
        y: torch.Tensor = self.second(self.first(x))
        hook.remove()
        if self.fail:
            raise ValueError("failed")
        return y


def weights() -> dict[str, np.ndarray]:
    shapes = {"first.weight": (4, 3), "first.bias": (4,), "second.weight": (2, 4), "second.bias": (2,)}
    return {
        n: np.random.default_rng(i).standard_normal(s).astype(np.float32) for i, (n, s) in enumerate(shapes.items())
    }


def reading(log: list[str]) -> dict[str, Callable[[], np.ndarray]]:
    def read(name: str, array: np.ndarray) -> np.ndarray:
        log.append(name)
        return array

    return {n: (lambda n=n, a=a: read(n, a)) for n, a in weights().items()}


@pytest.mark.parametrize("keep", [False, True])
def test_parameters_are_real_while_their_module_runs(keep: bool) -> None:
    with torch.device("meta"):
        model = Two()
    log: list[str] = []
    x = torch.ones(1, 3)
    with torch.no_grad(), streamed(model, reading(log), keep=keep):
        assert real(model) == set()
        got = model(x).numpy()
        model(x)
        assert bool(real(model)) == keep
    assert real(model) == set()
    w = weights()
    want = (np.ones((1, 3)) @ w["first.weight"].T + w["first.bias"]) @ w["second.weight"].T + w["second.bias"]
    assert np.abs(got - want).max() <= 1e-5
    assert len(log) == (4 if keep else 8)
    second = {"second.weight", "second.bias"}
    assert model.seen[0] - second == ({"first.weight", "first.bias"} if keep else set())
    with pytest.raises(RuntimeError, match="meta"):
        model(x)  # the hooks are gone: nothing is real


@pytest.mark.parametrize("keep", [False, True])
def test_a_forward_that_fails_leaves_nothing_real(keep: bool) -> None:
    with torch.device("meta"):
        model = Two(fail=True)

    def fails() -> None:
        with torch.no_grad(), streamed(model, reading([]), keep=keep):
            model(torch.ones(1, 3))

    with pytest.raises(ValueError, match="failed"):
        fails()
    assert real(model) == set()
    assert not model.first._forward_pre_hooks


def test_weights_that_are_no_numbers_are_named() -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    with open_source("sample:tiny-llama") as source:
        bad = source.weights[name].read()
        bad[0, 0] = np.nan
        source.weights = {**source.weights, name: ComputedTensor(bad.shape, "F32", lambda: bad)}
        reference = Reference(source, task_of(source.config, source.modules))
    with pytest.raises(InputError, match=f"NaN or infinite values in `{name}`"):
        list(reference.logits([9, 10]))
    assert real(reference.model) == set()


def test_read_only_weights_are_copied() -> None:
    array: np.ndarray[Any, Any] = np.ones(3, np.float32)
    assert module._writable(array) is array
    array.flags.writeable = False
    copy = module._writable(array)
    assert copy.flags.writeable
    assert np.array_equal(copy, array)
