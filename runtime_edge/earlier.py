"""Reads manifests of formats 1 to 8, and says the same as the latest format does.

These formats had one graph a variant, a second one for prompts at the most, and described a model as a decoder or as an
encoder. The spec of an engine was the field `recipe`. All that is behind `upgraded` sees the latest form alone.
"""

from __future__ import annotations

from typing import Any

import msgspec

from runtime_edge.engine_record import EngineSpec, Plan
from runtime_edge.part_record import LAST_POSITIONS, Part, Port
from runtime_edge.records import Name, Positive, Record, require
from runtime_edge.tasks import names, room

PARTS_VERSION = 9  # the format that parts came with


class _Layer(Record, frozen=True, kw_only=True):
    kv_heads: Positive
    key_dim: Positive
    value_dim: Positive
    window: Positive | None = None


class _Decoder(Record, frozen=True, kw_only=True):
    vocab_size: Positive
    max_seq_len: Positive
    cache: tuple[_Layer, ...]
    cache_dtype: str = "float32"
    keeps_none: bool = False


class _Engine(Record, frozen=True, kw_only=True):
    recipe: EngineSpec
    cache_dtype: str = "float16"
    cache_in_place: bool = True
    plans: tuple[Plan, ...] = ()


class _Variant(Record, frozen=True, kw_only=True):
    name: str
    target: str
    backend: str
    graph: str
    weights: str
    activations: str = "none"
    blobs: tuple[str, ...] = ()
    engine: _Engine | None = None
    prefill: str | None = None
    derived: str | None = None


class _Manifest(Record, frozen=True, kw_only=True):
    """The manifest as it was; what did not change since is passed on as it is, and checked then."""

    format: str
    format_version: int
    name: Any
    task: str
    architecture: Any
    parameters: Any
    source: Any
    tokenizer: Any
    variants: tuple[_Variant, ...]
    files: Any
    decoder: _Decoder | None = None
    encoder: dict[str, Any] | None = None
    passes: Any = ()
    toolchain: Any = msgspec.field(default_factory=dict)
    report: Any = None


class _Encoder(msgspec.Struct, frozen=True, kw_only=True):
    """What became a part; the rest is settings."""

    inputs: tuple[Name, ...]
    output: Name
    dim: Positive


def upgraded(data: bytes) -> dict[str, Any]:
    """Returns a manifest of an earlier format as the latest one has it, to be converted to `Manifest`.

    Args:
        data: The bytes of `manifest.json`, of a format below `PARTS_VERSION`.

    Raises:
        msgspec.DecodeError: It is not JSON, or breaks the schema of its time.
        ArtifactError: It contradicts itself.
    """
    manifest = msgspec.json.decode(data, type=_Manifest)
    room(manifest.task)  # whose error says which there are
    generates = manifest.task not in names.ROWS
    field = "decoder" if generates else "encoder"
    require(getattr(manifest, field) is not None, f"task {manifest.task}: expected `{field}`, found none")
    part, settings = _decoder(manifest.decoder) if generates and manifest.decoder is not None else _encoder(manifest)
    added = (_LAST,) if generates else ()
    kept = (name for name in manifest.__struct_fields__ if name not in ("decoder", "encoder"))
    fields = {name: getattr(manifest, name) for name in kept}
    variants = [_variant(variant, part.name, added) for variant in manifest.variants]
    return {**fields, "variants": variants, "parts": [msgspec.to_builtins(part)], "settings": settings}


# What graphs of decoders for ONNX Runtime have beside their part's inputs.
_LAST = Port(name="logits_to_keep", role=LAST_POSITIONS, dtype="int64", dims=(1,))


def _decoder(decoder: _Decoder) -> tuple[Part, dict[str, Any]]:
    states = [
        names.key_value_state(i, layer.kv_heads, (layer.key_dim, layer.value_dim), decoder.cache_dtype, layer.window)
        for i, layer in enumerate(decoder.cache)
    ]
    logits = msgspec.structs.replace(names.LOGITS, dims=(*names.TEXT, decoder.vocab_size))
    inputs = (names.TOKEN_IDS, names.PAST_LENGTH)
    part = Part(name=names.DECODER, inputs=inputs, outputs=(logits,), states=tuple(states))
    return part, {"max_seq_len": decoder.max_seq_len, "keeps_none": decoder.keeps_none}


def _encoder(manifest: _Manifest) -> tuple[Part, dict[str, Any]]:
    record, row = msgspec.convert(manifest.encoder, _Encoder), names.ROWS[manifest.task]
    unknown = [name for name in record.inputs if name not in names.ENCODER_INPUTS]
    known = ", ".join(names.ENCODER_INPUTS)
    require(not unknown, f"encoder.inputs: expected some of {known}, found {list(record.inputs)}")
    require(record.output == row.name, f"encoder.output: expected {row.name!r}, found {record.output!r}")
    output = msgspec.structs.replace(row, dims=(*row.dims[:-1], record.dim))
    part = Part(
        name=names.ENCODER, inputs=tuple(names.ENCODER_INPUTS[name] for name in record.inputs), outputs=(output,)
    )
    became = ("inputs", "output", "dim")
    return part, {name: value for name, value in (manifest.encoder or {}).items() if name not in became}


def _engine(engine: _Engine | None) -> dict[str, Any] | None:
    if engine is None:
        return None
    fields = ("cache_dtype", "cache_in_place", "plans")
    return {"spec": engine.recipe, **{name: getattr(engine, name) for name in fields}}


def _variant(variant: _Variant, part: str, added: tuple[Port, ...]) -> dict[str, Any]:
    shared: dict[str, Any] = {"part": part, "blobs": variant.blobs}
    first = {**shared, "file": variant.graph, "activations": variant.activations, "engine": _engine(variant.engine)}
    if variant.engine is None:
        first["added"] = added
    second = {
        **shared, "file": variant.prefill, "purpose": "prompts", "activations": "int8", "derived": variant.derived,
        "added": added,
    }  # fmt: skip
    require(
        variant.derived is None or variant.prefill is not None,
        f"variant {variant.name!r}: derived: expected it beside a graph for prefill, found none",
    )
    graphs = [first] if variant.prefill is None else [first, second]
    fields = {name: getattr(variant, name) for name in ("name", "target", "backend", "weights")}
    return {**fields, "graphs": msgspec.to_builtins(graphs)}
