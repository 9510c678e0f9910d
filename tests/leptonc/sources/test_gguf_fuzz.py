"""A damaged GGUF model is opened or refused: whatever a byte of its metadata says, nothing but InputError comes out."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from benchmarks.fuzzing import ggufs
from leptonc.errors import InputError
from leptonc.sources import open_source

TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "ab", "\u2581a"]
KINDS = [2, 3, 3, *[6] * 256, 1, 1, 1, 1, 1]


def small_model(path: Path, extra: dict[str, Any] | None = None) -> Path:
    """A Llama of one layer with a SentencePiece vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0] * 259 + [-4.0, -5.0, -6.0, -1.0, -2.0])
    writer.add_token_types(KINDS)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for key, value in (extra or {}).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_int64(key, value)
    shapes = {
        "token_embd": (len(TOKENS), 8),
        "output_norm": (8,),
        "blk.0.attn_norm": (8,),
        "blk.0.ffn_norm": (8,),
        "blk.0.attn_q": (8, 8),
        "blk.0.attn_k": (4, 8),
        "blk.0.attn_v": (4, 8),
        "blk.0.attn_output": (8, 8),
        "blk.0.ffn_gate": (16, 8),
        "blk.0.ffn_up": (16, 8),
        "blk.0.ffn_down": (8, 16),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def open_and_read(path: Path) -> str | None:
    """Returns the refusal, which names the file, or None."""
    refusal = None
    try:
        with open_source(str(path)) as source:
            for tensor in source.weights.values():
                assert tensor.read().shape == tensor.shape
    except InputError as error:
        refusal = error.message
    assert refusal is None or str(path) in refusal
    return refusal


def test_changed_headers(tmp_path: Path) -> None:
    """Bytes, numbers, lengths, types and offsets of four models' headers, as benchmarks/fuzz.py changes them."""
    path, seeds = tmp_path / "m.gguf", ggufs.seeds(tmp_path)
    for data, _, _ in seeds:
        path.write_bytes(data)
        assert open_and_read(path) is None
    refusals = []
    for number in range(500):
        rng = random.Random(number)
        path.write_bytes(ggufs.changed(rng, rng.choice(seeds)))
        refusals.append(open_and_read(path))
    assert len(set(refusals)) > 50  # in many places


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"llama.attention.key_length": "wide"}, "expected llama.attention.key_length to be int, found wide"),
        ({"llama.attention.key_length": -4}, "found -4"),
        ({"llama.attention.key_length": 4, "llama.attention.value_length": 2}, "keys and values of one width"),
        ({"llama.rope.dimension_count": 2}, "rotary embeddings over 4 dimensions, found 2"),
        ({"llama.rope.scaling.factor": "wide"}, "expected llama.rope.scaling.factor to be float, found wide"),
        ({"split.count": 3}, "one of 3 parts"),
        ({"tokenizer.ggml.padding_token_id": 9999}, "padding_token_id below 264 tokens"),
        ({"tokenizer.ggml.merges": ["a b", "b b"]}, "expected merges of tokens in the vocabulary, found 'b b'"),
    ],
)
def test_contradictions_are_named(extra: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        open_source(str(small_model(tmp_path / "m.gguf", extra)))
    assert message in caught.value.message


@pytest.mark.parametrize("model", ["bert", "t5", "no-vocab"])
def test_other_tokenizers_are_refused(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        gguf.GGUFWriter, "add_tokenizer_model", lambda writer, _: writer.add_string("tokenizer.ggml.model", model)
    )
    with pytest.raises(InputError, match=f"the tokenizer '{model}' is not supported, expected 'gpt2' or 'llama'"):
        open_source(str(small_model(tmp_path / "m.gguf")))
