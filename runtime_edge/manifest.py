"""The manifest: everything that the runtime must know about an artifact, as data.

An artifact is a directory:

    manifest.json           this schema
    report.json             the measured quality report
    report.html             the same for people, one file
    tokenizer.json          the tokenizer, in the `tokenizers` library's format
    chat_template.jinja     the chat template, where the model has one
    <variant>.onnx          one graph a variant, its weights outside
    <variant>.prefill.onnx  a second one for prefill, where it has one
    <variant>.prefill.json  how that one's weights are made as it is opened, where they are not stored
    blobs/<sha256>          weights, named by their content

Every file but the manifest itself is listed in `files` with its size and sha256.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from runtime_edge.errors import ArtifactError, FormatVersionError
from runtime_edge.files import MANIFEST_NAME

FORMAT = "lepton"
# 2: engines; 3: graphs for prefill; 4: sparse weights; 5: derived weights; 6: runs without logits; 7: derived weights
# whose inputs are multiplied. What earlier versions said reads as before.
FORMAT_VERSION = 7
REPORT_NAME = "report.json"
EMITTED_NAME = "lepton.json"  # of a graph that `build --emit onnx` wrote: no artifact, and inspected like one
PAGE_NAME = "report.html"

TEXT_GENERATION = "text-generation"
TEXT_EMBEDDING = "text-embedding"
TEXT_CLASSIFICATION = "text-classification"
TASKS = (TEXT_GENERATION, TEXT_EMBEDDING, TEXT_CLASSIFICATION)
ENGINE_DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}  # of an engine's cache, and the bytes of each
DERIVED = "derived"  # what a graph names in the place of a blob, for a weight that is made as it is opened
CACHE_DTYPES = {**ENGINE_DTYPES, "int8": 1}  # of a graph's
FLAVOURS = ("tensorrt", "tensorrt-rtx")
ENCODER_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
ENCODER_OUTPUT = {TEXT_EMBEDDING: "embeddings", TEXT_CLASSIFICATION: "logits"}

# Bounds on what a manifest may claim, checked before anything is allocated from it.
MAX_MANIFEST_BYTES = 16 * 2**20
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Size = Annotated[int, Meta(ge=0, le=2**46)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all records: immutable, unknown fields refused."""


class File(Record, frozen=True, kw_only=True):
    """One file of the artifact: `path` relative to it with forward slashes, `size` in bytes."""

    path: str
    size: Size
    sha256: Sha256


class Tokenizer(Record, frozen=True, kw_only=True):
    """How text becomes token ids.

    `special_tokens` maps names that chat templates use (`bos_token`, `eos_token`, …) to their text.
    """

    file: str
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    special_tokens: dict[str, str] = {}
    chat_template: str | None = None


class CacheLayer(Record, frozen=True, kw_only=True):
    """Key/value cache of one layer: buffers [batch, kv_heads, length, head_dim], keys' and values' width."""

    kv_heads: Positive
    key_dim: Positive
    value_dim: Positive
    window: Positive | None = None


class Decoder(Record, frozen=True, kw_only=True):
    """A causal language model. `cache[i]` describes `past_key_values.{i}.key` and `.value`.

    `keeps_none` says that graphs of ONNX Runtime take 0 for `logits_to_keep`: all but the cache is left out then.
    """

    vocab_size: Positive
    max_seq_len: Positive
    cache: tuple[CacheLayer, ...]
    cache_dtype: str = "float32"
    keeps_none: bool = False


class Encoder(Record, frozen=True, kw_only=True):
    """An encoder with one output row a text.

    `inputs` are the graph's inputs among input_ids, attention_mask and token_type_ids, each int64 [batch, length].
    `output` is `embeddings` (float32 [batch, dim]) or `logits` (float32 [batch, dim], `labels` naming the columns).
    """

    inputs: tuple[str, ...]
    output: str
    dim: Positive
    max_seq_len: Positive
    labels: tuple[str, ...] = ()
    multi_label: bool = False


class InputShapes(Record, frozen=True, kw_only=True):
    """The least, most usual and greatest shape of a graph's input in an optimization profile."""

    name: str
    min: tuple[Positive, ...]
    opt: tuple[Positive, ...]
    max: tuple[Positive, ...]


class Profile(Record, frozen=True, kw_only=True):
    """An optimization profile of an engine; `inputs` are those that have dynamic dimensions."""

    name: str
    inputs: tuple[InputShapes, ...]


class Recipe(Record, frozen=True, kw_only=True):
    """How a plan is built from the variant's graph: with equal recipe, graph and TensorRT, an equal engine.

    `flavour` is tensorrt or tensorrt-rtx, `versions` the range of its versions that can build the graph
    (`>=10.16;<11.0`), `compute_capabilities` those that it is for (`8.7`). `workspace_mb` bounds scratch memory.
    `weight_streaming` lets weights stay on the host, `refit` lets them be replaced, `strip` leaves them out,
    `sparse_weights` lets kernels skip zeros where two of four weights are zero.
    """

    flavour: str
    versions: str
    compute_capabilities: tuple[str, ...]
    profiles: tuple[Profile, ...]
    workspace_mb: Positive | None = None
    weight_streaming: bool = False
    refit: bool = False
    strip: bool = False
    sparse_weights: bool = False


class Plan(Record, frozen=True, kw_only=True):
    """A serialized engine: the file, the exact version of TensorRT that built it, and the capabilities it runs on."""

    file: str
    version: str
    compute_capabilities: tuple[str, ...]


class Engine(Record, frozen=True, kw_only=True):
    """A variant that TensorRT runs.

    `cache_dtype` is the element type of the decoder's cache; `cache_in_place` says that one buffer is bound as past and
    present (else two, in turn). `plans` were built by the compiler; others are finished on the device.
    """

    recipe: Recipe
    cache_dtype: str = "float16"
    cache_in_place: bool = True
    plans: tuple[Plan, ...] = ()


class Variant(Record, frozen=True, kw_only=True):
    """The model compiled for one target: `graph` is run by `backend` and reads `blobs`.

    A backend of TensorRT has `engine`; its plans are run in the graph's place. `prefill` is a decoder's second graph,
    with the same inputs, outputs and cache, in a form that is faster for many tokens at once; `derived` says which of
    its weights are made from stored ones, and how: see `runtime_edge.derived`.
    """

    name: str
    target: str
    backend: str
    graph: str
    weights: str
    activations: str = "none"
    blobs: tuple[str, ...] = ()
    engine: Engine | None = None
    prefill: str | None = None
    derived: str | None = None

    @property
    def graphs(self) -> tuple[str, ...]:
        """All graphs."""
        return (self.graph,) if self.prefill is None else (self.graph, self.prefill)

    @property
    def parts(self) -> list[tuple[str, str]]:
        """All files that are this variant's: the field that names each, and its path."""
        found = [*(("graph", graph) for graph in self.graphs), *(("blobs", blob) for blob in self.blobs)]
        found += [] if self.derived is None else [("derived", self.derived)]
        return found + ([] if self.engine is None else [("plans", plan.file) for plan in self.engine.plans])

    def beside(self, root: Path) -> dict[str, Path | None]:
        """What `Backend.open_decoder` takes beside the graph, for an artifact at `root`."""
        found = {"prefill": self.prefill, "derived": self.derived}
        return {name: None if path is None else root / path for name, path in found.items()}


class PassRecord(Record, frozen=True, kw_only=True):
    """A pass that was run: its name, the version of its config, and the config itself."""

    name: str
    version: Count
    config: dict[str, Any] = {}


class Manifest(Record, frozen=True, kw_only=True):
    """What `manifest.json` holds. `task` is text-generation, text-embedding or text-classification."""

    format: str
    format_version: Count
    name: str
    task: str
    architecture: str
    parameters: Size
    source: dict[str, str]
    tokenizer: Tokenizer
    variants: tuple[Variant, ...]
    files: tuple[File, ...]
    decoder: Decoder | None = None
    encoder: Encoder | None = None
    passes: tuple[PassRecord, ...] = ()
    toolchain: dict[str, str] = {}
    report: str | None = None


def encode(manifest: Manifest) -> bytes:
    """Returns the manifest as indented JSON with sorted keys: equal manifests give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2) + b"\n"


class _Header(msgspec.Struct, frozen=True):
    """The two fields that every version of the format has."""

    format: str
    format_version: Count


def decode(data: bytes) -> Manifest:
    """Reads a manifest and checks that its parts agree; touches no other file.

    Args:
        data: The bytes of `manifest.json`.

    Raises:
        FormatVersionError: It was written by a later toolchain.
        ArtifactError: It is not JSON, breaks the schema, or contradicts itself.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"{MANIFEST_NAME}: expected at most {MAX_MANIFEST_BYTES} bytes, found {len(data)}")
    try:
        # The version comes first: a later format may have fields that the schema below refuses.
        header = msgspec.json.decode(data, type=_Header)
        if header.format != FORMAT:
            raise ArtifactError(f"{MANIFEST_NAME}: expected format {FORMAT!r}, found {header.format!r}")
        if header.format_version > FORMAT_VERSION:
            raise FormatVersionError(
                f"{MANIFEST_NAME}: expected format_version at most {FORMAT_VERSION}, found {header.format_version}",
                hint="this artifact was written by a later toolchain: upgrade with `pip install -U lepton-edge`",
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"{MANIFEST_NAME}: expected a manifest as JSON, found: {error}") from error
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    """What a schema cannot say: every name that is referred to exists, once, and the task has its description."""
    paths = [file.path for file in manifest.files]
    _unique("files", (path.casefold() for path in paths))
    _unique("variants", (variant.name for variant in manifest.variants))
    references = [("tokenizer.file", manifest.tokenizer.file)]
    if manifest.tokenizer.chat_template is not None:
        references.append(("tokenizer.chat_template", manifest.tokenizer.chat_template))
    if manifest.report is not None:
        references.append(("report", manifest.report))
    for variant in manifest.variants:
        references += [(f"variant {variant.name!r}: {field}", path) for field, path in variant.parts]
        _require(
            variant.prefill is None or (manifest.decoder is not None and variant.backend == "onnxruntime"),
            f"variant {variant.name!r}: prefill: expected one for a decoder that onnxruntime runs, and for no other",
        )
        _require(
            variant.derived is None or variant.prefill is not None,
            f"variant {variant.name!r}: derived: expected it beside a graph for prefill, found none",
        )
        _check_engine(variant)
    listed = set(paths)
    made = any(variant.derived is not None for variant in manifest.variants)
    _require(not made or DERIVED not in listed, f"files: expected none called {DERIVED!r} beside derived weights")
    for where, path in references:
        _require(path in listed, f"{where}: expected a file listed in `files`, found {path!r}")
    _require(bool(manifest.variants), "variants: expected at least one, found none")
    _require(manifest.task in TASKS, f"task: expected one of {', '.join(TASKS)}, found {manifest.task!r}")
    if manifest.task == TEXT_GENERATION:
        _check_decoder(manifest)
    else:
        _check_encoder(manifest)


def _check_engine(variant: Variant) -> None:
    engine, where = variant.engine, f"variant {variant.name!r}: engine"
    _require(
        (engine is not None) == (variant.backend in FLAVOURS),
        f"{where}: expected one for the backends {', '.join(FLAVOURS)} and no other, found backend {variant.backend!r}",
    )
    if engine is None:
        return
    recipe = engine.recipe
    _require(
        recipe.flavour == variant.backend, f"{where}: expected flavour {variant.backend!r}, found {recipe.flavour!r}"
    )
    _require(
        engine.cache_dtype in ENGINE_DTYPES,
        f"{where}: expected cache_dtype to be one of {', '.join(ENGINE_DTYPES)}, found {engine.cache_dtype!r}",
    )
    _require(bool(recipe.profiles), f"{where}: expected at least one profile, found none")
    _unique(f"{where}: profiles", (profile.name for profile in recipe.profiles))
    for profile in recipe.profiles:
        for shapes in profile.inputs:
            ordered = all(a <= b <= c for a, b, c in zip(shapes.min, shapes.opt, shapes.max, strict=False))
            _require(
                len(shapes.min) == len(shapes.opt) == len(shapes.max) and ordered,
                f"{where}: profile {profile.name!r}: expected min <= opt <= max for {shapes.name!r}, found "
                f"{shapes.min}, {shapes.opt}, {shapes.max}",
            )


def _check_decoder(manifest: Manifest) -> None:
    decoder, tokenizer = manifest.decoder, manifest.tokenizer
    if decoder is None:
        raise ArtifactError(f"{MANIFEST_NAME}: task {manifest.task}: expected `decoder`, found none")
    _require(
        decoder.cache_dtype in CACHE_DTYPES,
        f"decoder.cache_dtype: expected one of {', '.join(CACHE_DTYPES)}, found {decoder.cache_dtype!r}",
    )
    named: list[tuple[str, int | None]] = [("eos_token_ids", token) for token in tokenizer.eos_token_ids]
    named += [("bos_token_id", tokenizer.bos_token_id), ("pad_token_id", tokenizer.pad_token_id)]
    for name, token in named:
        _require(
            token is None or 0 <= token < decoder.vocab_size,
            f"tokenizer.{name}: expected ids below vocab_size {decoder.vocab_size}, found {token}",
        )


def _check_encoder(manifest: Manifest) -> None:
    encoder = manifest.encoder
    if encoder is None:
        raise ArtifactError(f"{MANIFEST_NAME}: task {manifest.task}: expected `encoder`, found none")
    _unique("encoder.inputs", encoder.inputs)
    _require(
        "input_ids" in encoder.inputs and set(encoder.inputs) <= set(ENCODER_INPUTS),
        f"encoder.inputs: expected input_ids and others of {', '.join(ENCODER_INPUTS)}, found {list(encoder.inputs)}",
    )
    output = ENCODER_OUTPUT[manifest.task]
    _require(encoder.output == output, f"encoder.output: expected {output!r}, found {encoder.output!r}")
    if output == "logits":
        _require(
            len(encoder.labels) == encoder.dim,
            f"encoder.labels: expected {encoder.dim} labels (dim), found {len(encoder.labels)}",
        )


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ArtifactError(f"{MANIFEST_NAME}: {otherwise}")


def _unique(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        _require(name not in seen, f"{what}: expected each name once, found {name!r} twice")
        seen.add(name)
