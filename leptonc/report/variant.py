"""Sections on one variant: its matrices, its graph for prompts, and what its engine takes."""

from __future__ import annotations

from leptonc.report.examples import Examples
from leptonc.report.quality import Fidelity, Recovery
from leptonc.report.quantization import Activations, Quantization
from leptonc.report.section import CalibrationText, Section


class Matrix(Section, kw_only=True):
    """The weights of a linear layer, or of an embedding.

    Attributes:
        path: Its module path.
        head: Module path of a head that is tied to the embedding.
        shape: Outputs and inputs of a layer; rows and columns of an embedding.
        weights: The number format.
        block_size: Weights that share a scale; all inputs where a whole output channel does.
        symmetric: Whether there are no zero points.
        bytes: Bytes that it is stored in.
        snr_db: Signal-to-noise ratio of the outputs, decibels.
        sensitivity: What rounding it, or its input, alone does to the model's output, nats.
    """

    path: str
    head: str | None = None
    shape: tuple[int, int]
    weights: str
    block_size: int | None = None
    symmetric: bool | None = None
    bytes: int
    snr_db: float | None = None
    sensitivity: float | None = None


class Prefill(Section, kw_only=True):
    """The second graph, which prompts go through.

    Attributes:
        weights: `int8` for weights of its own, `shared` for those of the first graph.
        calibration: The text that scales come from.
        activations: How inputs became integers.
        bytes: Bytes that the graph adds to the artifact.
        fidelity: Prompts through it, beside the original.
    """

    weights: str
    calibration: CalibrationText
    activations: Activations | None = None
    bytes: int | None = None
    fidelity: Fidelity | None = None


class Preflight(Section, kw_only=True):
    """What a model takes of a device's memory, reckoned before anything is built.

    Attributes:
        weights_mb: Megabytes of the weights.
        cache_mb: Megabytes of keys and values at the full length.
        workspace_mb: Megabytes of activations.
        decode_tokens_per_s_at_most: Tokens a second that the memory's bandwidth allows.
        memory_mb: Megabytes that the device has for a model.
        longest_that_fits: Tokens of context that fit.
    """

    weights_mb: float
    cache_mb: float
    workspace_mb: float
    decode_tokens_per_s_at_most: float | None = None
    memory_mb: float | None = None
    longest_that_fits: int | None = None


class EngineBuild(Section, kw_only=True):
    """An engine that was built here.

    Attributes:
        built: Always true.
        version: The version of the library that built it.
        seconds: Time that it took.
        megabytes: Its size.
        layers: Layers that the library made of the graph.
        compute_capabilities: Of the GPUs that it runs on.
    """

    built: bool
    version: str
    seconds: float
    megabytes: float
    layers: int
    compute_capabilities: list[str]


class Rehearsal(Section, kw_only=True):
    """A trial on this machine of a build that the device does.

    Attributes:
        flavour: The library that stood in.
        compute_capabilities: Of the GPUs that it built for.
        done: Whether it built.
        why: Why it did not.
        version: The library's version.
        seconds: Time that it took.
        megabytes: Size of what it built.
        layers: Layers that it made of the graph.
        note: What the trial is worth.
    """

    flavour: str
    compute_capabilities: list[str]
    done: bool
    why: str | None = None
    version: str | None = None
    seconds: float | None = None
    megabytes: float | None = None
    layers: int | None = None
    note: str


class SparseMatrix(Section, kw_only=True):
    """What a lowered graph stores of one linear layer.

    Attributes:
        path: Its module path.
        sparse: Whether it has the pattern.
        why: Why it does not.
        stored: The type that its weights are stored in.
        groups: Groups of four weights.
        beyond_pattern: Groups with more than two weights other than zero.
        nonzero: Weights other than zero.
    """

    path: str
    sparse: bool
    why: str | None = None
    stored: str
    groups: int
    beyond_pattern: int
    nonzero: int


class Sparsity(Section, kw_only=True):
    """Whether the lowered graph has the pattern of zeros.

    Attributes:
        pattern: The pattern.
        linears: The linear layers.
        dense_on: Which compute capabilities have no sparse tensor cores, and so run the weights as dense ones.
        note: What the engine's library does with the pattern.
    """

    pattern: str
    linears: list[SparseMatrix]
    dense_on: str | None = None
    note: str | None = None


class VariantReport(Section, kw_only=True):
    """One variant.

    Attributes:
        fidelity: The artifact beside the original, where that was measured.
        examples: What both make of a few inputs, where that was measured.
        linears: The linear layers.
        embeddings: The embeddings.
        quantization: What a calibration text chose.
        recovery: What healing did.
        prefill: The graph for prompts.
        preflight: What the model takes of the device's memory.
        left_out: GPUs of the target that cannot run these weights.
        kept_in_half_precision: Layers whose weights the format's blocks do not divide.
        float32_for_their_range: Modules that stay in float32, because values in them leave float16's range.
        sparsity: Whether the graph has the pattern of zeros that was asked for.
        engine: The engine that was built here.
        rehearsal: The trial of an engine that the device builds.
    """

    fidelity: Fidelity | None = None
    examples: Examples | None = None
    linears: list[Matrix] | None = None
    embeddings: list[Matrix] | None = None
    quantization: Quantization | None = None
    recovery: Recovery | None = None
    prefill: Prefill | None = None
    preflight: Preflight | None = None
    left_out: str | None = None
    kept_in_half_precision: list[str] | None = None
    float32_for_their_range: list[str] | None = None
    sparsity: Sparsity | None = None
    engine: EngineBuild | None = None
    rehearsal: Rehearsal | None = None

    def choices(self) -> Quantization:
        """Returns the section on what was chosen. It is added where there is none yet."""
        if self.quantization is None:
            self.quantization = Quantization()
        return self.quantization

    def prompts(self) -> Prefill:
        """Returns the section on the graph for prompts (raises `ValueError`: there is none yet)."""
        if self.prefill is None:
            raise ValueError("the report has no section on prompts yet")
        return self.prefill
