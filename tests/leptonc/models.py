"""Sample models as transformers runs them, and captured graphs as ONNX Runtime runs them: what the tests compare."""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers
from numpy.typing import NDArray

from leptonc.frontend import capture as frontend
from leptonc.frontend.capture import Captured
from leptonc.sources import Source, open_source
from leptonc.sources.base import ComputedTensor
from sample_models import tiny_model, tiny_names

# Tiny matrices gain nothing by threads, and on a busy machine threads that wait for each other cost seconds.
torch.set_num_threads(1)

Floats = NDArray[np.float32]
CAUSAL = ("ForCausalLM", "LMHeadModel")
DECODERS = tuple(n for n in tiny_names() if tiny_model(n).config["architectures"][0].endswith(CAUSAL))
ENCODERS = tuple(n for n in tiny_names() if n not in DECODERS)
MAX_SEQ_LEN = 1024
# Odd chunks, then single tokens: beyond every window of 8, and other lengths than any cache's capacity.
CHUNKS = (7, 13, 1, 1, 5, 1, 3)


FEW = "tiny-llama", "tiny-gpt2", "tiny-gemma3", "tiny-bert"


def others_apart(names: Iterable[str], few: Collection[str] = FEW) -> list[Any]:
    """Returns parameters of a test: a few architectures, and others that are run where all are asked for."""
    return [name if name in few else pytest.param(name, marks=pytest.mark.families) for name in names]


def token_ids(count: int, seed: int = 0, low: int = 8, high: int = 512) -> list[int]:
    """Returns random ids, special tokens not among them."""
    return [int(t) for t in np.random.default_rng(seed).integers(low, high, count)]


def reference_of(source: Source) -> Any:
    """Returns transformers' own model of a source, its weights loaded by torch and nothing of ours."""
    fields = {k: v for k, v in source.config.items() if k != "model_type"}
    config = transformers.AutoConfig.for_model(source.config["model_type"], **fields)
    model = getattr(transformers, source.config["architectures"][0])._from_config(config, attn_implementation="eager")
    stored = {name: torch.from_numpy(np.array(tensor.read())) for name, tensor in source.weights.items()}
    prefix = model.base_model_prefix + "."
    if not set(stored) & set(model.state_dict()):  # a base model's names in a checkpoint of the whole, or the reverse
        stored = {n.removeprefix(prefix) if n.startswith(prefix) else prefix + n: t for n, t in stored.items()}
    missing, unexpected = model.load_state_dict(stored, strict=False)
    tied = (
        {"lm_head.weight", "lm_head.decoder.weight", "lm_head.decoder.bias"}
        if getattr(config, "tie_word_embeddings", False)
        else set()
    )
    computed = {n for n, _ in model.named_buffers()}
    assert set(missing) <= tied | computed, missing
    assert set(unexpected) <= {"pooler.dense.weight", "pooler.dense.bias"} | computed, unexpected
    model.tie_weights()
    return model.eval()


@functools.lru_cache(maxsize=32)
def reference(name: str) -> Any:
    """Returns transformers' own model of a sample."""
    with open_source(f"sample:{name}") as source:
        return reference_of(source)


def reference_logits(model: Any, ids: Iterable[int]) -> Floats:
    """Returns transformers' logits [len, vocab], all positions in one forward without a cache."""
    with torch.inference_mode():
        logits: Floats = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].numpy()
    return logits


def reference_embeddings(name: str, given: Mapping[str, NDArray[np.int64]]) -> Floats:
    """Returns an encoder's output written out: logits, or the masked mean, normalized where its modules say so."""
    with torch.inference_mode():
        out = reference(name)(**{k: torch.from_numpy(v) for k, v in given.items()})
    if "logits" in out:
        logits: Floats = out.logits.numpy()
        return logits
    hidden = out.last_hidden_state.numpy().astype(np.float64)
    mask = given["attention_mask"][..., None]
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    if tiny_model(name).modules.get("normalize"):
        pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    return pooled.astype(np.float32)


def padded(names: Iterable[str], lengths: tuple[int, ...] = (19, 11, 1), pad: int = 0) -> dict[str, NDArray[np.int64]]:
    """Returns a batch of texts of different lengths, as an encoder's inputs of those names."""
    shape = (len(lengths), max(lengths))
    ids, mask = np.full(shape, pad, np.int64), np.zeros(shape, np.int64)
    for row, length in enumerate(lengths):
        ids[row, :length], mask[row, :length] = token_ids(length, seed=row), 1
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros(shape, np.int64)}
    return {name: arrays[name] for name in names}


_CAPTURED: dict[tuple[str, int], Captured] = {}
MANY_OBJECTS = 100_000  # torch and transformers alone have more
_capture = frontend.capture  # the context `shared` puts the next function in its place


def capture(source: Source, *, max_seq_len: int) -> Captured:
    """Captures a source; tiny samples once a process, which is most of a build's time: passes get a clone each."""
    if source.emitted is not None or not source.origin.get("id", "").startswith("tiny-"):
        return _capture(source, max_seq_len=max_seq_len)
    key = (json.dumps([source.origin, source.config], sort_keys=True), max_seq_len)
    if key not in _CAPTURED:
        _CAPTURED[key] = _capture(source, max_seq_len=max_seq_len)
        set_aside()  # what the first capture imports has most of a process's objects
    graphs = {name: graph.clone() for name, graph in _CAPTURED[key].graphs.items()}
    return dataclasses.replace(_CAPTURED[key], graphs=graphs)


def set_aside() -> None:
    """Sets objects aside from Python's collector where there are many: a walk over a graph runs it once a stage."""
    if len(gc.get_objects()) > MANY_OBJECTS:
        gc.collect()
        gc.freeze()


def captured(name: str, max_seq_len: int = MAX_SEQ_LEN) -> Captured:
    """Returns a sample's captured graph, to be changed."""
    with open_source(f"sample:{name}") as source:
        return capture(source, max_seq_len=max_seq_len)


def source_of(config: Any, architecture: str) -> Source:
    """Returns a source of a transformers config with random weights, seeded."""
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(config)
    weights = {
        name: ComputedTensor(tuple(p.shape), "F32", functools.partial(_noisy, p.detach().numpy()))
        for name, p in model.named_parameters()
    }
    return Source(architecture, {}, config.to_dict() | {"architectures": [architecture]}, weights, b"{}")


def albert(layers: int) -> Captured:
    """ALBERT: the weights of one layer serve in all."""
    size = {"vocab_size": 512, "embedding_size": 32, "hidden_size": 64, "intermediate_size": 128}
    config = transformers.AlbertConfig(**size, num_hidden_layers=layers, num_attention_heads=4)
    return capture(source_of(config, "AlbertModel"), max_seq_len=64)


def _noisy(array: Floats) -> Floats:
    """Biases start as zeros and norms as ones: moved off them, so that one left out is seen."""
    noise = np.random.default_rng(array.size).standard_normal(array.shape) * 0.05
    return (array + noise).astype(np.float32)


class Graph:
    """A graph as ONNX Runtime executes it as it stands, from a file."""

    def __init__(self, model: ir.Model, folder: Path, optimize: bool = True) -> None:
        path = folder / "graph.onnx"
        ir.save(model, path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = {i.name: i.shape for i in self.session.get_inputs()}
        self.outputs = [o.name for o in self.session.get_outputs()]

    def __call__(self, **given: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return dict(zip(self.outputs, self.session.run(None, given), strict=True))

    def caches(self, capacity: int) -> dict[str, Floats]:
        """Returns empty caches of that capacity."""
        shapes = {n: s for n, s in self.inputs.items() if n.startswith("past_key_values.")}
        return {n: np.zeros((1, s[1], capacity, s[3]), np.float32) for n, s in shapes.items()}

    def logits(self, ids: list[int], chunks: Iterable[int], capacity: int) -> Floats:
        """Runs a decoder over `ids` in chunks, each over the cache that the ones before it left."""
        caches, rows, at = self.caches(capacity), [], 0
        for n in chunks:
            given: dict[str, NDArray[Any]] = {"input_ids": np.array([ids[at : at + n]]), "past_length": np.array([at])}
            if "logits_to_keep" in self.inputs:
                given["logits_to_keep"] = np.array([n])
            out = self(**given, **caches)
            rows.append(out["logits"][0])
            caches = {name: out[name.replace("past_key_values", "present")] for name in caches}
            at += n
        assert at == len(ids)
        return np.concatenate(rows)


def runtime_logits(model: Any, ids: list[int], chunks: Iterable[int]) -> Floats:
    """Runs a loaded artifact over `ids` as a generation does, in chunks over a cache that grows as it must.

    A chunk of one token goes the way of decoding. Asserts that the cache has grown at least twice.
    """
    state = model._decoding().session.new_state()
    rows, at, capacities = np.empty((len(ids), model.manifest.decoder.vocab_size), np.float32), 0, set()
    for n in chunks:
        if n == 1:
            rows[at] = state.step(ids[at])
        else:
            state.all_logits(ids[at : at + n], rows[at : at + n])
        at += n
        capacities.add(state.cache.capacity)
    assert at == len(ids)
    assert len(capacities) >= 3, capacities
    return rows


def assert_greedy(model: Any, prompt: list[int], answer: list[int], tie: float = 1e-4) -> None:
    """Asserts that each token of `answer` is the reference's best where the answer has led, or as good as the best."""
    logits = reference_logits(model, [*prompt, *answer])[len(prompt) - 1 : -1]
    chosen = logits[np.arange(len(answer)), answer]
    short = logits.max(axis=1) - chosen
    assert short.max() <= tie, f"token {int(short.argmax())} of the answer is worse than the best by {short.max()}"
