"""The check's own loader: what `from_pretrained` makes of the files, with nothing of ours between."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from leptonc.build.to_artifact import BuildOptions, build
from leptonc.errors import InputError, WrongCaptureError
from leptonc.evaluate import original
from leptonc.evaluate.original import load_original
from leptonc.frontend import ties
from leptonc.frontend.tasks import TextGeneration, task_of
from leptonc.report import as_plain
from leptonc.sources import Source, open_source
from sample_models.export import write_directory
from tests.leptonc.sources.converter import write_gguf

SIZE = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    """A tied model whose checkpoint has a head of its own."""
    with open_source("sample:tiny-qwen2") as source:
        assert source.config["tie_word_embeddings"]
        path = write_directory(source, tmp_path / "tied")
    tensors = load_file(path / "model.safetensors")
    tensors[HEAD] = tensors[EMBED].flip(0) * 1.5
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


def source_at(path: Path) -> Source:
    """What the check's loader reads of a source: where the files are, and the config."""
    return Source(path.name, {}, json.loads((path / "config.json").read_text()), {}, b"{}", path=(path,))


def loaded(path: Path) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
    source = source_at(path)
    model, reads = load_original(source, task_of(source.config, None))
    return model, {name: read() for name, read in reads.items()}


def same(path: Path, auto: str = "AutoModelForCausalLM") -> None:
    """Compares every parameter with the one that `from_pretrained` gives without marks."""
    want = getattr(transformers, auto).from_pretrained(path, dtype=torch.float32)
    model, found = loaded(path)
    assert all(p.is_meta for p in model.parameters())
    for name, parameter in want.named_parameters(remove_duplicate=False):
        np.testing.assert_array_equal(found[name], parameter.detach().numpy(), err_msg=name)
    for name, buffer in want.named_buffers():
        np.testing.assert_array_equal(model.get_buffer(name).numpy(), buffer.numpy(), err_msg=name)


def test_the_fault_of_a_tied_head_shows(tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the fault brought back, our loader tying what the checkpoint has apart, the build ends."""
    options = BuildOptions(str(tied), out=tmp_path / "a.lepton", weights="fp32", max_seq_len=256, force=True)
    right = as_plain(build(options).report)
    assert right["fidelity"]["top1_agreement"] == 1.0
    assert right["fidelity"]["max_abs_diff"] <= 1e-4
    assert "the config ties `lm_head.weight`" in right["warnings"][0]
    monkeypatch.setattr(ties, "separate", lambda model, weights: [])
    with pytest.raises(WrongCaptureError, match=r"what transformers does, .* first at the module lm_head$"):
        build(options)


def sharded(path: Path) -> None:
    other = write_directory(open_source("sample:tiny-qwen2"), path.parent / "o", shard_bytes=100_000, dtype="BF16")
    for file in other.glob("model*"):
        file.rename(path / file.name)


def only_sharded(path: Path) -> None:
    sharded(path)
    (path / "model.safetensors").unlink()


@pytest.mark.parametrize("change", [lambda path: None, sharded, only_sharded], ids=["tied", "two sets", "shards"])
def test_every_parameter_is_from_pretraineds(change: Callable[[Path], None], tied: Path) -> None:
    change(tied)
    same(tied)


def test_an_encoder_without_its_head(tmp_path: Path) -> None:
    config = transformers.BertConfig(**SIZE, num_attention_heads=4)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    _, found = loaded(tmp_path / "bert")
    want = transformers.BertForMaskedLM.from_pretrained(tmp_path / "bert").bert
    for name, parameter in want.named_parameters():
        np.testing.assert_array_equal(found[name], parameter.detach().numpy())
    missing = [name for name, value in found.items() if np.isnan(value).any()]
    assert missing == ["pooler.dense.weight", "pooler.dense.bias"]  # no number can come of what is not there


def test_parameters_that_are_made_of_several_tensors(tmp_path: Path) -> None:
    """A mixture of experts: `from_pretrained` stacks what the checkpoint has one by one."""
    config = transformers.MixtralConfig(**SIZE, **HEADS, num_local_experts=3)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "moe")
    assert any(".experts.2." in name for name in load_file(tmp_path / "moe" / "model.safetensors"))
    same(tmp_path / "moe")


def test_the_language_model_of_a_multimodal_one(tmp_path: Path) -> None:
    text = {**SIZE, **HEADS, "head_dim": 16}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14}, mm_tokens_per_image=4,
        image_token_index=500, boi_token_index=501, eoi_token_index=502,
    )  # fmt: skip
    whole = transformers.Gemma3ForConditionalGeneration(config)
    whole.save_pretrained(tmp_path / "mm")
    model, reads = load_original(source_at(tmp_path / "mm"), TextGeneration())
    inner = whole.model.language_model
    for name, parameter in inner.named_parameters():
        np.testing.assert_array_equal(reads[f"model.{name}"](), parameter.detach().numpy(), err_msg=name)
    assert type(model).__name__ == "Gemma3ForCausalLM"
    np.testing.assert_array_equal(reads[HEAD](), inner.embed_tokens.weight.detach().numpy())


def test_a_file_that_transformers_does_not_load(tied: Path) -> None:
    (tied / "model.safetensors").unlink()
    with pytest.raises(InputError, match="transformers cannot load it"):
        loaded(tied)


def test_transformers_is_left_as_it_was(tied: Path) -> None:
    from safetensors import safe_open

    loaded(tied)
    assert original.modeling_utils.safe_open is safe_open


@pytest.mark.parametrize(
    ("name", "architecture", "quant"),
    [("llama", "llama", "Q8_0"), ("qwen3", "qwen3", "F16"), ("gemma3", "gemma3", "BF16"), ("gpt2", "gpt2", "Q4_0"),
     ("phi3", "phi3", "F32")],
)  # fmt: skip
def test_a_gguf_by_the_gguf_package(name: str, architecture: str, quant: str, tmp_path: Path) -> None:
    """Names, dequantization and what the converter changes, against our own reader; the file in two pieces."""
    more = {"attention.sliding_window": 8} if name == "gemma3" else {}
    with open_source(f"sample:tiny-{name}") as sample:
        path = write_gguf(sample, tmp_path / "m.gguf", architecture, quant=quant, extra=more)
    data = path.read_bytes()
    pieces = [tmp_path / "p0", tmp_path / "p1"]
    cut = len(data) * 2 // 3
    pieces[0].write_bytes(data[:cut])
    pieces[1].write_bytes(data[cut:])
    with open_source(str(path)) as source:
        source.path = tuple(pieces)
        _, reads = load_original(source, TextGeneration())
        assert {name for name in reads if name != HEAD} == {name for name in source.weights if name != HEAD}
        for stored, tensor in source.weights.items():
            np.testing.assert_array_equal(reads[stored](), tensor.read(), err_msg=stored)


def test_made_up_models_have_their_own_weights() -> None:
    with open_source("sample:tiny-llama") as source:
        _, reads = load_original(source, TextGeneration())
        for name in (EMBED, "model.norm.weight"):
            np.testing.assert_array_equal(reads[name](), source.weights[name].read())
