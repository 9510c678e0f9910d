"""Builds of models whose weights are finite and whose activations are not: refused, and nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from leptonc.build.to_artifact import build
from leptonc.errors import InputError
from leptonc.options import BuildOptions
from leptonc.sources import open_source

OPTIONS: dict[str, dict[str, Any]] = {
    "gptq": {"weights": "int4", "method": "gptq"},
    "awq": {"weights": "int4", "method": "awq"},
    "auto": {"weights": "auto:300kB"},
    "w8a8": {"weights": "int8", "activations": "int8"},
    "prefill": {"weights": "int4", "prefill": "shared", "fast": True},
}


def saved(folder: Path, gain: float, size: float) -> Path:
    """Writes a tiny llama as transformers does, the last layer's norm before its MLP and that one's weights enlarged.

    Args:
        folder: To write to.
        gain: Of the norm: what gate and up read is about so large.
        size: What the weights of gate and up are multiplied by.
    """
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    last = model.model.layers[-1]
    with torch.no_grad():
        last.post_attention_layernorm.weight.fill_(gain)
        last.mlp.gate_proj.weight.mul_(size)
        last.mlp.up_proj.weight.mul_(size)
    assert all(bool(torch.isfinite(each).all()) for each in model.parameters())
    model.save_pretrained(folder)
    with open_source("sample:tiny-llama") as source:
        (folder / "tokenizer.json").write_bytes(source.tokenizer_json)
    return folder


def refused(source: Path, tmp_path: Path, **options: Any) -> InputError:
    """Builds, and returns the error; nothing else is in the directory then."""
    with pytest.raises(InputError) as caught:
        build(BuildOptions(str(source), out=tmp_path / "a", max_seq_len=256, **options))
    assert [each.name for each in tmp_path.iterdir()] == [source.name]
    return caught.value


@pytest.mark.parametrize("name", OPTIONS)
def test_a_product_of_gate_and_up_that_overflows(name: str, text: Path, tmp_path: Path) -> None:
    """1e16 through weights of some thousands, squared, is beyond float32."""
    source = saved(tmp_path / "hf", 1e16, 1e5)
    error = refused(source, tmp_path, calibration=text, **OPTIONS[name])
    found = "activations on the calibration text, found others at the input of model.layers.1.mlp.down_proj"
    if name == "auto":  # which looks at what the whole model says first
        found = "values of logits on the calibration text, found others"
    assert error.message == f"expected finite {found}"
    assert error.hint is not None
    assert "overflows float32" in error.hint


@pytest.mark.parametrize("name", OPTIONS)
def test_squares_whose_sum_overflows(name: str, text: Path, tmp_path: Path) -> None:
    """Each token's energy is a number of float32, that of all together is none."""
    source = saved(tmp_path / "hf", 1e18, 1e-19)
    error = refused(source, tmp_path, calibration=text, check=False, **OPTIONS[name])
    assert error.message == (
        "expected finite activations on the calibration text, found others at the input of model.layers.1.mlp.gate_proj"
    )
    assert error.hint is not None
    assert "overflows float32" in error.hint


@pytest.mark.parametrize("target", ["rtx", "jetson-orin"])
@pytest.mark.parametrize("weights", ["int4", "fp16"])
def test_ranges_for_half_precision_that_are_none(target: str, weights: str, tmp_path: Path) -> None:
    error = refused(saved(tmp_path / "hf", 1e16, 1e5), tmp_path, target=target, weights=weights, fast=True, check=False)
    assert error.message.startswith("expected finite activations on the text that ranges are measured on, found inf in")
    assert "model.layers.1.mlp" in error.message
    assert error.hint is not None
    assert "overflows float32" in error.hint


@pytest.mark.parametrize("name", ["gptq", "w8a8"])
def test_a_text_that_such_a_model_writes_itself(name: str, tmp_path: Path) -> None:
    error = refused(saved(tmp_path / "hf", 1e16, 1e5), tmp_path, check=False, **OPTIONS[name])
    assert error.message.startswith("expected finite")
    assert error.hint is not None


@pytest.mark.parametrize(
    "options", [{"weights": "fp32"}, {"weights": "int4"}, {"weights": "int8", "max_loss": 5.0}], ids=str
)
def test_outputs_that_are_no_numbers_meet_no_bound(options: dict[str, Any], tmp_path: Path) -> None:
    """Nothing is calibrated: what is measured at the end tells."""
    error = refused(saved(tmp_path / "hf", 1e16, 1e5), tmp_path, fast=True, **options)
    assert error.message == (
        "expected finite outputs on the text that is measured, found that perplexity rises by nan % for cpu"
    )
    assert error.hint is not None
    assert "overflows float32" in error.hint
