"""What the manifest says of a model: its tokenizer, its cache, its inputs and labels."""

from __future__ import annotations

import functools
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from leptonc import __version__
from leptonc.errors import InputError
from leptonc.frontend.capture import Captured
from leptonc.sources.base import SentenceModules, Source, text_limit
from leptonc.sources.generation import effective, token_ids
from leptonc.sources.sentence import score_function
from leptonc.sources.tokenizer_parts import split, value_of
from runtime_edge.encoder_record import SIDES
from runtime_edge.manifest import CacheLayer, Decoder, Encoder, Tokenizer

TOOLCHAIN = ("torch", "transformers", "onnx", "onnx-ir", "onnxruntime", "tensorrt-rtx", "tokenizers", "numpy")


def tokenizer_of(source: Source, captured: Captured) -> Tokenizer:
    """Returns the tokenizer's record.

    An answer ends where transformers' generate ends one, see `leptonc.sources.generation`. The tokens that begin a text
    and pad it may be the tokenizer's own.
    """
    config = source.tokenizer_config
    texts = {name: text for name, value in config.items() if name.endswith("_token") and (text := _text(value))}
    ids = _token_ids(source.tokenizer_json)
    vocab = getattr(captured.config, "vocab_size", None) or len(ids)
    settings = effective(source.generation_config, source.config)

    def known(name: str) -> list[int]:
        return sorted({t for t in token_ids(settings.get(f"{name}_id"), f"{name}_id") if 0 <= t < vocab})

    def own(name: str) -> int | None:  # a tokenizer may have tokens that the model has not
        token_id = ids.get(texts.get(name, ""))
        return token_id if token_id is not None and token_id < vocab else None

    first = {name: next(iter(known(name)), own(name)) for name in ("bos_token", "pad_token")}
    pad = own("pad_token")
    return Tokenizer(
        file="tokenizer.json", bos_token_id=first["bos_token"], eos_token_ids=tuple(known("eos_token")),
        pad_token_id=first["pad_token"] if pad is None else pad, special_tokens=texts,
        chat_template="chat_template.jinja" if source.chat_template else None,
        chat_templates=named_templates(source), vocab_size=getattr(captured.config, "vocab_size", None),
    )  # fmt: skip


def named_templates(source: Source) -> dict[str, str]:
    """Returns the file of each chat template beside the default one."""
    return {name: f"chat_template.{name}.jinja" for name in source.chat_templates}


def _text(value: Any) -> str:
    return str(value.get("content", "")) if isinstance(value, dict) else value if isinstance(value, str) else ""


def _token_ids(tokenizer_json: bytes) -> dict[str, int]:
    """Returns the ids of added tokens: special tokens are among them."""
    from tokenizers import Tokenizer as Parsed

    added = value_of(split(tokenizer_json), "added_tokens") or []
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


def encoder_of(captured: Captured, source: Source) -> Encoder | None:
    """Returns an encoder's record; None for causal models.

    Args:
        captured: The model.
        source: Where it comes from.

    Raises:
        InputError: Labels lack names, or an option has a value that it cannot have.
    """
    task = captured.task
    if task.cached:
        return None
    graph, modules = captured.model.graph, task.modules or SentenceModules()
    shape = graph.outputs[0].shape
    dim = int(shape[-1]) if shape is not None else 0  # type: ignore[arg-type]
    of_labels, tokenizer = task.output == "logits", source.tokenizer_config
    limit = text_limit(source) if of_labels and dim == 1 else None
    side = tokenizer.get("truncation_side", "right")
    if side not in SIDES:
        raise InputError(f"tokenizer_config.json: expected truncation_side to be right or left, found {side!r}")
    return Encoder(
        inputs=tuple(str(v.name) for v in graph.inputs), output=task.output, dim=dim,
        max_seq_len=captured.max_seq_len, labels=_labels(captured.config, dim) if of_labels else (),
        multi_label=getattr(captured.config, "problem_type", None) == "multi_label_classification",
        function=_function(captured.config) if of_labels else "",
        rerank_function=_rerank_function(captured.config, modules) if of_labels and dim == 1 else "",
        rerank_max_seq_len=limit if limit is not None and limit < captured.max_seq_len else None,
        prompts=dict(modules.prompts), default_prompt=modules.default_prompt,
        truncate_dim=min(modules.truncate_dim, dim) if modules.truncate_dim is not None else None,
        truncation_side=side, segments="token_type_ids" in tokenizer.get("model_input_names", ("token_type_ids",)),
        similarity=modules.similarity,
    )  # fmt: skip


def _labels(config: Any, dim: int) -> tuple[str, ...]:
    """The names of a head's outputs; a config without any gets transformers' own, LABEL_0 and so on."""
    names = getattr(config, "id2label", None) or {i: f"LABEL_{i}" for i in range(dim)}
    missing = [i for i in range(dim) if i not in names]
    if missing:
        raise InputError(
            f"config.json: expected id2label to name the outputs 0 to {dim - 1}, found none for {missing[0]}",
            hint="give each output of the head a name, or take id2label out",
        )
    return tuple(str(names[i]) for i in range(dim))


def _function(config: Any) -> str:
    """What makes scores of logits, as transformers' pipeline for text classification chooses it."""
    problem, count = getattr(config, "problem_type", None), int(config.num_labels)
    if problem == "regression":
        return "none"
    return "sigmoid" if problem == "multi_label_classification" or count == 1 else "softmax"


def _rerank_function(config: Any, modules: SentenceModules) -> str:
    """What makes a pair's score of its logit, as sentence-transformers' `CrossEncoder` chooses it."""
    if modules.score_function:
        return modules.score_function
    own = getattr(config, "sentence_transformers", None)
    named = own.get("activation_fn") if isinstance(own, dict) and "activation_fn" in own else None
    if not isinstance(own, dict) or "activation_fn" not in own:  # the name before version 4
        named = getattr(config, "sbert_ce_default_activation_function", None)
    return score_function(named) or "sigmoid"


def toolchain() -> dict[str, str]:
    """Returns the versions of what builds artifacts."""
    return dict(_toolchain())


@functools.cache
def _toolchain() -> dict[str, str]:
    found = {"leptonc": __version__, "python": platform.python_version()}
    for name in TOOLCHAIN:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # onnxruntime-gpu carries the module under another name
            continue
    return found
