"""What a build is asked for: the options of `leptonc build`, and what a recipe says of single layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LayerRule:
    """What is said of the linear layers whose module paths match.

    Attributes:
        match: Patterns of module paths, `*` for anything, dots too; one that matches none is an error.
        weights: fp32 or fp16 (the weights are not quantized), int8, int4 or int2. Default: what other layers have.
        block_size: Weights that share a scale. Default: what other layers have.
        symmetric: Whether weights are quantized without zero points. Default: what other layers have.
    """

    match: tuple[str, ...] = ()
    weights: str | None = None
    block_size: int | None = None
    symmetric: bool | None = None


@dataclass(frozen=True)
class BuildOptions:
    """What to build; names and meanings are those of `leptonc build --help`.

    Attributes:
        source: Directory, hub id, .gguf file or sample:NAME.
        target: Target name with overrides, or several: one artifact then holds a variant for each.
        out: Artifact to write. Default: NAME.lepton in the working directory.
        weights: fp32, fp16, fp8, int8, int4 or int2, of what the targets can have; or auto:SIZE (auto:95MB): 4 bits
            and, where it helps most, 8 within so many bytes of graph and weights. Default: int8 with int8 activations,
            fp16 with 2:4, else each target's own.
        activations: none, or int8: linear layers read 8-bit integers with scales known before the model runs.
        calibrator: What chooses the ranges of these integers: minmax, percentile, entropy, mse, or search, which takes
            for each layer the one whose outputs are off least.
        kv_cache: int8 for keys and values of 8 bits in a decoder's cache. Default: float32.
        prefill: A second graph with 8-bit weights and activations, which prompts go through: int8 for weights of its
            own, shared for those of the first graph, which the runtime makes its own of. Default: no second graph.
        block_size: Weights that share a scale, for integers. Default: the backend's own choice.
        symmetric: Whether weights are quantized without zero points. Default: yes, and no with auto.
        method: How codes are chosen: rtn (round to nearest), gptq or awq. Default: gptq with auto and, for ONNX
            Runtime, with int8 activations; else rtn.
        calibration: Text that gptq, auto, int8 activations and heal look at, .txt or .jsonl. Default: a decoder writes
            one itself, an encoder reads a built-in one.
        chat: Whether its texts go into the model's chat template, as what a user says; conversations always do.
        heal: How long the quantized model learns from the original (10min, 30s, 1h, 200steps). Default: not at all.
        heal_rank: Rank of what healing adds to each weight of a pruned model in float32, or full. Default: 16.
        resume: Directory that keeps what an interrupted build's long steps made, and that the same build goes on from.
        embeddings: int8 or int4, of the embedding and a head tied to it. Default: the format of the weights.
        memory_gb: Gigabytes that the build may take in all: activations that there is no room for wait on disk.
            Default: no bound, and up to `leptonc.build.memory_bound.ACTIVATIONS` bytes of activations in memory.
        max_seq_len: Longest sequence. Default: the target's, at most the model's.
        max_loss: Largest loss of quality in percent: of perplexity for causal models, of cosine similarity for
            embeddings, of agreement for classifiers. Default: no bound.
        seed: Of the text that a model writes for its calibration, and of `rotate`; nothing else in a build is random.
        dump_ir: Directory for the graph after each pass. Default: the graphs are not written.
        layers: Exceptions for single layers.
        eval_text: Text to measure fidelity on. Default: the built-in one.
        prune: What is cut out of the model: a share of its weights ("25%"), what saves some time ("latency:30%"), a
            share of its width ("width:10%"), whole layers ("layers:4"), or a plan's .json file; "2:4" for two weights
            of each four that are zero. Default: nothing.
        prune_method: How units, or for 2:4 weights, are chosen. Default: reconstruction, or sparsegpt for 2:4.
        prune_compensation: What makes up for them, of `leptonc.build.steps.prune.COMPENSATIONS`. Default:
            least-squares; none for a plan.
        prune_allocation: uniform or global: how a share is spent by importance. Default: the method's own.
        rotate: Whether the residual stream gets a random basis, which spreads its outliers over all features.
        check: Whether fidelity is measured; for an engine, of the lowered graph on the CPU before it is built.
        force: Whether an artifact at `out` is replaced.
    """

    source: str
    target: str | tuple[str, ...] = "cpu"
    out: Path | None = None
    weights: str | None = None
    activations: str = "none"
    calibrator: str = "search"
    kv_cache: str | None = None
    prefill: str | None = None
    block_size: int | None = None
    symmetric: bool | None = None
    method: str | None = None
    calibration: Path | None = None
    chat: bool = False
    heal: str | None = None
    heal_rank: str | None = None
    resume: Path | None = None
    embeddings: str | None = None
    memory_gb: float | None = None
    max_seq_len: int | None = None
    max_loss: float | None = None
    seed: int = 0
    layers: tuple[LayerRule, ...] = ()
    dump_ir: Path | None = None
    eval_text: Path | None = None
    prune: str | None = None
    prune_method: str | None = None
    prune_compensation: str | None = None
    prune_allocation: str | None = None
    rotate: bool = False
    check: bool = True
    force: bool = False
