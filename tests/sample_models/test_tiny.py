"""Made-up models: the same on every machine, loadable by transformers, and not degenerate."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from leptonc.sources import Source, open_source
from sample_models import packaged_model, packaged_names, tiny_model, tiny_names
from sample_models.export import to_bfloat16, write_directory
from sample_models.tiny_tokenizer import SPECIAL, VOCAB_SIZE, tokenizer_json

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXT = "The quick brown fox jumps over the lazy dog 12"


def loaded(source: Source, path: Path) -> tuple[Any, dict[str, Any]]:
    write_directory(source, path)
    cls = getattr(transformers, source.config["architectures"][0])
    model, info = cls.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    return model.eval(), info


def test_the_bits_of_weights_and_tokenizer_never_change() -> None:
    tensor = open_source("sample:tiny-llama").weights["model.layers.0.self_attn.q_proj.weight"]
    digest = hashlib.sha256(np.ascontiguousarray(tensor.read(), dtype="<f4").tobytes()).hexdigest()
    assert digest == "39e583eb571c3921fe026cdc591df5515832378ad99f24d7338d07fdb66d30c5"
    assert (
        hashlib.sha256(tokenizer_json()).hexdigest()
        == "4c660aa6d3b8c61603737255b06eb562c317fe8ec92aa2d5c177c9a12ac026e4"
    )


def test_weights_follow_seed_and_name() -> None:
    llama, qwen = open_source("sample:tiny-llama").weights, open_source("sample:tiny-qwen3").weights
    first = llama["model.layers.0.mlp.up_proj.weight"].read()
    assert not np.array_equal(first, llama["model.layers.1.mlp.up_proj.weight"].read())
    assert not np.array_equal(first, qwen["model.layers.0.mlp.up_proj.weight"].read())
    # 1.25 / sqrt(64), and bell-shaped: a third outside of one deviation, next to none outside of three.
    assert abs(first.std() - 1.25 / 8) < 0.004
    assert 0.28 < (np.abs(first) > first.std()).mean() < 0.36


@pytest.mark.parametrize("name", tiny_names())
def test_transformers_loads_it_whole(name: str, tmp_path: Path) -> None:
    source = open_source(f"sample:{name}")
    model, info = loaded(source, tmp_path)
    assert not any(info.values()), info
    assert sum(p.numel() for p in model.parameters()) < 300_000
    ids = torch.tensor([Tokenizer.from_buffer(source.tokenizer_json).encode(TEXT).ids])
    with torch.no_grad():
        output = model(ids)
    if source.chat_template is None:
        values = output.logits if "logits" in output else output.last_hidden_state
        assert values.isfinite().all()
        assert values.std() > 0.3
        return
    logits = output.logits[0]
    best = logits.topk(2).values
    assert 1.5 < logits.std() < 4  # neither flat nor saturated
    assert (best[:, 0] - best[:, 1]).median() > 0.15  # the argmax is no matter of rounding
    assert (logits.argmax(-1) == ids[0]).float().mean() < 0.5  # and not just the token that was read
    assert len(set(logits.argmax(-1).tolist())) > 6


@pytest.mark.parametrize("name", ["tiny-mistral", "tiny-gemma2", "tiny-gemma3"])
def test_sliding_windows_matter(name: str, tmp_path: Path) -> None:
    """A longer window changes the logits, so a test with this model sees a window that is ignored."""
    source = open_source(f"sample:{name}")
    ids = torch.arange(10, 34)[None]
    model, _ = loaded(source, tmp_path / "a")
    source.config = source.config | {"sliding_window": 512}
    wide, _ = loaded(source, tmp_path / "b")
    with torch.no_grad():
        difference = (model(ids).logits - wide(ids).logits).abs()[0].amax(-1)
    window = 8
    assert difference[:window].max() < 1e-4
    assert difference[window:].min() > 0.01


def test_the_tokenizer() -> None:
    tokenizer = Tokenizer.from_buffer(tokenizer_json(["<|cls|>"], ["<|sep|>"]))
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    for text in (TEXT, "  é日本🦙\n\t ", ""):
        encoded = tokenizer.encode(text)
        assert (encoded.tokens[0], encoded.tokens[-1]) == ("<|cls|>", "<|sep|>")
        assert tokenizer.decode(encoded.ids) == text
    assert tokenizer.encode("a", "b").type_ids == [0, 0, 0, 1, 1]
    assert tokenizer.encode("<|im_end|>", add_special_tokens=False).ids == [SPECIAL.index("<|im_end|>")]
    assert len(tokenizer.encode(TEXT).ids) < len(TEXT) * 0.6  # merges are used


def test_transformers_reads_tokenizer_and_chat_template(tmp_path: Path) -> None:
    path = write_directory(open_source("sample:tiny-mistral"), tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer(TEXT)["input_ids"][0] == SPECIAL.index("<|endoftext|>")
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_a_directory_in_half_precision(dtype: str, tmp_path: Path) -> None:
    original = open_source("sample:tiny-phi3")
    with open_source(str(write_directory(original, tmp_path, dtype=dtype))) as source:
        for name, tensor in source.weights.items():
            assert tensor.dtype == dtype
            expected = torch.from_numpy(original.weights[name].read())
            expected = expected.to(torch.bfloat16 if dtype == "BF16" else torch.float16).float()
            assert np.array_equal(tensor.read(), expected.numpy())


def test_rounding_to_bfloat16_is_torchs() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    bits[:6] = [0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0xFF7FFFFF]
    values = bits.view(np.float32)
    ours = (to_bfloat16(values).astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(ours, torch.from_numpy(values).bfloat16().float().numpy(), equal_nan=True)


def test_every_description_is_complete() -> None:
    for name in packaged_names():
        model = packaged_model(name)
        assert len(model.sha256) == 64
        assert model.licence
        assert all("==" in package for package in model.packages)
    seeds = [tiny_model(name).seed for name in tiny_names()]
    assert len(set(seeds)) == len(seeds)
    with pytest.raises(KeyError):
        tiny_model("tiny-nothing")
