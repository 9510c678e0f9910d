"""What a text makes of channels, and how far layers turn the residual stream, beside transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leptonc.calibrate.moments import SINK
from leptonc.calibrate.observe import features, influence
from leptonc.errors import InputError
from leptonc.ir.groups import groups
from leptonc.ir.ports import inputs_of
from leptonc.passes.prune.importance import scores
from tests.leptonc import models

WINDOWS = [np.asarray(models.token_ids(24, seed), np.int64) for seed in (1, 2)]


def hooked(name: str, paths: dict[str, str]) -> dict[str, Any]:
    """Inputs ("in") or outputs ("out") of modules of transformers' model over the windows, float64 [tokens, width]."""
    model, found = models.reference(name), {}
    modules = dict(model.named_modules())

    def keep(path: str, x: Any) -> None:
        x = x[0] if isinstance(x, tuple) else x
        found.setdefault(path, []).append(x.detach().double().reshape(-1, x.shape[-1]).numpy())

    hooks = [
        modules[path].register_forward_hook(
            lambda _m, given, made, path=path, side=side: keep(path, given if side == "in" else made)
        )
        for path, side in paths.items()
    ]
    with torch.inference_mode():
        for window in WINDOWS:
            model(input_ids=torch.from_numpy(window[None]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return {path: np.concatenate(each) for path, each in found.items()}


@pytest.mark.parametrize("memory", [0, 2**30])
def test_means_and_squares_are_those_of_transformers(memory: int, tmp_path: Path) -> None:
    model = models.captured("tiny-llama", 64).model
    found = groups(model)
    batches = [inputs_of(model, window) for window in WINDOWS]
    known = features(model, found, batches, tmp_path, memory=memory)
    wanted = hooked("tiny-llama", dict.fromkeys(known, "in"))
    assert len(known) == 6
    for path, feature in known.items():
        x = wanted[path]
        energy = np.square(x).sum(1)
        halves = np.array_split(energy, 2)
        assert all((half <= SINK * np.median(half)).all() for half in halves)  # no sinks here: all tokens count alike
        np.testing.assert_allclose(feature.mean, x.mean(0), atol=1e-5 * np.abs(x).max())
        np.testing.assert_allclose(feature.square, np.square(x).mean(0), rtol=1e-3, atol=1e-6 * np.square(x).max())
    block = found.block("model.layers.1/attention")
    path = "model.layers.1.self_attn.o_proj"
    weight = dict(models.reference("tiny-llama").named_modules())[path].weight.detach().double().numpy()
    x = wanted[path]
    for method, spread in (("wanda", np.square(x).mean(0)), ("flap", x.var(0))):
        score = (np.square(weight).sum(0) * spread).reshape(2, -1).sum(1)  # two groups of two heads of 16
        np.testing.assert_allclose(scores(block, method, known), score, rtol=1e-3)
    assert list(tmp_path.iterdir()) == []


def test_massive_tokens_count_as_much_as_all_others() -> None:
    from leptonc.calibrate.observe import _Sums

    rows = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    rows[0] = 0
    rows[0, 3] = 1000
    sums = _Sums("x", 8)
    sums.add(rows)
    feature, ordinary = sums.feature(), np.square(rows[1:], dtype=np.float64).sum()
    assert feature.square[3] * 63 == pytest.approx(ordinary + np.square(rows[1:, 3]).sum(), rel=1e-5)
    np.testing.assert_allclose(feature.mean, rows[1:].mean(0), atol=1e-6)
    with pytest.raises(InputError, match="expected finite activations on the calibration text, found others at"):
        sums.add(rows * np.float32("nan"))


def test_influence_is_the_angle_that_a_layer_turns_its_input_by(tmp_path: Path) -> None:
    model = models.captured("tiny-qwen3", 64).model
    found = groups(model)
    known = influence(model, found, [inputs_of(model, window) for window in WINDOWS], tmp_path)
    before, after = (hooked("tiny-qwen3", dict.fromkeys(found.layers, side)) for side in ("in", "out"))
    assert list(known) == found.layers
    for path, value in known.items():
        x, y = before[path], after[path]
        cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
        assert value == pytest.approx(1 - cosine.mean(), abs=1e-5)
    assert len({round(v, 6) for v in known.values()}) == len(known)
