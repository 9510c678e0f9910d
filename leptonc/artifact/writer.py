"""Writes an artifact beside its final place, a layer at a time, and renames it there when it is whole."""

from __future__ import annotations

import errno
import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.artifact.place import Place
from leptonc.artifact.place import check_out as check_out  # exported with the writer
from leptonc.errors import InputError
from leptonc.ir.dialect import STORAGE_KEY
from leptonc.ir.structure import layer_of
from leptonc.passes.quantize.blocks import Quantized
from runtime_edge.errors import ArtifactError
from runtime_edge.files import MANIFEST_NAME
from runtime_edge.manifest import DERIVED, File, Manifest, encode

ATTACHED = "attached"  # folder of the artifact with files of the user's: no file of a build's own lies there
INLINE_BYTES = 1024  # smaller tensors stay in the graph's own file
_COPY_BYTES = 2**22
ALIGNMENT = 64  # of a tensor in its blob, in bytes: a cache line, which suits vector loads
# Errors of a system where a path cannot be written to.
_REFUSALS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENAMETOOLONG,
    errno.EMFILE, errno.ENOTDIR, errno.EAGAIN,
}  # fmt: skip

Spot = tuple[str, int, int]  # a blob, and the offset and length of a tensor's bytes in it


class ArtifactWriter:
    """A new artifact in a hidden directory beside `out`; it leaves nothing behind unless `commit` is reached.

    Args:
        out: Path of the artifact.
        replace: Whether an artifact at `out` may be replaced. Default: it may not. Anything else is never replaced, nor
            an artifact with files that no build wrote.

    Raises:
        InputError: `out` exists and may not be replaced, or its directory cannot be written to.
    """

    def __init__(self, out: Path, *, replace: bool = False) -> None:
        self.out = out
        try:
            self._place = Place(out, replace=replace)
        except OSError as error:
            raise _unwritable(out.parent, error) from error
        self.path = self._place.path
        self.scratch = self._place.scratch  # for temporary files, on the same disk
        self.files: dict[str, File] = {}
        self._stored: dict[str, Spot] = {}  # by mark: tensors of the last graph and of those beside it

    def __enter__(self) -> ArtifactWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._place.close()
        if isinstance(error, OSError) and error.errno in _REFUSALS and self._is_ours(error.filename):
            raise _unwritable(self.out.parent, error) from error

    def _is_ours(self, name: Any) -> bool:
        """Whether an error's file is one of the artifact's, or unknown."""
        return name is None or Path(os.fsdecode(name)).is_relative_to(self.out.parent)

    def add(self, name: str, data: bytes | memoryview) -> None:
        """Writes a file of the artifact; an earlier one of the name is replaced."""
        (self.path / name).write_bytes(data)
        self.files[name] = File(path=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())

    def add_arrays(self, arrays: Sequence[NDArray[Any]]) -> list[tuple[str, int]]:
        """Writes arrays that no graph has to one blob, equal ones once; returns each one's blob and offset."""
        parts = [array.tobytes() for array in arrays]
        offsets: dict[bytes, int] = {}
        size = 0
        for part in dict.fromkeys(parts):
            offsets[part] = size
            size += len(part)
        whole = b"".join(offsets)
        path = f"blobs/{hashlib.sha256(whole).hexdigest()}"
        if whole:
            (self.path / "blobs").mkdir(exist_ok=True)
            self.add(path, whole)
        return [(path, offsets[part]) for part in parts]

    def copy(self, file: File, source: Path) -> None:
        """Copies a file of another artifact, a part at a time.

        Raises:
            ArtifactError: Its size or digest differs from that artifact's manifest.
        """
        place, digest, size = self.path / file.path, hashlib.sha256(), 0
        place.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as read, place.open("wb") as write:
            while part := read.read(_COPY_BYTES):
                digest.update(part)
                write.write(part)
                size += len(part)
        if (size, digest.hexdigest()) != (file.size, file.sha256):
            raise ArtifactError(
                f"{file.path}: expected {file.size} bytes with sha256 {file.sha256}, found {size} with "
                f"{digest.hexdigest()}",
                hint="the artifact is damaged or was changed: copy it again, or rebuild it",
            )
        self.files[file.path] = file

    def add_graph(
        self, name: str, model: ir.Model, advance: Callable[[int], Any] = lambda _: None, *, sources: bool = False,
        beside: bool = False,
    ) -> tuple[str, ...]:  # fmt: skip
        """Writes a graph and its weights: one blob a layer, named by its content; equal blobs are one file.

        Each tensor is materialised once, written, and released. `model` then refers to the files.

        Args:
            name: The graph's file name.
            model: The lowered graph.
            advance: Called with the bytes of each tensor written. Default: nothing is called.
            sources: Whether tensors keep their metadata, which has their names in the checkpoint. Default: no.
            beside: Whether tensors that the last graph has too are stored once for both. Default: no.

        Returns:
            Paths of its blobs.
        """
        groups: dict[str, list[ir.Value]] = {}
        for key, value in _outside(model):
            groups.setdefault(layer_of(key), []).append(value)
        known = self._stored if beside else {}
        places: dict[str, Spot] = {}
        for _, values in sorted(groups.items()):
            places |= self._blob(values, advance, sources, known)
        self._stored = known | places
        self.add(name, _serialized(model))
        return tuple(sorted({blob for blob, _, _ in places.values()}))

    def _blob(
        self, values: list[ir.Value], advance: Callable[[int], Any], sources: bool, known: Mapping[str, Spot]
    ) -> dict[str, Spot]:  # fmt: skip
        """Writes a layer's tensors that are not stored yet to one blob; returns the places of all by mark.

        `known` has the places of stored tensors by mark.
        """
        folder = self.path / "blobs"
        folder.mkdir(exist_ok=True)
        partial, digest = folder / "partial", hashlib.sha256()
        places: dict[str, Spot] = {}  # path "" is the new blob's
        with partial.open("wb") as file:
            for value in values:
                tensor = value.const_value
                if tensor is None:
                    raise ValueError(f"initializer {value.name} has no data")
                mark = _mark(str(value.name), value)
                if mark in places:
                    continue
                data, place = _data(tensor), known.get(mark)
                if place is None or not self._holds(place, data):
                    for chunk in (bytes(-file.tell() % ALIGNMENT), data):
                        digest.update(chunk)
                        file.write(chunk)
                    place = ("", file.tell() - len(data), len(data))
                    advance(len(data))
                places[mark] = place
                del data
            size = file.tell()
        Quantized.forget()
        path = f"blobs/{digest.hexdigest()}"
        if size:
            partial.replace(self.path / path)
            self.files[path] = File(path=path, size=size, sha256=digest.hexdigest())
        else:
            partial.unlink()
        places = {mark: (blob or path, offset, length) for mark, (blob, offset, length) in places.items()}
        for value in values:
            stored: Any = value.const_value
            blob, offset, length = places[_mark(str(value.name), value)]
            value.const_value = ir.ExternalTensor(
                blob,
                offset,
                length,
                stored.dtype,
                shape=stored.shape,
                name=str(value.name),
                metadata_props=dict(stored.metadata_props) if sources else None,
                base_dir=self.path,
            )
        return places

    def _holds(self, place: Spot, data: Any) -> bool:
        """Whether these bytes lie at a place."""
        blob, offset, length = place
        with (self.path / blob).open("rb") as file:
            file.seek(offset)
            return len(data) == length and file.read(length) == data

    def write_manifest(self, manifest: Manifest) -> None:
        """Writes the manifest; the artifact can be loaded from `path` from then on."""
        (self.path / MANIFEST_NAME).write_bytes(encode(manifest))

    def listing(self) -> tuple[File, ...]:
        """Returns all files written, in the order of their paths."""
        return tuple(self.files[name] for name in sorted(self.files))

    def commit(self) -> Path:
        """Moves the artifact to `out`, once all of it is on the disk; an old one there is removed then.

        Raises:
            InputError: Something appeared there meanwhile that may not be replaced; it is left as it is.
        """
        self._place.put()
        return self.out


def derived(name: str, shape: tuple[int, ...], dtype: ir.DataType) -> ir.ExternalTensor:
    """Returns a tensor that is stored nowhere: the runtime makes it, see `runtime_edge.derived`."""
    size = math.prod(shape) * dtype.itemsize
    return ir.ExternalTensor(DERIVED, 0, int(size), dtype, shape=ir.Shape(shape), name=name, base_dir=Path())


def is_derived(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor is one of `derived`."""
    return isinstance(tensor, ir.ExternalTensor) and str(tensor.location) == DERIVED


def _outside(model: ir.Model) -> list[tuple[str, ir.Value]]:
    """Returns the initializers that are stored in blobs, ordered by name."""
    return [
        (name, value)
        for name, value in sorted(model.graph.initializers.items())
        if (tensor := value.const_value) is not None
        and not is_derived(tensor)
        and (tensor.nbytes > INLINE_BYTES or isinstance(tensor, ir.LazyTensor))
    ]


def _mark(name: str, value: ir.Value) -> str:
    """Returns the mark that identifies a tensor's data: that of its storage, else its name."""
    return str(value.meta.get(STORAGE_KEY, name))


def _serialized(model: ir.Model) -> bytes:
    data: bytes = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    return data


def stored_bytes(model: ir.Model, beside: ir.Model | None = None) -> int:
    """Returns the bytes of blobs and graph that `ArtifactWriter.add_graph` would write; computes no weight.

    Afterwards `model` refers to files that do not exist. Tensors with a mark of `beside` count as stored.
    """
    known = set() if beside is None else {_mark(name, value) for name, value in _outside(beside)}
    sizes: dict[str, int] = {}
    for name, value in _outside(model):
        tensor: Any = value.const_value
        mark = _mark(name, value)
        sizes[mark] = 0 if mark in known else -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        value.const_value = ir.ExternalTensor(
            f"blobs/{'0' * 64}", 2**31, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=name, base_dir=Path()
        )
    return sum(sizes.values()) + len(_serialized(model))


def _unwritable(place: Path, error: OSError) -> InputError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return InputError(
        f"cannot write the artifact in {place}: {error.strerror or error}; nothing was left there",
        hint="free some space, or choose another place with -o" if full else "choose another place with -o",
    )


def _data(tensor: Any) -> Any:
    """Returns a tensor's bytes in ONNX's little-endian layout, without a copy where the array has it already."""
    if tensor.dtype.bitwidth < 8:
        return tensor.tobytes()
    array = np.ascontiguousarray(tensor.numpy())
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    flat: Any = array.reshape(-1).view(np.uint8)
    return memoryview(flat)
