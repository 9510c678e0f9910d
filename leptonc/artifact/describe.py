"""What the manifest says of a model: its tokenizer, its cache, its inputs and labels."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from leptonc import __version__
from leptonc.frontend.capture import Captured
from leptonc.sources.base import Source
from runtime_edge.manifest import CacheLayer, Decoder, Encoder, Tokenizer

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TOOLCHAIN = ("torch", "transformers", "onnx", "onnx-ir", "onnxruntime", "tensorrt-rtx", "tokenizers", "numpy")


def tokenizer_of(source: Source, captured: Captured) -> Tokenizer:
    """Returns the tokenizer's record; ids come from the generation config, the config, and the tokens' texts."""
    config = source.tokenizer_config
    texts = {name: text for name in SPECIAL if (text := _text(config.get(name)))}
    ids = _token_ids(source.tokenizer_json)
    vocab = getattr(captured.config, "vocab_size", None) or len(ids)

    def known(name: str) -> list[int]:
        found: list[int] = []
        for value in (source.generation_config.get(f"{name}_id"), source.config.get(f"{name}_id")):
            found += value if isinstance(value, list) else [value] if isinstance(value, int) else []
        if name in texts and texts[name] in ids:
            found.append(ids[texts[name]])
        return sorted({t for t in found if isinstance(t, int) and 0 <= t < vocab})

    first = {name: next(iter(known(name)), None) for name in ("bos_token", "pad_token")}
    return Tokenizer(
        file="tokenizer.json", bos_token_id=first["bos_token"], eos_token_ids=tuple(known("eos_token")),
        pad_token_id=_pad(texts, ids, first["pad_token"], vocab), special_tokens=texts,
        chat_template="chat_template.jinja" if source.chat_template else None,
    )  # fmt: skip


def _pad(texts: dict[str, str], ids: dict[str, int], fallback: int | None, vocab: int) -> int | None:
    named = ids.get(texts.get("pad_token", ""))
    return named if named is not None and named < vocab else fallback


def _text(value: Any) -> str:
    return str(value.get("content", "")) if isinstance(value, dict) else value if isinstance(value, str) else ""


def _token_ids(tokenizer_json: bytes) -> dict[str, int]:
    """Returns the ids of added tokens: special tokens are among them."""
    from tokenizers import Tokenizer as Parsed

    added = json.loads(tokenizer_json).get("added_tokens") or []
    found = {entry["content"]: int(entry["id"]) for entry in added}
    return found or Parsed.from_str(tokenizer_json.decode()).get_vocab()


def decoder_of(captured: Captured, cache_dtype: str = "float32") -> Decoder | None:
    """Returns a causal model's record, its cache read off the graph's inputs; None for other tasks."""
    if not captured.task.cached:
        return None
    graph = captured.model.graph
    shapes = {v.name: v.shape for v in graph.inputs}
    windows = captured.windows
    layers = []
    for i in range(len([n for n in shapes if n and n.endswith(".key")])):
        key, value = shapes[f"past_key_values.{i}.key"], shapes[f"past_key_values.{i}.value"]
        layers.append(
            CacheLayer(kv_heads=int(key[1]), key_dim=int(key[3]), value_dim=int(value[3]), window=windows[i] or None)  # type: ignore[index, arg-type]
        )
    return Decoder(
        vocab_size=int(captured.config.vocab_size), max_seq_len=captured.max_seq_len, cache=tuple(layers),
        cache_dtype=cache_dtype, keeps_none=True,
    )  # fmt: skip


def encoder_of(captured: Captured) -> Encoder | None:
    """Returns an encoder's record; None for causal models."""
    if captured.task.cached:
        return None
    graph, config = captured.model.graph, captured.config
    shape = graph.outputs[0].shape
    dim = int(shape[-1]) if shape is not None else 0  # type: ignore[arg-type]
    labels: tuple[str, ...] = ()
    if captured.task.output == "logits":
        names = getattr(config, "id2label", None) or {}
        labels = tuple(str(names.get(i, f"LABEL_{i}")) for i in range(dim))
    return Encoder(
        inputs=tuple(str(v.name) for v in graph.inputs), output=captured.task.output, dim=dim,
        max_seq_len=captured.max_seq_len, labels=labels,
        multi_label=getattr(config, "problem_type", None) == "multi_label_classification",
    )  # fmt: skip


def toolchain() -> dict[str, str]:
    """Returns the versions of what builds artifacts."""
    found = {"leptonc": __version__, "python": platform.python_version()}
    for name in TOOLCHAIN:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # onnxruntime-gpu carries the module under another name
            continue
    return found
