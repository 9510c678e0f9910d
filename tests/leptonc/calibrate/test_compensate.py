"""Layers that sum over units, fitted on what the cut model computes: against transformers and numpy."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from leptonc.calibrate.compensate import Regression, compensate, ridge_of
from leptonc.calibrate.input_moments import InputMoments
from leptonc.calibrate.moments import SINK
from leptonc.calibrate.observe import moments
from leptonc.calibrate.reconstruct import RIDGE as RIDGE_ALONE
from leptonc.calibrate.reconstruct import fitted
from leptonc.ir.groups import groups
from leptonc.ir.ports import inputs_of
from leptonc.ir.structure import Linear
from leptonc.passes.prune.choose import columns_of
from leptonc.passes.prune.plan import by_block, cuts_of
from leptonc.passes.prune.remove import Prune, PruneConfig
from leptonc.sources import open_source
from tests.leptonc import models

TEXTS = [np.asarray(models.token_ids(40, seed), np.int64) for seed in (1, 2, 3)]
RIDGE = 0.05


def _consumers(model: ir.Model) -> list[Linear]:
    return [linear for block in groups(model).blocks for linear in block.consumers]


def _weights(linear: Linear, found: dict[str, Any]) -> np.ndarray:
    weight = found[str(linear.weight.name)]
    return weight if linear.transposed else weight.T


def test_moments_of_all_consumers_are_those_of_their_inputs(tmp_path: Path) -> None:
    with open_source("sample:tiny-llama") as source:
        model = models.capture(source, max_seq_len=64).model
        consumers = _consumers(model)
        found: dict[str, np.ndarray] = {}
        batches = [inputs_of(model, text) for text in TEXTS]
        use = lambda linear, each: found.update({linear.path: each})  # noqa: E731
        moments(model, groups(model).consumers, batches, use, tmp_path, memory=0)
    reference = models.reference("tiny-llama")
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = [
        reference.get_submodule(each.path).register_forward_pre_hook(
            lambda _, args, path=each.path: seen.setdefault(path, []).append(args[0][0])
        )
        for each in consumers
    ]
    with torch.no_grad():
        for text in TEXTS:
            reference(torch.from_numpy(text[None]))
    for hook in hooks:
        hook.remove()
    assert list(found) == list(seen)
    for path, parts in seen.items():
        x = torch.cat(parts).double().numpy()
        energy = np.square(x).sum(1)
        assert energy.max() < SINK * np.median(energy)
        wanted = x.T @ x / len(x)
        np.testing.assert_allclose(found[path], wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("memory", [0, 2**30])
def test_each_layer_is_fitted_to_the_dense_stream_on_what_the_cut_model_reads(memory: int, tmp_path: Path) -> None:
    """Reference: transformers with the weights found for all earlier layers, and ridge regression in float64."""
    random = np.random.default_rng(0)
    with open_source("sample:tiny-llama") as source:
        model = models.capture(source, max_seq_len=64).model
        consumers = _consumers(model)
        removed = {
            each.path: np.sort(random.choice(each.shape[1], each.shape[1] // 4, replace=False))
            for each in consumers[1::2]
        }
        found, report = compensate(model, TEXTS, consumers, removed, tmp_path, ridges=(RIDGE,), memory=memory)
    assert [each.path for each in report] == [each.path for each in consumers[1:]]
    assert all(each.after <= each.before for each in report)
    dense, cut = models.reference("tiny-llama"), None
    with open_source("sample:tiny-llama") as source:
        cut = models.reference_of(source)
    for linear in consumers[1:]:
        states: list[list[np.ndarray]] = []
        for network in (dense, cut):
            states.append(_states(network, linear.path))
        (_, dense_y, dense_in), (x, _, cut_in) = states
        target = dense_y + dense_in - cut_in
        weight = dense.get_submodule(linear.path).weight.detach().double().numpy()
        keep = np.delete(np.arange(weight.shape[1]), removed.get(linear.path, []))
        x = x[:, keep]
        moments = x.T @ x / len(x)
        level = RIDGE * np.trace(moments) / len(keep) * np.eye(len(keep))
        wanted = np.linalg.solve(moments + level, (target.T @ x / len(x) + weight[:, keep] @ level).T).T
        got = _weights(linear, found)
        np.testing.assert_allclose(got[:, keep], wanted, rtol=1e-3, atol=2e-3 * np.abs(wanted).max())
        assert not np.any(np.delete(got, keep, 1))
        cut.get_submodule(linear.path).weight.data = torch.from_numpy(np.ascontiguousarray(got))
    assert not list(tmp_path.iterdir())


def _states(network: Any, path: str) -> list[np.ndarray]:
    """What a layer reads and gives, and the residual stream before its block, float64 [tokens, …]."""
    seen: dict[str, list[torch.Tensor]] = {"x": [], "y": [], "stream": []}
    layer = path.rsplit(".", 2)[0]
    norm = "post_attention_layernorm" if ".mlp." in path else "input_layernorm"
    hooks = [
        network.get_submodule(path).register_forward_hook(
            lambda _, args, y: (seen["x"].append(args[0][0]), seen["y"].append(y[0]), None)[2]
        ),
        network.get_submodule(f"{layer}.{norm}").register_forward_pre_hook(
            lambda _, args: seen["stream"].append(args[0][0])
        ),
    ]
    with torch.no_grad():
        for text in TEXTS:
            network(torch.from_numpy(text[None]))
    for hook in hooks:
        hook.remove()
    return [torch.cat(each).double().numpy() for each in seen.values()]


@pytest.mark.parametrize("name", ["tiny-gpt2"])
def test_channels_that_copy_others_go_without_a_trace(name: str, tmp_path: Path) -> None:
    with open_source(f"sample:{name}") as source:
        captured = models.capture(source, max_seq_len=64)
        model = captured.model
        found = groups(model)
        removed: dict[str, np.ndarray] = {}
        for block in (b for b in found.blocks if b.kind == "mlp"):
            half = block.units // 2
            for value, spans in block.spread.initializers().items():
                array = np.array(value.const_value.numpy())  # type: ignore[union-attr]
                for span in (s for s in spans if value is not block.consumers[0].weight):
                    moved = np.moveaxis(array, span.axis, 0)
                    moved[span.start + half : span.start + 2 * half] = moved[span.start : span.start + half]
                value.const_value = ir.tensor(array, name=value.name)
            removed[block.consumers[0].path] = np.arange(half, 2 * half)
        before = _logits(model, tmp_path)
        new, report = compensate(model, TEXTS, _consumers(model), removed, tmp_path, ridges=(1e-7,))
        for weight, array in new.items():
            model.graph.initializers[weight].const_value = ir.tensor(array, name=weight)
        after = _logits(model, tmp_path)
    assert max(each.before for each in report) > 0.01
    np.testing.assert_allclose(after, before, atol=2e-3 * np.abs(before).max())


def _logits(model: ir.Model, folder: Path) -> np.ndarray:
    graph = models.Graph(model, folder)
    return np.stack([graph.logits(text.tolist(), (len(text),), len(text)) for text in TEXTS])


def test_a_block_that_goes_whole_is_zero_and_later_ones_are_fitted(tmp_path: Path) -> None:
    with open_source("sample:tiny-llama") as source:
        model = models.capture(source, max_seq_len=64).model
        consumers = _consumers(model)
        first = consumers[0]
        found, report = compensate(model, TEXTS, consumers, {first.path: np.arange(first.shape[1])}, tmp_path)
    assert not found[str(first.weight.name)].any()
    assert len(report) == len(consumers)
    assert sum(each.after for each in report[1:]) < sum(each.before for each in report[1:])


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-gemma2"])  # norms before blocks, and after
def test_a_graph_that_was_cut_is_fitted_as_the_whole_one_with_its_cuts(name: str, tmp_path: Path) -> None:
    """Reference: the whole model, run with zeros in the place of what goes (heads have no norm in common here)."""
    model = models.captured(name, max_seq_len=64).model
    found = groups(model)
    attention, mlp = (next(b for b in found.blocks if b.kind == kind) for kind in ("attention", "mlp"))
    cuts = cuts_of({attention.name: {"groups": "1"}, mlp.name: {"channels": f"3,5-{mlp.units // 2}"}})
    stay = by_block(found, cuts)
    removed: dict[str, np.ndarray] = {}
    for block in (attention, mlp):
        (linear,), masks = block.consumers, stay[block.name]
        assert masks is not None
        space = "channels" if block.kind == "mlp" else "heads"
        removed[linear.path] = np.sort(columns_of(block, space, linear)[~masks[space]].reshape(-1))
    whole, about = compensate(model, TEXTS, found.consumers, removed, tmp_path, ridges=(RIDGE,))
    student = model.clone()
    Prune(PruneConfig(cuts, "plan", "none"), {}, {})(student)
    consumers = groups(student).consumers
    cut, report = compensate(model, TEXTS, consumers, {}, tmp_path, student=student, ridges=(RIDGE,))
    assert [each.path for each in report] == [each.path for each in about]
    for before, after in zip(found.consumers, consumers, strict=True):
        keep = np.delete(np.arange(before.shape[1]), removed.get(before.path, []))
        wanted = _weights(before, whole)[:, keep]
        np.testing.assert_allclose(_weights(after, cut), wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
    assert any(each.after < 0.98 * each.before for each in report)


def test_ridge_is_small_where_the_text_says_much_and_large_where_it_says_nothing() -> None:
    random = np.random.default_rng(0)
    weight, other = random.standard_normal((2, 4, 30)).astype(np.float32)
    for tokens, truth, noise, wanted in ((2000, other, 0.1, 1e-3), (40, weight, 3.0, 10.0)):
        halves = []
        for _ in range(2):
            x = random.standard_normal((tokens, 30)).astype(np.float32)
            target = x @ truth.T + noise * random.standard_normal((tokens, 4)).astype(np.float32)
            halves.append(Regression(30, 4))
            halves[-1].add(x, target)
        assert ridge_of(halves, weight, (1e-3, 0.1, 10.0)) == wanted
        assert ridge_of(halves[:1], weight, (0.5, 0.1)) == 0.5
        both = Regression(30, 4) + halves[0] + halves[1]
        assert both.rows == 2 * tokens
        for each, parts in zip(both.moments(), zip(*(half.moments() for half in halves), strict=True), strict=True):
            np.testing.assert_allclose(each, (parts[0] + parts[1]) / 2, rtol=1e-4, atol=1e-5)


def test_a_cut_block_makes_up_for_what_it_loses_alone(tmp_path: Path) -> None:
    """Reference: ridge regression in float64 on what transformers' layers read."""
    with open_source("sample:tiny-llama") as source:
        model = models.capture(source, max_seq_len=64).model
        found = groups(model)
        cuts = cuts_of({"model.layers.0/attention": {"heads": "0,2"}, "model.layers.1/mlp": {"channels": "3-40,90"}})
        stay = by_block(found, cuts)
        clock = lambda *_: nullcontext(lambda _: None)  # noqa: E731
        seen = InputMoments(model, found.consumers, TEXTS, tmp_path, memory=2**30, clock=clock)
        weights, report = fitted(seen, found, stay, tmp_path)
    reference = models.reference("tiny-llama")
    wanted = {"model.layers.0.self_attn.o_proj": "heads", "model.layers.1.mlp.down_proj": "channels"}
    assert {each.path for each in report} == set(wanted)
    for block in found.blocks:
        (linear,) = block.consumers
        if linear.path not in wanted:
            assert str(linear.weight.name) not in weights
            continue
        x, _, _ = _states(reference, linear.path)
        weight = reference.get_submodule(linear.path).weight.detach().double().numpy()
        units = stay[block.name][wanted[linear.path]]  # type: ignore[index]
        mask = np.repeat(units, weight.shape[1] // len(units))
        moments = x.T @ x / len(x)
        inner = moments[np.ix_(mask, mask)]
        level = RIDGE_ALONE * np.trace(inner) / len(inner) * np.eye(len(inner))
        best = weight[:, mask] + np.linalg.solve(inner + level, moments[np.ix_(mask, ~mask)] @ weight[:, ~mask].T).T
        got = _weights(linear, weights)
        np.testing.assert_allclose(got[:, mask], best, rtol=1e-3, atol=1e-3 * np.abs(best).max())
        assert not got[:, ~mask].any()
        (about,) = (each for each in report if each.path == linear.path)
        assert about.after < about.before


def test_massive_rows_weigh_no_more_than_all_others() -> None:
    random = np.random.default_rng(0)
    x, target = random.standard_normal((200, 6)), random.standard_normal((200, 3))
    x[7] *= 1000
    target[9] *= 1000
    found = Regression(6, 3)
    found.add(x.astype(np.float32), target.astype(np.float32))
    massive = np.zeros(200, bool)
    massive[[7, 9]] = True
    scale = min(np.square(each[~massive]).sum() / np.square(each[massive]).sum() for each in (x, target))
    weigh = np.where(massive, scale, 1.0)[:, None]
    moments, cross = found.moments()
    np.testing.assert_allclose(moments, (x * weigh).T @ x / 200, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(cross, (target * weigh).T @ x / 200, rtol=1e-4, atol=1e-3)
    weight = random.standard_normal((3, 6)).astype(np.float32)
    off = np.square(x @ weight.T - target) * weigh
    assert found.error(weight) == pytest.approx(off.sum() / (np.square(target) * weigh).sum(), rel=1e-4)
