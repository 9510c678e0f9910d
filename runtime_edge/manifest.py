"""The manifest: everything that the runtime must know about an artifact, as data.

An artifact is a directory:

    manifest.json           this schema
    report.json             the measured quality report
    tokenizer.json          the tokenizer, in the `tokenizers` library's format
    chat_template.jinja     the chat template, where the model has one
    <variant>.onnx          one graph a variant, its weights outside
    blobs/<sha256>          weights, named by their content

Every file but the manifest itself is listed in `files` with its size and sha256.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

FORMAT = "lepton"
FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
REPORT_NAME = "report.json"

# Bounds on what a manifest may claim, checked before anything is allocated from it.
MAX_MANIFEST_BYTES = 16 * 2**20
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Size = Annotated[int, Meta(ge=0, le=2**46)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all records: immutable, unknown fields refused."""


class File(_Record):
    """One file of the artifact: `path` relative to it with forward slashes, `size` in bytes."""

    path: str
    size: Size
    sha256: Sha256


class Tokenizer(_Record):
    """How text becomes token ids.

    `special_tokens` maps names that chat templates use (`bos_token`, `eos_token`, …) to their text.
    """

    file: str
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    special_tokens: dict[str, str] = {}
    chat_template: str | None = None


class CacheLayer(_Record):
    """Key/value cache of one layer: buffers [batch, kv_heads, length, head_dim], keys' and values' width."""

    kv_heads: Positive
    key_dim: Positive
    value_dim: Positive
    window: Positive | None = None


class Decoder(_Record):
    """A causal language model. `cache[i]` describes `past_key_values.{i}.key` and `.value`."""

    vocab_size: Positive
    max_seq_len: Positive
    cache: tuple[CacheLayer, ...]
    cache_dtype: str = "float32"


class Encoder(_Record):
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


class Variant(_Record):
    """The model compiled for one target: `graph` is run by `backend` and reads `blobs`."""

    name: str
    target: str
    backend: str
    graph: str
    weights: str
    activations: str = "none"
    blobs: tuple[str, ...] = ()


class PassRecord(_Record):
    """A pass that was run: its name, the version of its config, and the config itself."""

    name: str
    version: Count
    config: dict[str, Any] = {}


class Manifest(_Record):
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
