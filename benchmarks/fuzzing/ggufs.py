"""GGUF files of tiny models, and changes to their headers' fields.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from benchmarks.fuzzing import mutate

_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "ab", "\u2581a"]
_KINDS = [2, 3, 3, *[6] * 256, 1, 1, 1, 1, 1]
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


def write(path: Path, architecture: str = "llama", tokenizer: str = "llama", **extra: Any) -> bytes:
    """Writes a model of one layer; returns its bytes."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_tokenizer_model(tokenizer)
    writer.add_token_list(_TOKENS)
    if tokenizer == "llama":
        writer.add_token_scores([0.0] * 259 + [-4.0, -5.0, -6.0, -1.0, -2.0])
    else:
        writer.add_token_merges(["a b", "\u2581 a"])
        writer.add_string("tokenizer.ggml.pre", extra.pop("pre", "llama-bpe"))
    writer.add_token_types(_KINDS)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for key, value in extra.items():
        name = f"{architecture}.{key.replace('__', '.')}"
        if isinstance(value, str):
            writer.add_string(name, value)
        else:
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(name, value)
    shapes = {
        "token_embd": (len(_TOKENS), 8), "output_norm": (8,), "blk.0.attn_norm": (8,), "blk.0.ffn_norm": (8,),
        "blk.0.attn_q": (8, 8), "blk.0.attn_k": (4, 8), "blk.0.attn_v": (4, 8), "blk.0.attn_output": (8, 8),
        "blk.0.ffn_gate": (16, 8), "blk.0.ffn_up": (16, 8), "blk.0.ffn_down": (8, 16),
    }  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@dataclass(frozen=True)
class Field:
    """A number of a header: `role` is value, length, type, size or offset."""

    at: int
    width: int
    role: str


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.fields: list[Field] = []

    def number(self, width: int, role: str) -> int:
        self.fields.append(Field(self.at, width, role))
        self.at += width
        return int.from_bytes(self.data[self.at - width : self.at], "little")

    def string(self) -> None:
        length = self.number(8, "length")
        self.at += length

    def value(self, kind: int) -> None:
        if kind == _STRING:
            self.string()
        elif kind == _ARRAY:
            inner, count = self.number(4, "type"), self.number(8, "length")
            before = len(self.fields)
            for _ in range(count):
                self.value(inner)
            del self.fields[before + 8 :]  # a vocabulary's would be nearly all there are
        else:
            self.number(_WIDTHS[kind], "value")


def fields(data: bytes) -> list[Field]:
    """Returns where the header's numbers are."""
    reader = _Reader(data)
    reader.at = 4
    reader.number(4, "value")
    tensors, pairs = reader.number(8, "length"), reader.number(8, "length")
    for _ in range(pairs):
        reader.string()
        reader.value(reader.number(4, "type"))
    for _ in range(tensors):
        reader.string()
        for _ in range(reader.number(4, "length")):
            reader.number(8, "size")
        reader.number(4, "type")
        reader.number(8, "offset")
    return reader.fields


def seeds(folder: Path) -> list[tuple[bytes, list[Field], int]]:
    """Returns models with their fields and where their headers end."""
    scaled = {"rope__scaling__type": "yarn", "rope__scaling__factor": 2.0, "rope__scaling__original_context_length": 32}
    files = [
        write(folder / "a.gguf"),
        write(folder / "b.gguf", tokenizer="gpt2", attention__key_length=4, attention__value_length=4, **scaled),
        write(folder / "c.gguf", "qwen2", "gpt2", pre="qwen2", rope__dimension_count=4),
        write(
            folder / "d.gguf",
            "gemma3",
            attention__sliding_window=16,
            attention__key_length=4,
            attention__value_length=4,
        ),
    ]
    found = [(data, fields(data)) for data in files]
    return [(data, all_fields, all_fields[-1].at + 8) for data, all_fields in found]


def changed(rng: random.Random, seed: tuple[bytes, list[Field], int]) -> bytes:
    """Returns a file with one to three changes."""
    data, known, end = seed
    if rng.random() < 0.25:
        return mutate.mutate(rng, data[:end]) + data[end:]
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        field = rng.choice(known)
        old = int.from_bytes(out[field.at : field.at + field.width], "little")
        if field.role == "type":
            new = rng.choice((*range(40), 2**31, 2**32 - 1))
        elif field.width == 4 and rng.random() < 0.2:
            new = struct.unpack("<I", struct.pack("<f", rng.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))))[0]
        else:
            new = rng.choice((*[n for n in mutate.NUMBERS if isinstance(n, int)], old + 1, old - 1, 2 * old, 0, 1, 3))
        out[field.at : field.at + field.width] = (new % 256**field.width).to_bytes(field.width, "little")
    return bytes(out)
