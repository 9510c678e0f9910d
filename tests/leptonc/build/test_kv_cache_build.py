"""Builds whose cache holds 8-bit integers: what is stored, what runs, and requests that cannot be met."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers

import runtime_edge
from leptonc.build.to_artifact import BuildResult, build
from leptonc.calibrate.caches import cache_scales
from leptonc.errors import InputError
from leptonc.options import BuildOptions
from runtime_edge.cache import KVCache
from tests.leptonc import models

TEXT = "The valves close when the pressure falls, and a lamp tells the driver which of them did so. " * 12
IDS = models.token_ids(203)
CHUNKS = (61, 1, 1, 7, 1, 63, 1, 1, 59, 3, 5)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def built(source: str, text: Path, out: Path, **options: Any) -> BuildResult:
    given = {"weights": "fp32", "kv_cache": "int8", "calibration": text, "eval_text": text, **options}
    return build(BuildOptions(f"sample:{source}", out=out, **given))


class Rounded(transformers.DynamicCache):
    """transformers' own cache, its keys and values rounded as they are written."""

    def __init__(self, scales: dict[str, Any]) -> None:
        super().__init__()
        self.scales = scales

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **more: Any) -> Any:
        parts = []
        for what, states in (("key", key_states), ("value", value_states)):
            scale = self.scales[f"past_key_values.{layer_idx}.{what}"].astype(np.float64)
            step = torch.from_numpy(scale)[None, :, None]
            parts.append((torch.clip(torch.round(states.double() / step), -128, 127) * step).float())
        return super().update(*parts, layer_idx, *args, **more)


def scales_of(path: Path) -> dict[str, Any]:
    """Steps [heads, width] of each cache: those of the graph, by what its rotary tables multiply keys by."""
    with runtime_edge.load(path) as model:
        graph = ir.load(path / model.variant.main.file).graph
    found = {}
    for node in [n for n in graph if n.op_type == "GroupQueryAttention"]:
        cosines = node.inputs[7]
        root = 1.0 if cosines is None else cosines.const_value.numpy()[0, 0]  # type: ignore[union-attr]
        for past, scale, by in ((3, 12, root), (4, 13, 1.0)):
            steps = node.inputs[scale].const_value.numpy()[0, :, 0]  # type: ignore[union-attr]
            found[str(node.inputs[past].name)] = steps / np.float32(by)  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("source", ["tiny-llama", "tiny-gpt2", "tiny-gemma3", "tiny-qwen3"])
def test_the_cache_holds_rounded_keys_and_values(source: str, text: Path, tmp_path: Path) -> None:
    """Against transformers with a cache that is rounded with the same scales, in runs and token by token."""
    path = built(source, text, tmp_path / "a", check=False).path
    reference = models.reference(source)
    with torch.inference_mode():
        cache = Rounded(scales_of(path))
        want = reference(torch.tensor([IDS]), past_key_values=cache, use_cache=True).logits[0].numpy()
    plain = models.reference_logits(reference, IDS)
    with runtime_edge.load(path) as model:
        assert model.manifest.decoder is not None
        assert model.manifest.decoder.cache_dtype == "int8"
        found = models.runtime_logits(model, IDS, CHUNKS)
        whole = model.logits(IDS)
    # Codes that fall on the other side of a half differ by one step; nearly all fall on the same.
    loss = np.sqrt(np.square(plain - want).mean())
    assert loss > 1e-3
    assert np.sqrt(np.square(found - want).mean()) <= 0.2 * loss
    assert np.sqrt(np.square(whole - want).mean()) <= 0.2 * loss


def test_scales_are_the_greatest_magnitudes_of_channels(tmp_path: Path) -> None:
    """Against keys and values that transformers' own cache holds, in float64."""
    windows = [np.asarray(models.token_ids(50, seed), np.int64) for seed in (1, 2)]
    found = cache_scales(models.captured("tiny-llama").model, windows, tmp_path)
    caches = [transformers.DynamicCache() for _ in windows]
    with torch.inference_mode():
        for cache, window in zip(caches, windows, strict=True):
            models.reference("tiny-llama")(torch.from_numpy(window)[None], past_key_values=cache)
    assert len(found) == 2 * len(caches[0].layers)
    for at in range(len(caches[0].layers)):
        for name, part in (("keys", "key"), ("values", "value")):
            rows = np.concatenate([getattr(cache.layers[at], name)[0].numpy() for cache in caches], 1)
            want = np.abs(rows.astype(np.float64)).max(1) / 127
            np.testing.assert_allclose(found[f"past_key_values.{at}.{part}"], want, rtol=1e-4)


@pytest.mark.parametrize("gain", [1e30, np.nan])
def test_keys_and_values_that_are_not_finite_are_refused(gain: float, tmp_path: Path) -> None:
    """Of a gain and a weight that float32 holds, and a product that it does not; and of no number at all."""
    model = models.captured("tiny-llama").model
    for part, by in (("input_layernorm", gain), ("self_attn.v_proj", 1e15)):
        weight = next(v for name, v in model.graph.initializers.items() if name.endswith(f"layers.1.{part}.weight"))
        array = weight.const_value.numpy() * np.float32(by)  # type: ignore[union-attr]
        weight.const_value = ir.tensor(array, name=weight.name)
    message = r"expected finite keys and values on the calibration text, found others in past_key_values\.1\."
    with pytest.raises(InputError, match=message) as caught:
        cache_scales(model, [np.asarray(models.token_ids(20), np.int64)], tmp_path)
    assert caught.value.hint is not None
    assert "overflows float32" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_quarter_of_the_memory_and_the_same_text(text: Path, tmp_path: Path) -> None:
    """Prefixes are kept, the cache grows, and a prompt's continuation is that of a float cache, nearly."""
    whole = build(BuildOptions("sample:tiny-llama", out=tmp_path / "f", weights="fp32", check=False)).path
    path = built("tiny-llama", text, tmp_path / "a").path
    with runtime_edge.load(path) as model, runtime_edge.load(whole) as other:
        ids = model.tokenize(TEXT)[:200]
        np.testing.assert_allclose(model.score(ids), other.score(ids), atol=0.2)
        sizes = []
        for each in (model, other):
            assert each.manifest.decoder is not None
            cache = KVCache(each.manifest.decoder)
            cache.reserve(300)
            sizes.append(sum(buffer.nbytes for buffer in cache.buffers))
        assert 4 * sizes[0] == sizes[1]
        first = model.generate(IDS[:40], max_new_tokens=90, stop_token_ids=[]).token_ids
        assert model.generate(IDS[:40], max_new_tokens=90, stop_token_ids=[]).token_ids == first


def test_both_graphs_share_it(text: Path, tmp_path: Path) -> None:
    path = built("tiny-llama", text, tmp_path / "a", weights="int4", prefill="int8").path
    with runtime_edge.load(path) as model:
        assert model.variant.graph("decoder", "prompts") is not None
        assert len(model.generate(IDS[:40], max_new_tokens=50, stop_token_ids=[]).token_ids) == 50


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("tiny-bert", {}, "expected a model that generates text for --kv-cache"),
        ("tiny-llama", {"target": "rtx", "weights": "fp16"}, "expected a cache in the engine's own format"),
        ("tiny-llama", {"kv_cache": "int3"}, "expected kv_cache among int8, found 'int3'"),
    ],
)
def test_what_is_refused(source: str, options: dict[str, Any], message: str, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        built(source, text, tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()
