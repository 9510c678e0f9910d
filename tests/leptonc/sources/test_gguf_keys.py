"""llama.cpp's defaults: what its loader takes where a GGUF does not say, and what a file may not say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from leptonc.errors import InputError
from leptonc.sources import open_source
from leptonc.sources.gguf_file import GgufFile
from leptonc.sources.gguf_keys import end_tokens
from tests.leptonc.sources.converter import write_gguf


def config(path: Path, arch: str, extra: dict[str, Any]) -> dict[str, Any]:
    """The config of a tiny model with keys added: strings, arrays and booleans too."""
    sample = {"llama": "tiny-llama", "phi3": "tiny-phi3", "gpt2": "tiny-gpt2"}.get(arch, f"tiny-{arch}")
    odd = {key: value for key, value in extra.items() if type(value) not in (int, float)}
    plain = {key: value for key, value in extra.items() if key not in odd}

    def add_license(writer: gguf.GGUFWriter, licence: str) -> None:
        for key, value in odd.items():
            kind = {str: writer.add_string, bool: writer.add_bool, list: writer.add_array}[type(value)]
            kind(f"{arch}.{key}", value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "add_license", add_license)
        file = write_gguf(open_source(f"sample:{sample}"), path / "m.gguf", arch, extra=plain)
    with open_source(str(file)) as source:
        return {**source.config, "warnings": source.warnings}


ROPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a factor without a type is linear": ({"rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "the old key": ({"rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
    "the new key before the old one": (
        {"rope.scale_linear": 2.0, "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0},
    ),
    "a type without a factor": ({"rope.scaling.type": "linear"}, {"rope_type": "default"}),
    "a factor of nothing": ({"rope.scaling.factor": 0.0}, {"rope_type": "default"}),
    "none has no factor": ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {"rope_type": "default"}),
    "yarn without a factor": ({"rope.scaling.type": "yarn"}, {"rope_type": "default"}),
    "yarn from the context": (
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": "context"},
    ),
    "yarn's attention factor": (
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 0.5},
        {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": "context",
            "attention_factor": (0.1 * math.log(4) + 1) / 2,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ROPES)
def test_rotary_scaling_as_llama_cpp_has_it(case: str, tmp_path: Path) -> None:
    extra, expected = ROPES[case]
    found = config(tmp_path, "qwen2", extra)
    wanted = {k: found["max_position_embeddings"] if v == "context" else v for k, v in expected.items()}
    rope = found["rope_parameters"]
    assert rope.pop("rope_theta") == 1e6
    assert rope.keys() == wanted.keys()
    assert all(rope[key] == (pytest.approx(value) if type(value) is float else value) for key, value in wanted.items())
    assert found["warnings"] == ()


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "attention factor": ("qwen2", {"rope.scaling.attn_factor": 0.5}, "attn_factor is supported with yarn alone"),
    "partial rotation": ("qwen2", {"rope.dimension_count": 8}, "expected rotary embeddings over 16 dimensions"),
    "long rope": ("qwen2", {"rope.scaling.type": "longrope"}, "'longrope' is not supported"),
    "values of another width": ("qwen2", {"attention.key_length": 8}, "expected keys and values of one width"),
    "not causal": ("qwen2", {"attention.causal": False}, "attention.causal to be True"),
    "an embedding model": ("qwen3", {"pooling_type": 3}, "pooling_type to be 0"),
    "experts in use": ("qwen2", {"expert_used_count": 2}, "expert_used_count to be 0"),
    "another head": ("qwen2", {"embedding_length_out": 12}, "embedding_length_out to be 64"),
    "more tokens ahead": ("qwen2", {"nextn_predict_layers": 1}, "nextn_predict_layers to be 0"),
    "a classifier": ("qwen3", {"classifier.output_labels": ["a", "b"]}, "output_labels to be None"),
    "vocabulary": ("llama", {"vocab_size": 511}, "vocab_size to be the 512 rows"),
    "grouped heads of gpt2": ("gpt2", {"attention.head_count_kv": 2}, "attention.head_count_kv to be 4"),
    "two bases": ("gemma2", {"rope.freq_base_swa": 5.0}, "expected one rotary base in all layers"),
    "phi's factor": ("phi3", {"rope.scaling.factor": 4.0}, "expected rotary factors or none"),
    "pattern of another length": (
        "gemma3", {"attention.sliding_window": 8, "attention.sliding_window_pattern": [True]}, "pattern of 4 layers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_family_does_not_compute_is_refused_by_name(case: str, tmp_path: Path) -> None:
    arch, extra, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        config(tmp_path, arch, extra)


LOCAL, FULL = "sliding_attention", "full_attention"
WINDOWS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "gemma3's own": ("gemma3", {"attention.sliding_window": 8}, [LOCAL] * 4),
    "every second": (
        "gemma3", {"attention.sliding_window": 8, "attention.sliding_window_pattern": 2}, [LOCAL, FULL] * 2
    ),
    "all": ("gemma3", {"attention.sliding_window": 8, "attention.sliding_window_pattern": 0}, [LOCAL] * 4),
    "none": ("gemma3", {"attention.sliding_window": 8, "attention.sliding_window_pattern": 1}, [FULL] * 4),
    "layer by layer": (
        "gemma3", {"attention.sliding_window": 8, "attention.sliding_window_pattern": [True, False, False, True]},
        [LOCAL, FULL, FULL, LOCAL],
    ),
    "layer by layer, all": (
        "gemma3", {"attention.sliding_window": 8, "attention.sliding_window_pattern": [True] * 4}, [LOCAL] * 4
    ),
    "no window": ("gemma3", {}, [FULL] * 4),
    "a window of nothing": ("gemma3", {"attention.sliding_window": 0}, [FULL] * 4),
    "gemma2's own": ("gemma2", {}, [LOCAL, FULL]),
}  # fmt: skip


@pytest.mark.parametrize("case", WINDOWS)
def test_which_layers_have_a_window(case: str, tmp_path: Path) -> None:
    arch, extra, expected = WINDOWS[case]
    found = config(tmp_path, arch, extra)
    layers = found["layer_types"]
    assert layers == (expected * 2)[: len(layers)]
    if arch == "gemma2":
        assert (found["sliding_window"], found["attn_logit_softcapping"]) == (4096, 50.0)


def test_what_llama_cpp_leaves_out_is_left_out_and_named(tmp_path: Path) -> None:
    """Windows of a llama and of Phi are not read, nor are scales that other architectures have."""
    found = config(tmp_path, "llama", {"attention.sliding_window": 8, "logit_scale": 0.5})
    assert found["model_type"] == "llama"
    assert "sliding_window" not in found
    words = "llama.cpp leaves out llama.attention.sliding_window, llama.logit_scale"
    assert [warning[: len(words)] for warning in found["warnings"]] == [words]
    (tmp_path / "phi").mkdir()
    assert config(tmp_path / "phi", "phi3", {"attention.sliding_window": 8})["sliding_window"] is None


def test_a_tensor_without_a_use_is_refused(tmp_path: Path) -> None:
    """llama.cpp adds a bias of queries alone; Llama in transformers has all of its biases or none."""
    from leptonc.frontend.capture import capture

    with open_source("sample:tiny-llama") as sample:
        bias = np.ones(64, np.float32)
        path = write_gguf(sample, tmp_path / "m.gguf", "llama", tensors={"blk.0.attn_q.bias": bias})
    with (
        open_source(str(path)) as source,
        pytest.raises(InputError, match=r"none for `model.layers.\*.self_attn.q_pro"),
    ):
        capture(source, max_seq_len=64)


ENDS: dict[str, tuple[list[str], dict[str, int], str, list[int]]] = {
    "the file's": (["a", "b", "c"], {"eos": 1}, "gpt2", [1]),
    "all three": (["a", "b", "c", "d"], {"eos": 1, "eot": 2, "eom": 3}, "gpt2", [1, 2, 3]),
    "by text": (["a", "<|im_end|>", "<|endoftext|>", "</s>"], {"eos": 0}, "gpt2", [0, 1, 2, 3]),
    "infilling by text": (["a", "<|fim_pad|>", "<|file_sep|>", "<|repo_name|>"], {"eos": 0}, "gpt2", [0, 1, 2, 3]),
    "infilling by id": (["a", "<|fim_pad|>", "b"], {"eos": 0, "fim_pad": 2}, "gpt2", [0, 2]),
    "harmony": (["a", "<|end|>", "<|return|>", "<|call|>"], {"eos": 2}, "gpt2", [2, 3]),
    "end alone": (["a", "<|end|>", "<|return|>"], {"eos": 2}, "gpt2", [1, 2]),
    "sentencepiece's default": (["a", "b", "c"], {}, "llama", [2]),
    "beyond the vocabulary": (["a", "b"], {"eos": 7}, "llama", []),
}


@pytest.mark.parametrize("case", ENDS)
def test_what_ends_an_answer(case: str) -> None:
    tokens, ids, model, expected = ENDS[case]

    class File:
        metadata: dict[str, Any] = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.model": model}  # noqa: RUF012

    File.metadata |= {f"tokenizer.ggml.{name}_token_id": value for name, value in ids.items()}
    file: GgufFile = File()  # type: ignore[assignment]
    assert end_tokens(file) == expected
