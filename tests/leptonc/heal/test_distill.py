"""A compressed graph learns from the original: it gets better on texts that it did not learn from, and repeatably."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from leptonc.errors import InputError, ResumeWarning
from leptonc.heal import distill, objective
from leptonc.heal.budget import Budget
from leptonc.heal.distill import Healed, Settings, heal
from leptonc.heal.graph import Graph
from leptonc.heal.trainable import Free, LowRank, low_rank, put, recoverable
from leptonc.ir.ports import inputs_of
from leptonc.passes.fuse_linears import FuseLinears
from leptonc.passes.quantize.weights import QuantizeWeights, QuantizeWeightsConfig
from tests.leptonc import models
from tests.leptonc.heal.test_graph import given_to, on_torch

WINDOWS = [np.asarray(models.token_ids(24, seed), np.int64) for seed in range(32)]
INT4 = QuantizeWeightsConfig(bits=4, block_size=16, symmetric=False, embedding_bits=8, half_scales=True)


@contextmanager
def stage(name: str, total: int) -> Any:
    yield lambda _: None


def pair(name: str, config: QuantizeWeightsConfig = INT4) -> tuple[ir.Model, ir.Model]:
    original = models.captured(name, max_seq_len=64).model
    student = original.clone()
    QuantizeWeights(config)(student)
    return student, original


def run(
    student: ir.Model, original: ir.Model, steps: int, folder: Path, trainable: Any = None, **options: Any
) -> Healed:
    settings = options.pop("settings", Settings(rate=2e-3, batch=2))
    budget = options.pop("budget", Budget(steps=steps))
    return heal(
        student, original, options.pop("windows", WINDOWS), trainable or recoverable(student), budget, folder=folder,
        settings=settings, stage=stage, **options,
    )  # fmt: skip


def divergence(student: ir.Model, original: ir.Model) -> float:
    """Of logits, on the held-out windows, in float64: the reference of what healing says of itself."""
    total, held = 0.0, WINDOWS[14:18]  # one of HELD_OUT, in the middle
    for window in held:
        p, q = (on_torch(Graph(m), inputs_of(m, window))[0].astype(np.float64)[0] for m in (original, student))
        p, q = (each - np.log(np.exp(each).sum(-1, keepdims=True)) for each in (p, q))
        total += float((np.exp(p) * (p - q)).sum(-1).mean())
    return total / len(held)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2", "tiny-gemma3"])
def test_a_decoder_is_nearer_to_the_original_afterwards(name: str, tmp_path: Path) -> None:
    student, original = pair(name)
    before = divergence(student, original)
    healed = run(student, original, 20, tmp_path)
    assert healed.before.loss == pytest.approx(before, rel=1e-3)
    put(student, healed.arrays)
    after = divergence(student, original)
    assert healed.after.loss == pytest.approx(after, rel=1e-3)
    assert after < 0.985 * before
    assert (healed.steps, healed.windows, healed.held_out) == (20, 28, 4)
    assert not list(tmp_path.iterdir())


def test_of_many_windows_only_those_that_it_comes_to_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight windows are judged on at most; the original runs on a window once, just before it is needed."""
    student, original = pair("tiny-llama")
    seen: list[tuple[int, ...]] = []
    plain = objective.Halves.many

    def many(self: Any, windows: Any, variables: Any) -> Any:
        if self.model is original:
            seen.extend(map(tuple, windows))
        return plain(self, windows, variables)

    monkeypatch.setattr(objective.Halves, "many", many)
    windows = [np.asarray(models.token_ids(24, seed), np.int64) for seed in range(100)]
    healed = run(student, original, 3, tmp_path, windows=windows)
    assert (healed.windows, healed.held_out) == (6, 8)
    assert len(seen) == len(set(seen)) == 2 * distill.AHEAD + 8


def test_an_encoder_is_nearer_to_the_original_afterwards(tmp_path: Path) -> None:
    student, original = pair("tiny-bert")
    healed = run(student, original, 20, tmp_path, settings=Settings(rate=5e-3))
    found: list[float] = []
    put(student, healed.arrays)
    for window in WINDOWS[14:18]:
        mine, theirs = (on_torch(Graph(m), inputs_of(m, window))[0].astype(np.float64) for m in (student, original))
        found.append(np.square(mine - theirs).sum() / np.square(theirs).sum())
    assert healed.after.loss == pytest.approx(np.mean(found), rel=1e-3)
    assert healed.after.loss < 0.5 * healed.before.loss
    assert healed.after.perplexity == 0


def test_what_is_healed_is_what_is_stored(tmp_path: Path) -> None:
    """Codes stay, scales are float16's, zero points whole, and layers that are joined have the healed rows."""
    student, original = pair("tiny-llama")
    names = list(student.graph.initializers)
    codes = {n: v.const_value.numpy() for n, v in student.graph.initializers.items() if n.endswith(".codes")}  # type: ignore[union-attr]
    healed = run(student, original, 12, tmp_path)
    put(student, healed.arrays)
    assert list(student.graph.initializers) == names
    scales = [n for n in healed.arrays if n.endswith(".scales")]
    assert len(scales) == 21
    for name in scales:
        stored = student.graph.initializers[name].const_value.numpy()  # type: ignore[union-attr]
        np.testing.assert_array_equal(stored, stored.astype(np.float16).astype(np.float32))
        np.testing.assert_array_equal(stored, healed.arrays[name])
    zeros = [n for n in healed.arrays if n.endswith(".zeros")]
    assert len(zeros) == 21
    for name in zeros:
        found = healed.arrays[name]
        assert ((found >= 0) & (found <= 15) & (found == np.rint(found))).all()
        stored = student.graph.initializers[name].const_value.numpy().astype(np.float32)  # type: ignore[union-attr]
        np.testing.assert_array_equal(stored, found)
    for name, array in codes.items():
        np.testing.assert_array_equal(student.graph.initializers[name].const_value.numpy(), array)  # type: ignore[union-attr]
    given = given_to(student)
    before = on_torch(Graph(student), given)[0]
    assert FuseLinears().run(student) > 0
    np.testing.assert_allclose(on_torch(Graph(student), given)[0], before, atol=1e-4)


def test_zero_steps_and_a_rate_of_zero_change_nothing(tmp_path: Path) -> None:
    student, original = pair("tiny-llama")
    none = run(student, original, 0, tmp_path, budget=Budget(seconds=1e-9))
    assert (none.steps, none.arrays) == (0, {})
    still = run(student, original, 3, tmp_path, settings=Settings(rate=0.0))
    assert (still.steps, still.arrays) == (3, {})
    assert none.before == none.after == still.after


def test_it_is_never_worse_than_the_start(tmp_path: Path) -> None:
    student, original = pair("tiny-llama")
    healed = run(student, original, 4, tmp_path, settings=Settings(rate=3.0))
    assert healed.losses[-1][1] > healed.before.loss  # it did go astray
    assert healed.after.loss <= healed.before.loss


@pytest.mark.parametrize("kind", ["free", "low rank"])
def test_weights_that_lost_something_recover(kind: str, tmp_path: Path) -> None:
    """What pruning needs: float32 weights, a part of which is zero now, learn to make up for it."""
    original = models.captured("tiny-gpt2", max_seq_len=64).model
    student = original.clone()
    trainable: Any = low_rank(student, 4)
    if kind == "free":
        trainable = {n: Free() if isinstance(k, LowRank) else k for n, k in trainable.items()}
    name = next(n for n, k in low_rank(student, 4).items() if isinstance(k, LowRank))
    weight = student.graph.initializers[name]
    array = weight.const_value.numpy().copy()  # type: ignore[union-attr]
    array[: array.shape[0] // 2] = 0
    weight.const_value = ir.tensor(array, name=name)
    before = divergence(student, original)
    healed = run(student, original, 40, tmp_path, trainable, settings=Settings(rate=1e-2))
    put(student, healed.arrays)
    after = divergence(student, original)
    assert after < 0.7 * before
    assert healed.after.loss == pytest.approx(after, rel=1e-3)


class Fitted:
    """Answers with values that are given, and keeps what it was asked."""

    def __init__(self, values: dict[str, np.ndarray]) -> None:
        self.values, self.most, self.seen = values, 0, []

    def count(self, most: int) -> int:
        self.most = most
        return most

    def __call__(self, windows: Any) -> dict[str, np.ndarray]:
        self.seen += [tuple(each) for each in windows]
        return self.values


def test_learning_begins_with_what_is_fitted_on_other_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = models.captured("tiny-gpt2", max_seq_len=64).model
    student = original.clone()
    trainable = low_rank(student, 4)
    name = next(n for n, k in trainable.items() if isinstance(k, LowRank))
    whole = student.graph.initializers[name].const_value.numpy().copy()  # type: ignore[union-attr]
    student.graph.initializers[name].const_value = ir.tensor(whole * 0.5, name=name)
    before = divergence(student, original)
    learned: list[int] = []
    plain = objective.Objective.learn
    monkeypatch.setattr(
        objective.Objective, "learn", lambda self, at, *rest: learned.append(at) or plain(self, at, *rest)
    )
    fit = Fitted({name: whole})
    healed = run(student, original, 20, tmp_path, trainable, fit=fit, settings=Settings(rate=1e-6, batch=1))
    assert healed.fitted
    assert fit.most == len(fit.seen) == 14  # half of those that are not held out
    assert not {tuple(WINDOWS[at]) for at in learned} & set(fit.seen)
    assert not set(range(14, 18)) & set(learned)
    assert (len(set(learned)), healed.windows) == (14, 14)
    assert healed.before.loss == pytest.approx(before, rel=1e-3)
    assert healed.after.loss < 1e-3 * before
    np.testing.assert_allclose(healed.arrays[name], whole, atol=1e-3 * np.abs(whole).max())
    np.testing.assert_array_equal(student.graph.initializers[name].const_value.numpy(), whole * 0.5)  # type: ignore[union-attr]


def test_a_fit_that_makes_it_worse_is_not_kept(tmp_path: Path) -> None:
    original = models.captured("tiny-gpt2", max_seq_len=64).model
    student = original.clone()
    trainable = low_rank(student, 4)
    name = next(n for n, k in trainable.items() if isinstance(k, LowRank))
    array = student.graph.initializers[name].const_value.numpy()  # type: ignore[union-attr]
    student.graph.initializers[name].const_value = ir.tensor(array * 0.98, name=name)
    fit = Fitted({name: np.zeros_like(array)})
    healed = run(student, original, 2, tmp_path, trainable, fit=fit, settings=Settings(rate=1e-6, batch=1))
    assert fit.most == 2  # as many as steps
    plain = run(student, original, 2, tmp_path, trainable, settings=Settings(rate=1e-6, batch=1))
    assert not healed.fitted
    assert healed.losses == plain.losses
    assert set(healed.arrays) == set(plain.arrays)
    assert all(np.array_equal(array, plain.arrays[n]) for n, array in healed.arrays.items())


def test_a_tied_embedding_and_head_stay_one(tmp_path: Path) -> None:
    student, original = pair("tiny-gemma3", dataclasses.replace(INT4, embedding_bits=0))
    trainable = recoverable(student)
    assert sorted(name for name in trainable if "lm_head" in name) == ["lm_head.weight.scales", "lm_head.weight.zeros"]
    healed = run(student, original, 10, tmp_path, trainable)
    put(student, healed.arrays)
    assert divergence(student, original) == pytest.approx(healed.after.loss, rel=1e-3)


def interrupted_after(steps: int) -> Callable[..., Any]:
    """`Learner.step`, and Ctrl-C at the start of the step after so many."""
    plain, taken = distill.Learner.step, [0]

    def step(self: Any, *arguments: Any) -> float:
        if taken[0] == steps:
            raise KeyboardInterrupt
        taken[0] += 1
        return plain(self, *arguments)

    return step


def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student, original = pair("tiny-llama")
    whole = run(student, original, 12, tmp_path)
    state = tmp_path / "kept" / "heal-cpu.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(distill.Learner, "step", interrupted_after(7))
        with pytest.raises(KeyboardInterrupt):
            run(student, original, 12, tmp_path, resume=state)
    assert state.is_file()
    with monkeypatch.context() as patch:
        patch.setattr(distill.Learner, "step", interrupted_after(5))  # as many as are left
        resumed = run(student, original, 12, tmp_path, resume=state)
    assert resumed.losses == whole.losses
    assert set(resumed.arrays) == set(whole.arrays) != set()
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(resumed.arrays[name], array)
    assert not list(state.parent.iterdir())


def test_a_state_of_another_run_is_refused_and_a_damaged_one_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, original = pair("tiny-llama")
    state = tmp_path / "heal.safetensors"
    monkeypatch.setattr(distill.Learner, "step", interrupted_after(2))
    with pytest.raises(KeyboardInterrupt):
        run(student, original, 12, tmp_path, resume=state)
    for changes in ({"settings": Settings(seed=1)}, {"windows": WINDOWS[1:]}, {"budget": Budget(steps=13)}):
        with pytest.raises(InputError, match="found another's"):
            run(student, original, 12, tmp_path, resume=state, **changes)
    whole = state.read_bytes()
    for damaged in (whole[:100], whole[:-1] + bytes([whole[-1] ^ 1]), b""):  # one bit of a number, too
        state.write_bytes(damaged)
        with pytest.warns(ResumeWarning, match="healing begins anew"), pytest.raises(KeyboardInterrupt):
            run(student, original, 12, tmp_path, resume=state)
        assert state.with_name("heal.safetensors.damaged").read_bytes() == damaged


def test_what_cannot_be_healed(tmp_path: Path) -> None:
    student, original = pair("tiny-llama")
    with pytest.raises(InputError, match="weights that healing can change, found none"):
        heal(student, original, WINDOWS, {}, Budget(steps=1), folder=tmp_path, stage=stage)
    with pytest.raises(InputError, match="found no nonsense"):
        run(student, original, 1, tmp_path, {"nonsense": Free()})
    with pytest.raises(InputError, match="at least 2 windows"):
        run(student, original, 1, tmp_path, windows=WINDOWS[:1])
    with pytest.raises(InputError, match="a rank of 1 or more"):
        run(student, original, 1, tmp_path, {"model.norm.weight": LowRank(0)})


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student, original = pair("tiny-llama")
    with monkeypatch.context() as patch:
        patch.setattr(distill.Objective, "learn", lambda *_: math.nan)
        with pytest.raises(InputError, match="finite loss while healing, found nan in step 1"):
            run(student, original, 2, tmp_path)
    floats = original.clone()
    for model, name in ((student, "model.norm.weight"), (floats, "model.layers.0.input_layernorm.weight")):
        norm = model.graph.initializers[name]
        norm.const_value = ir.tensor(np.full(norm.shape.numpy(), np.inf, np.float32), name=norm.name)  # type: ignore[union-attr]
        with pytest.raises(InputError, match="finite loss before healing"):
            run(model, original, 2, tmp_path, low_rank(model, 2))


def test_adam_is_torchs(tmp_path: Path) -> None:
    """The same steps as torch.optim.Adam, its bias corrections among them."""
    student, _ = pair("tiny-llama")
    kind = Free().of(student.graph.initializers["model.norm.weight"], np.random.default_rng(0))
    learner, weigh = distill.Learner([kind]), torch.randn(kind.start[0].shape)
    reference = torch.zeros(kind.start[0].shape, requires_grad=True)
    optimizer = torch.optim.Adam([reference], lr=1e-2, betas=(0.9, 0.98), eps=1e-12)
    for _ in range(5):

        def loss(variables: Any) -> float:
            found = ((variables[kind.name] - 1).square() * weigh).sum()
            found.backward()
            return float(found.detach())

        learner.step(loss, 1e-2, (0.9, 0.98))
        optimizer.zero_grad()
        ((kind.variables((reference,))[kind.name] - 1).square() * weigh).sum().backward()
        optimizer.step()
    learned = learner.state.learned.view(kind.start[0].shape)
    torch.testing.assert_close(learned, reference.detach(), rtol=1e-5, atol=1e-6)
