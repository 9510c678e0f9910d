"""What `leptonc build --emit onnx` wrote, as a source: the captured graph itself, and what came with the model.

    lepton.json             what the graph is (`About`), by which such a directory is recognised
    model.onnx              the graph in the IR dialect, which any ONNX runtime executes as it stands
    blobs/<sha256>          its weights, a file a layer, named by their content
    config.json, …          the model's own files, as a Hugging Face directory has them

Nothing in it is trusted: other places for weights than `blobs` are refused, and every size is checked against the file.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from leptonc.errors import InputError, require
from leptonc.report.pruning import Pruning
from leptonc.report.quality import Fidelity
from leptonc.sources.base import Emitted, Source
from leptonc.sources.hf import model_files
from leptonc.sources.jsonfile import read_bytes, read_json
from leptonc.sources.mapped import MappedBytes
from leptonc.sources.safetensors_file import SafetensorsTensor
from leptonc.sources.sentence import read_sentence
from runtime_edge.manifest import EMITTED_NAME, PassRecord, Positive

GRAPH_NAME = "model.onnx"
FORMAT, FORMAT_VERSION = "lepton-graph", 1
_AGAIN = "it is damaged, or was changed: write it again with `leptonc build MODEL --emit onnx`"
_BLOB = re.compile(r"blobs/([0-9a-f]{64})")
_DTYPES = {1: "F32", 7: "I64", 9: "BOOL"}  # of ONNX's TensorProto.DataType: those of the dialect
_ITEMS = {"F32": 4, "I64": 8, "BOOL": 1}


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is known of an emitted graph and is in none of the other files.

    Attributes:
        format: Always `FORMAT`; `format_version` counts up when earlier readers would misunderstand.
        task: Name of the task that the graph's inputs and outputs are for.
        parameters: Number of weights, tied ones counted once.
        max_seq_len: Positions that its tables hold.
        origin: Where the model came from that was captured; see `Source.origin`.
        passes: What has changed the graph since.
        pruning: What was reported of each pruning, the first one first.
        fidelity: How far it is from the model that was captured, where that was measured.
        files: Every file that was written with it: what `--force` may remove.
    """

    format: str = FORMAT
    format_version: int = FORMAT_VERSION
    task: str
    parameters: Positive
    max_seq_len: Positive
    origin: dict[str, str]
    passes: tuple[PassRecord, ...] = ()
    pruning: tuple[Pruning, ...] = ()
    fidelity: Fidelity | None = None
    files: tuple[str, ...] = ()


def encode(about: About) -> bytes:
    """Returns the bytes of `EMITTED_NAME`: equal records give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(about, order="sorted"), indent=2) + b"\n"


def is_emitted(directory: Path) -> bool:
    """Whether a directory says that it is an emitted graph."""
    return (directory / EMITTED_NAME).is_file()


def open_emitted(directory: Path) -> Source:
    """Opens an emitted graph; weights are hashed, and stay in the mapped files.

    Raises:
        InputError: Something is missing, damaged, of another version, or not within the directory.
        MissingExtraError: onnx is not installed.
    """
    about = _about(directory / EMITTED_NAME)
    name = directory.resolve().name
    data = read_bytes(_inside(directory, GRAPH_NAME))
    fields = model_files(directory, read_sentence(directory), written=True)
    whence = {key if key == "licence" else f"from_{key}": value for key, value in about.origin.items()}
    files: dict[str, MappedBytes] = {}
    try:
        weights = {
            tensor.name: _weight(directory, tensor, files) for tensor in _outside(data, str(directory / GRAPH_NAME))
        }
    except InputError:
        for file in files.values():
            file.close()
        raise
    return Source(
        name=name,
        origin={"kind": "emitted", "id": name, "sha256": hashlib.sha256(data).hexdigest()} | whence,
        weights=weights,
        closers=tuple(file.close for file in files.values()),
        emitted=Emitted(
            label=str(directory / GRAPH_NAME), graph=data, task=about.task, parameters=about.parameters,
            max_seq_len=about.max_seq_len, origin=about.origin, passes=about.passes, pruning=about.pruning,
            fidelity=about.fidelity,
        ),
        **fields,
    )  # fmt: skip


def _about(path: Path) -> About:
    record = read_json(path)
    version = (record.get("format"), record.get("format_version"))
    if version != (FORMAT, FORMAT_VERSION):
        raise InputError(
            f"{path}: expected {FORMAT} of version {FORMAT_VERSION}, found {str(version[0])[:40]} of version "
            f"{str(version[1])[:40]}",
            hint="a later Lepton wrote it: read it with that one, or write it again with this one",
        )
    try:
        return msgspec.convert(record, About)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: expected what describes an emitted graph, found: {error}", hint=_AGAIN) from error


def _inside(directory: Path, name: str) -> Path:
    """A file of the directory, and no link to one elsewhere."""
    path = directory / name
    if path.is_symlink() or not path.is_file() or not path.resolve().is_relative_to(directory.resolve()):
        raise InputError(f"{directory}: expected the file {name}, found none", hint=_AGAIN)
    return path


def _outside(data: bytes, label: str) -> Iterator[Any]:
    """Yields the initializers that are stored outside of a graph's file, as `onnx.TensorProto`."""
    onnx = require("onnx", extra="compiler", needed_by="an emitted graph")
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise InputError(f"{label}: expected an ONNX model, found: {error}", hint=_AGAIN) from error
    if not _is_text(model):
        raise InputError(f"{label}: expected names in UTF-8, found other bytes", hint=_AGAIN)
    graph = model.graph
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    hidden = [a.name for a in attributes if a.HasField("g") or a.graphs or a.HasField("sparse_tensor")]
    hidden += [a.name for a in attributes for tensor in (a.t, *a.tensors) if tensor.external_data]
    if hidden or graph.sparse_initializer:
        raise InputError(
            f"{label}: expected weights among the initializers alone, found some in "
            f"{hidden[0] if hidden else 'sparse initializers'}",
            hint=_AGAIN,
        )
    for tensor in graph.initializer:
        if tensor.data_type not in _DTYPES or any(size < 0 for size in tensor.dims):
            raise InputError(
                f"{label}: expected float32, int64 or bool values of a known shape for `{tensor.name}`, found type "
                f"{tensor.data_type}, shape {list(tensor.dims)}",
                hint=_AGAIN,
            )
        if tensor.external_data or tensor.data_location:
            yield tensor


def _is_text(message: Any) -> bool:
    """Whether all texts of a protobuf message are: what is no UTF-8 comes as bytes."""
    for field, value in message.ListFields():
        values = value if hasattr(value, "__len__") and not isinstance(value, str | bytes) else [value]
        if field.type == field.TYPE_STRING and not all(isinstance(text, str) for text in values):
            return False
        if field.type == field.TYPE_MESSAGE and not all(map(_is_text, values)):
            return False
    return True


def _weight(directory: Path, tensor: Any, files: dict[str, MappedBytes]) -> SafetensorsTensor:
    """A handle of one tensor; its file is opened, and hashed, once."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    location, dtype, shape = place.get("location", ""), _DTYPES[tensor.data_type], tuple(map(int, tensor.dims))
    named = _BLOB.fullmatch(location)
    if named is None:
        raise InputError(
            f"{directory / GRAPH_NAME}: expected the weight `{tensor.name}` in blobs/<sha256>, found it at "
            f"{location[:80]!r}",
            hint=_AGAIN,
        )
    if location not in files:
        file = files[location] = MappedBytes([_inside(directory, location)])
        if file.sha256() != named[1]:
            raise InputError(f"{directory / location}: expected its sha256 to be its name, found another", hint=_AGAIN)
    size, whole = math.prod(shape) * _ITEMS[dtype], files[location].size
    begin, length = (_count(place.get(key, "")) for key in ("offset", "length"))
    if length != size or not 0 <= begin <= whole - size:
        raise InputError(
            f"{directory / GRAPH_NAME}: expected {size:,} bytes of `{tensor.name}` {list(shape)} within the "
            f"{whole:,} of {location}, found {length:,} from {begin:,}",
            hint=_AGAIN,
        )
    return SafetensorsTensor(files[location], shape, dtype, begin, begin + size)


def _count(text: str) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else -1
