"""The manifest: everything that the runtime must know about an artifact, as data.

An artifact is a directory:

    manifest.json           this schema
    report.json             the measured quality report
    report.html             the same for people, one file
    tokenizer.json          the tokenizer, in the `tokenizers` library's format
    chat_template.jinja     the chat template, where the model has one; chat_template.<name>.jinja others
    <variant>.onnx          one graph a variant, its weights outside
    <variant>.prefill.onnx  a second one for prefill, where it has one
    <variant>.prefill.json  how that one's weights are made as it is opened, where they are not stored
    blobs/<sha256>          weights, named by their content

Every file but the manifest itself is listed in `files` with its size and sha256.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from runtime_edge.encoder_record import ENCODER_INPUTS, Encoder, check_encoder
from runtime_edge.engine_record import (
    ENGINE_DTYPES,
    FLAVOURS,
    Engine,
    InputShapes,
    Plan,
    Profile,
    Recipe,
    check_engine,
)
from runtime_edge.errors import ArtifactError, FormatVersionError
from runtime_edge.files import MANIFEST_NAME
from runtime_edge.records import Count, Positive, Record, Sha256, Size, require, unique

__all__ = [
    "ENCODER_INPUTS",
    "ENGINE_DTYPES",
    "FLAVOURS",
    "Count",
    "Encoder",
    "Engine",
    "InputShapes",
    "Plan",
    "Positive",
    "Profile",
    "Recipe",
    "Record",
    "Sha256",
    "Size",
]

FORMAT = "lepton"
# 2: engines; 3: graphs for prefill; 4: sparse weights; 5: derived weights; 6: runs without logits; 7: derived weights
# whose inputs are multiplied; 8: what is done to an encoder's text and to its output. What earlier versions said reads
# as before.
FORMAT_VERSION = 8
REPORT_NAME = "report.json"
EMITTED_NAME = "lepton.json"  # of a graph that `build --emit onnx` wrote: no artifact, and inspected like one
PAGE_NAME = "report.html"

TEXT_GENERATION = "text-generation"
TEXT_EMBEDDING = "text-embedding"
TEXT_CLASSIFICATION = "text-classification"
TASKS = (TEXT_GENERATION, TEXT_EMBEDDING, TEXT_CLASSIFICATION)
DERIVED = "derived"  # what a graph names in the place of a blob, for a weight that is made as it is opened
CACHE_DTYPES = {**ENGINE_DTYPES, "int8": 1}  # of a graph's
ENCODER_OUTPUT = {TEXT_EMBEDDING: "embeddings", TEXT_CLASSIFICATION: "logits"}

MAX_VOCAB = 2**31  # tokens of a model that does not say how many it has
MAX_MANIFEST_BYTES = 16 * 2**20  # checked before anything is allocated from it


class File(Record, frozen=True, kw_only=True):
    """One file of the artifact: `path` relative to it with forward slashes, `size` in bytes."""

    path: str
    size: Size
    sha256: Sha256


class Tokenizer(Record, frozen=True, kw_only=True):
    """How text becomes token ids.

    `special_tokens` maps names that chat templates use (`bos_token`, `eos_token`, …) to their text. `chat_templates`
    are files of templates beside the default one, by their names (`tool_use`). `vocab_size` is how many tokens the
    model has: a tokenizer may have more.
    """

    file: str
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    special_tokens: dict[str, str] = msgspec.field(default_factory=dict)
    chat_template: str | None = None
    chat_templates: dict[str, str] = msgspec.field(default_factory=dict)
    vocab_size: Positive | None = None


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
    config: dict[str, Any] = msgspec.field(default_factory=dict)


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
    toolchain: dict[str, str] = msgspec.field(default_factory=dict)
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
    unique("files", (path.casefold() for path in paths))
    unique("variants", (variant.name for variant in manifest.variants))
    references = [("tokenizer.file", manifest.tokenizer.file)]
    if manifest.tokenizer.chat_template is not None:
        references.append(("tokenizer.chat_template", manifest.tokenizer.chat_template))
    references += [("tokenizer.chat_templates", path) for path in manifest.tokenizer.chat_templates.values()]
    if manifest.report is not None:
        references.append(("report", manifest.report))
    for variant in manifest.variants:
        references += [(f"variant {variant.name!r}: {field}", path) for field, path in variant.parts]
        require(
            variant.prefill is None or (manifest.decoder is not None and variant.backend == "onnxruntime"),
            f"variant {variant.name!r}: prefill: expected one for a decoder that onnxruntime runs, and for no other",
        )
        require(
            variant.derived is None or variant.prefill is not None,
            f"variant {variant.name!r}: derived: expected it beside a graph for prefill, found none",
        )
        check_engine(variant.engine, variant.name, variant.backend)
    listed = set(paths)
    made = any(variant.derived is not None for variant in manifest.variants)
    require(not made or DERIVED not in listed, f"files: expected none called {DERIVED!r} beside derived weights")
    for where, path in references:
        require(path in listed, f"{where}: expected a file listed in `files`, found {path!r}")
    require(bool(manifest.variants), "variants: expected at least one, found none")
    require(manifest.task in TASKS, f"task: expected one of {', '.join(TASKS)}, found {manifest.task!r}")
    if manifest.task == TEXT_GENERATION:
        _check_decoder(manifest)
    else:
        encoder = manifest.encoder
        if encoder is None:
            raise ArtifactError(f"{MANIFEST_NAME}: task {manifest.task}: expected `encoder`, found none")
        check_encoder(encoder, ENCODER_OUTPUT[manifest.task])
        # Formats before 8 do not say how many tokens an encoder has.
        _check_ids(manifest.tokenizer, manifest.tokenizer.vocab_size or MAX_VOCAB)


def _check_decoder(manifest: Manifest) -> None:
    decoder = manifest.decoder
    if decoder is None:
        raise ArtifactError(f"{MANIFEST_NAME}: task {manifest.task}: expected `decoder`, found none")
    require(
        decoder.cache_dtype in CACHE_DTYPES,
        f"decoder.cache_dtype: expected one of {', '.join(CACHE_DTYPES)}, found {decoder.cache_dtype!r}",
    )
    _check_ids(manifest.tokenizer, decoder.vocab_size)


def _check_ids(tokenizer: Tokenizer, vocab_size: int) -> None:
    named: list[tuple[str, int | None]] = [("eos_token_ids", token) for token in tokenizer.eos_token_ids]
    named += [("bos_token_id", tokenizer.bos_token_id), ("pad_token_id", tokenizer.pad_token_id)]
    for name, token in named:
        require(
            token is None or 0 <= token < vocab_size,
            f"tokenizer.{name}: expected ids below vocab_size {vocab_size}, found {token}",
        )
