"""Reads a GGUF file's tensors for the check with the `gguf` package: its reader, table of names and dequantization.

The table is `gguf.tensor_mapping`, which llama.cpp's converter uses too. The converter's changes of values are undone
here: see `_UNDONE`.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize
from numpy.typing import NDArray

from leptonc.errors import InputError

_PIECE = 2**19  # values that are dequantized at a time: the package takes a few times their size
_ARRAY_HEAD = 12  # bytes: the elements' type and their number

Floats = NDArray[np.float32]


def tensors_of(parts: Sequence[Path], model: Any) -> dict[str, tuple[tuple[int, ...], Callable[[], Floats]]]:
    """Returns the shape and the reader of each of a transformers model's parameters that the file has, by name.

    Args:
        parts: The file, or the pieces that it was cut into, in order; its header lies in the first.
        model: The model.

    Raises:
        InputError: The package does not read the file.
    """
    try:
        header = _Header(parts)
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise InputError(f"{parts[0]}: the gguf package cannot read it: {error}") from error
    architecture = header.fields["general.architecture"].contents()
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], model.config.num_hidden_layers)
    undo = _UNDONE.get(architecture, _as_stored)
    tensors: dict[str, tuple[tuple[int, ...], Callable[[], Floats]]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored in header.places:
            read = functools.partial(undo, functools.partial(header.read, stored), name, model.config)
            tensors[name] = (tuple(parameter.shape), read)
    return tensors


class _Header(gguf.GGUFReader):
    """The package's reader without its slow and large steps: a vocabulary as objects, views of all tensors.

    Attributes:
        places: Type, shape in numpy's order, and offset of each tensor.
    """

    def __init__(self, parts: Sequence[Path]) -> None:
        self.places: dict[str, tuple[gguf.GGMLQuantizationType, tuple[int, ...], int]] = {}
        self._parts, self._sizes = list(parts), [part.stat().st_size for part in parts]
        super().__init__(parts[0])
        del self.data  # the mapping of the first part

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        data: Any = self.data
        kind, count = struct.unpack_from("<IQ", data, orig_offs)
        end = orig_offs + _ARRAY_HEAD
        if kind == gguf.GGUFValueType.STRING:
            for _ in range(count):
                end += 8 + struct.unpack_from("<Q", data, end)[0]
        else:
            end += count * np.dtype(self.gguf_scalar_to_np[gguf.GGUFValueType(kind)]).itemsize
        return end - orig_offs, [], [], [gguf.GGUFValueType.ARRAY]

    def _build_tensors(self, start_offs: int, fields: list[gguf.ReaderField]) -> None:
        for field in fields:
            _, name, _, shape, kind, offset = field.parts
            place = (gguf.GGMLQuantizationType(int(kind[0])), tuple(reversed(shape.tolist())), int(offset[0]))
            self.places[bytes(name).decode()] = (*place[:2], int(start_offs) + place[2])

    def read(self, name: str) -> Floats:
        """Returns a tensor as float32. The file is open only meanwhile, so that its pages leave the memory."""
        kind, shape, offset = self.places[name]
        block, size = GGML_QUANT_SIZES[kind]
        result = np.empty(shape, np.float32)
        rows = result.reshape(-1, shape[-1])
        row_bytes = shape[-1] // block * size
        step = max(1, _PIECE // shape[-1])
        for start in range(0, len(rows), step):
            piece = rows[start : start + step]
            raw = np.frombuffer(self._bytes(offset + start * row_bytes, len(piece) * row_bytes), np.uint8)
            if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
                piece[:] = raw.view("<f4" if kind == gguf.GGMLQuantizationType.F32 else "<f2").reshape(piece.shape)
            else:
                piece[:] = dequantize(raw.reshape(len(piece), row_bytes), kind)
        return result

    def _bytes(self, offset: int, count: int) -> bytes:
        data = b""
        for part, size in zip(self._parts, self._sizes, strict=True):
            if count and offset < size:
                with part.open("rb") as file:
                    file.seek(offset)
                    data += file.read(min(count, size - offset))
                length = min(count, size - offset)
                offset, count = offset + length, count - length
            offset -= size
        return data


def _as_stored(read: Callable[[], Floats], name: str, config: Any) -> Floats:
    return read()


def _llama(read: Callable[[], Floats], name: str, config: Any) -> Floats:
    """Undoes the converter's order of a head's rows of queries and keys, which puts rotated pairs side by side."""
    if not name.rpartition(".")[0].endswith((".q_proj", ".k_proj")):
        return read()
    heads = config.num_attention_heads if ".q_proj" in name else config.num_key_value_heads
    array = read()
    size = len(array) // heads
    order = np.concatenate([np.arange(0, size, 2), np.arange(1, size, 2)])
    return np.concatenate([array[head * size + order] for head in range(heads)])


def _gemma(read: Callable[[], Floats], name: str, config: Any) -> Floats:
    """Takes one from the norms' factors: the converter stores them with the one that Gemma's code adds."""
    return read() - 1 if name.endswith("norm.weight") else read()


def _gpt2(read: Callable[[], Floats], name: str, config: Any) -> Floats:
    """Transposes the weights of linear layers back, which GPT-2's code has [in, out]."""
    transposed = name.endswith(".weight") and ".c_" in name
    return np.ascontiguousarray(read().T) if transposed else read()


_UNDONE: Mapping[str, Callable[[Callable[[], Floats], str, Any], Floats]] = {
    "llama": _llama,
    "gemma": _gemma,
    "gemma2": _gemma,
    "gemma3": _gemma,
    "gpt2": _gpt2,
}
