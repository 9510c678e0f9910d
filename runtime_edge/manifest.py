"""The manifest: everything that the runtime must know about an artifact, as data.

An artifact is a directory:

    manifest.json           this schema
    report.json             the measured quality report
    report.html             the same for people, one file
    tokenizer.json          the tokenizer, in the `tokenizers` library's format
    chat_template.jinja     the chat template, where the model has one; chat_template.<name>.jinja others
    <variant>.onnx          the graph of a model of one part, its weights outside
    <variant>.<part>.onnx   the graph of a part, where the model has several
    <variant>.prefill.onnx  a second one for prompts, where it has one
    <variant>.prefill.json  how that one's weights are made as it is opened, where they are not stored
    blobs/<sha256>          weights, named by their content

Every file but the manifest itself is listed in `files` with its size and sha256.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from runtime_edge.decoder_record import CacheLayer, Decoder, decoder_of
from runtime_edge.earlier import PARTS_VERSION, upgraded
from runtime_edge.encoder_record import Encoder, encoder_of
from runtime_edge.engine_record import (
    ENGINE_DTYPES,
    FLAVOURS,
    Engine,
    EngineSpec,
    InputShapes,
    Plan,
    Profile,
    check_engine,
)
from runtime_edge.errors import ArtifactError, FormatVersionError
from runtime_edge.files import MANIFEST_NAME
from runtime_edge.part_record import Part, Port, check_parts
from runtime_edge.records import Count, Name, Positive, Record, Sha256, Size, require, unique
from runtime_edge.tasks import room

__all__ = [
    "ENGINE_DTYPES",
    "FLAVOURS",
    "CacheLayer",
    "Count",
    "Decoder",
    "Encoder",
    "Engine",
    "EngineSpec",
    "InputShapes",
    "Part",
    "Plan",
    "Port",
    "Positive",
    "Profile",
    "Record",
    "Sha256",
    "Size",
]

FORMAT = "lepton"
# 2: engines; 3: graphs for prefill; 4: sparse weights; 5: derived weights; 6: runs without logits; 7: derived weights
# whose inputs are multiplied; 8: what is done to an encoder's text and to its output; 9: parts, graphs of them, `spec`.
# `runtime_edge.earlier` reads what came before 9.
FORMAT_VERSION = 9
REPORT_NAME = "report.json"
EMITTED_NAME = "lepton.json"  # of a graph that `build --emit onnx` wrote: no artifact, and inspected like one
PAGE_NAME = "report.html"

TEXT_GENERATION = "text-generation"
TEXT_EMBEDDING = "text-embedding"
TEXT_CLASSIFICATION = "text-classification"
DERIVED = "derived"  # what a graph names in the place of a blob, for a weight that is made as it is opened
CACHE_DTYPES = {**ENGINE_DTYPES, "int8": 1}  # of a graph's
ANY, PROMPTS = "any", "prompts"
PURPOSES = (ANY, PROMPTS)

MAX_MANIFEST_BYTES = 16 * 2**20  # checked before anything is allocated from it


class File(Record, frozen=True, kw_only=True):
    """One file of the artifact.

    Attributes:
        path: Its path, relative to the artifact, with forward slashes.
        size: Its bytes.
        sha256: Its hash, 64 hexadecimal digits.
    """

    path: str
    size: Size
    sha256: Sha256


class Tokenizer(Record, frozen=True, kw_only=True):
    """How text becomes token ids.

    Attributes:
        file: The tokenizer, in the format of the `tokenizers` library.
        bos_token_id: The token that begins a text.
        eos_token_ids: Tokens that end an answer.
        pad_token_id: The token that fills a batch.
        special_tokens: Texts by the names that chat templates use (`bos_token`, `eos_token`, …).
        chat_template: The file of the default chat template.
        chat_templates: Files of other templates by their names (`tool_use`).
        vocab_size: How many tokens the model has; a tokenizer may have more.
    """

    file: str
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    special_tokens: dict[str, str] = msgspec.field(default_factory=dict)
    chat_template: str | None = None
    chat_templates: dict[str, str] = msgspec.field(default_factory=dict)
    vocab_size: Positive | None = None


class Graph(Record, frozen=True, kw_only=True):
    """A graph of a part.

    Attributes:
        part: The part's name.
        file: The graph, which the variant's backend runs.
        purpose: `any`, or `prompts` for a graph that is faster for many tokens at once, over the same states.
        activations: `none` or `int8`.
        added: Inputs that its lowering gave it beside the part's own.
        blobs: Files of weights that it reads.
        derived: A file that says which of its weights are made from stored ones as it is opened, and how.
        engine: Of a backend of TensorRT: what is built of the graph, and run in its place.
    """

    part: Name
    file: str
    purpose: str = ANY
    activations: str = "none"
    added: Annotated[tuple[Port, ...], msgspec.Meta(max_length=8)] = ()
    blobs: tuple[str, ...] = ()
    derived: str | None = None
    engine: Engine | None = None


class Variant(Record, frozen=True, kw_only=True):
    """The model compiled for one target.

    Attributes:
        name: Its name, which `pack --only` takes.
        target: The target that it was built for.
        backend: What runs its graphs: `onnxruntime`, `tensorrt` or `tensorrt-rtx`.
        weights: Number format of the weights.
        graphs: A graph of every part, and perhaps further ones for prompts.
    """

    name: str
    target: str
    backend: str
    weights: str
    graphs: Annotated[tuple[Graph, ...], msgspec.Meta(min_length=1, max_length=2**10)]

    def graph(self, part: str, purpose: str = ANY) -> Graph | None:
        """Returns the graph of a part for a purpose; nothing where there is none."""
        return next((graph for graph in self.graphs if (graph.part, graph.purpose) == (part, purpose)), None)

    @property
    def main(self) -> Graph:
        """The first graph."""
        return self.graphs[0]

    @property
    def engine(self) -> Engine | None:
        """What TensorRT builds of the first graph."""
        return self.main.engine

    @property
    def blobs(self) -> tuple[str, ...]:
        """Blobs of all graphs."""
        return tuple(sorted({blob for graph in self.graphs for blob in graph.blobs}))

    @property
    def references(self) -> list[tuple[str, str]]:
        """All files that are this variant's: the field that names each, and its path."""
        files = [("graphs", graph.file) for graph in self.graphs] + [("blobs", blob) for blob in self.blobs]
        files += [("derived", graph.derived) for graph in self.graphs if graph.derived is not None]
        engines = [graph.engine for graph in self.graphs if graph.engine is not None]
        return files + [("plans", plan.file) for engine in engines for plan in engine.plans]


class PassRecord(Record, frozen=True, kw_only=True):
    """A pass that changed the model.

    Attributes:
        name: Its name.
        version: The version of its configuration.
        config: The configuration.
    """

    name: str
    version: Count
    config: dict[str, Any] = msgspec.field(default_factory=dict)


class Manifest(Record, frozen=True, kw_only=True):
    """What `manifest.json` holds.

    Attributes:
        format: `lepton`.
        format_version: The version of the format.
        name: The model's name.
        task: What the model is for: `text-generation`, `text-embedding` or `text-classification`.
        architecture: The family that the model's config names, such as `llama`.
        parameters: How many weights the model has.
        source: Where the model came from: kind, id, and where known revision, sha256 and licence. No paths.
        tokenizer: How text becomes token ids.
        parts: What the model consists of, in the order that it runs.
        variants: The model for each target.
        files: Every file of the artifact but the manifest.
        settings: What the task must know beside the parts.
        passes: What was done to the model, in order.
        toolchain: Versions of what built it.
        report: The file of the report.
    """

    format: str
    format_version: Count
    name: str
    task: str
    architecture: str
    parameters: Size
    source: dict[str, str]
    tokenizer: Tokenizer
    parts: Annotated[tuple[Part, ...], msgspec.Meta(max_length=2**8)]
    variants: tuple[Variant, ...]
    files: tuple[File, ...]
    settings: dict[str, Any] = msgspec.field(default_factory=dict)
    passes: tuple[PassRecord, ...] = ()
    toolchain: dict[str, str] = msgspec.field(default_factory=dict)
    report: str | None = None

    @property
    def decoder(self) -> Decoder | None:
        """The model as a decoder over a key/value cache; nothing where it is none."""
        return decoder_of(self.parts, self.settings)

    @property
    def encoder(self) -> Encoder | None:
        """The model as an encoder with one row a text; nothing where it is none."""
        return encoder_of(self.parts, self.settings)


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
                hint="a later Lepton wrote this artifact: upgrade to that version, or build the artifact with this one",
            )
        if header.format_version < PARTS_VERSION:
            manifest = msgspec.convert(upgraded(data), Manifest)
        else:
            manifest = msgspec.json.decode(data, type=Manifest)
        _check(manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"{MANIFEST_NAME}: expected a manifest as JSON, found: {error}") from error
    return manifest


def _check(manifest: Manifest) -> None:
    """What a schema cannot say: every name that is referred to exists, once, and the task has its description."""
    paths = [file.path for file in manifest.files]
    unique("files", (path.casefold() for path in paths))
    unique("variants", (variant.name for variant in manifest.variants))
    check_parts(manifest.parts)
    references = [("tokenizer.file", manifest.tokenizer.file)]
    if manifest.tokenizer.chat_template is not None:
        references.append(("tokenizer.chat_template", manifest.tokenizer.chat_template))
    references += [("tokenizer.chat_templates", path) for path in manifest.tokenizer.chat_templates.values()]
    if manifest.report is not None:
        references.append(("report", manifest.report))
    for variant in manifest.variants:
        references += [(f"variant {variant.name!r}: {field}", path) for field, path in variant.references]
        _check_graphs(manifest, variant)
    listed = set(paths)
    made = any(graph.derived is not None for variant in manifest.variants for graph in variant.graphs)
    require(not made or DERIVED not in listed, f"files: expected none called {DERIVED!r} beside derived weights")
    for where, path in references:
        require(path in listed, f"{where}: expected a file listed in `files`, found {path!r}")
    require(bool(manifest.variants), "variants: expected at least one, found none")
    served = {graph.part for variant in manifest.variants for graph in variant.graphs if graph.purpose == ANY}
    for part in manifest.parts:
        require(part.name in served, f"variants: expected a graph of part {part.name!r} in one of them, found none")
    room(manifest.task).check(manifest)


def _check_graphs(manifest: Manifest, variant: Variant) -> None:
    where, parts = f"variant {variant.name!r}", {part.name: part for part in manifest.parts}
    unique(f"{where}: graphs", (f"{graph.part} for {graph.purpose}" for graph in variant.graphs))
    for graph in variant.graphs:
        part = parts.get(graph.part)
        require(part is not None, f"{where}: graphs: expected a part among {', '.join(parts)}, found {graph.part!r}")
        require(
            graph.purpose in PURPOSES,
            f"{where}: graphs: expected a purpose among {', '.join(PURPOSES)}, found {graph.purpose!r}",
        )
        require(
            graph.purpose != PROMPTS or (part is not None and bool(part.states) and variant.backend == "onnxruntime"),
            f"{where}: expected a graph for prompts of a part with states that onnxruntime runs, and of no other",
        )
        require(
            graph.derived is None or graph.purpose == PROMPTS,
            f"{where}: derived: expected it for a graph for prompts, found it for {graph.file!r}",
        )
    for graph in variant.graphs:
        check_engine(graph.engine, variant.name, variant.backend)


def check_ids(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises ArtifactError where a tokenizer's record names tokens that a model of `vocab_size` tokens has not."""
    named: list[tuple[str, int | None]] = [("eos_token_ids", token) for token in tokenizer.eos_token_ids]
    named += [("bos_token_id", tokenizer.bos_token_id), ("pad_token_id", tokenizer.pad_token_id)]
    for name, token in named:
        require(
            token is None or 0 <= token < vocab_size,
            f"tokenizer.{name}: expected ids below vocab_size {vocab_size}, found {token}",
        )
