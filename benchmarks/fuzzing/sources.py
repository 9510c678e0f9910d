"""What the compiler reads: GGUF and safetensors files, directories of models, recipes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import struct
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any
from unittest import mock

import tomllib

from benchmarks.fuzzing import ggufs, mutate
from leptonc.build.recipe import check_values, shipped, with_recipe
from leptonc.build.to_artifact import build
from leptonc.options import BuildOptions
from leptonc.sources import hf, open_source
from leptonc.sources.weight_files import open_weights
from sample_models.export import write_directory


def read_all(spec: Path) -> None:
    """Opens a source and reads all its weights."""
    with open_source(str(spec)) as source:
        for tensor in source.weights.values():
            assert tensor.read().shape == tensor.shape


def pack(files: dict[str, bytes]) -> bytes:
    """Returns files as one input."""
    return json.dumps({name: data.decode("latin-1") for name, data in files.items()}).encode()


def unpack(data: bytes) -> dict[str, bytes]:
    """Returns what `pack` was given."""
    return {name: text.encode("latin-1") for name, text in json.loads(data).items()}


class Ggufs:
    """GGUF files: a number, a length, a type or an offset of the header changed, or bytes before the weights."""

    def __init__(self, scratch: Path) -> None:
        self.path = scratch / "m.gguf"
        self.seeds = ggufs.seeds(scratch)

    def make(self, rng: random.Random) -> bytes:
        return ggufs.changed(rng, rng.choice(self.seeds))

    def run(self, data: bytes) -> None:
        self.path.write_bytes(data)
        read_all(self.path)


class Directories:
    """A model's directory in which files are changed; some of them go on to a build."""

    SEEDS = ("tiny-llama", "tiny-gpt2", "tiny-gemma3", "tiny-bert-classifier", "tiny-sentence")
    ONE_IN = 40  # of those that can be opened: a build takes a second

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.originals = scratch / "originals"
        self.tokenizers: dict[str, Any] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        for name in self.SEEDS:
            with open_source(f"sample:{name}") as source:
                root = write_directory(source, scratch / name)
                write_directory(source, self.originals / name)
            files = (path for path in sorted(root.rglob("*.json")))
            self.files[name] = {str(path.relative_to(root)): path.read_bytes() for path in files}

    def make(self, rng: random.Random) -> bytes:
        name = rng.choice(self.SEEDS)
        small = [path for path in self.files[name] if path != "tokenizer.json"]
        changed: dict[str, bytes] = {}
        for path in rng.sample(small, min(len(small), rng.choice((1, 1, 1, 2)))):
            changed[path] = mutate.mutated_json(rng, self.files[name][path])
        if rng.random() < 0.15:
            other = rng.choice(("added_tokens.json", "adapter_config.json", "special_tokens_map.json",
            "chat_template.jinja",
                                "generation_config.json", "config_sentence_transformers.json",
                                "model.safetensors.index.json",
                                "quantization_config.json", "preprocessor_config.json"))  # fmt: skip
            changed.setdefault(other, mutate.json_bytes(rng, mutate.hostile(rng)))
        return pack({"": name.encode(), **changed})

    def run(self, data: bytes) -> None:
        changed = unpack(data)
        root = self.scratch / changed.pop("").decode()
        name = root.name
        try:
            for path, content in changed.items():
                (root / path).write_bytes(content)
            with self.tokenizer(name, changed.keys(), data), open_source(str(root)):
                pass
            if zlib.crc32(data) % self.ONE_IN == 0:
                self.build(root)
        finally:
            for path in changed:
                (root / path).unlink()
                if path in self.files[name]:
                    (root / path).write_bytes(self.files[name][path])

    def tokenizer(self, name: str, changed: Collection[str], data: bytes) -> Any:
        """Gives the reader of directories the seed's tokenizer, most times where its files are what they were.

        It is made by transformers and compared on many texts, which takes longer than all the rest.
        """
        if zlib.crc32(data) % 8 == 0 or any("token" in path or "sentence" in path for path in changed):
            return contextlib.nullcontext()
        if name not in self.tokenizers:
            self.tokenizers[name] = hf.read_tokenizer(self.originals / name)
        return mock.patch.object(hf, "read_tokenizer", return_value=self.tokenizers[name])

    def build(self, root: Path) -> None:
        """Builds an artifact; of one that is refused nothing may be left."""
        (out := self.scratch / "out").mkdir()
        try:
            build(BuildOptions(str(root), out=out / "m", weights="int8", max_seq_len=64, check=False))
        except Exception:
            left = os.listdir(out)
            assert left == [], f"left behind: {left}"
            raise
        finally:
            shutil.rmtree(out)


class Safetensors:
    """Weights of a directory, whole or in two files with an index, with headers that are changed."""

    def __init__(self, scratch: Path) -> None:
        self.roots = {"one": scratch / "one", "two": scratch / "two"}
        with open_source("sample:tiny-gpt2") as source:
            self.config = source.config
            source.weights = dict(sorted(source.weights.items(), key=lambda item: math.prod(item[1].shape))[:6])
            write_directory(source, self.roots["one"])
            size = sum(4 * math.prod(tensor.shape) for tensor in source.weights.values())
            write_directory(source, self.roots["two"], shard_bytes=size // 2)
        self.files = {
            name: {path.name: path.read_bytes() for path in root.glob("*.safetensors*")}
            for name, root in self.roots.items()
        }

    def make(self, rng: random.Random) -> bytes:
        name = rng.choice(list(self.roots))
        path = rng.choice(list(self.files[name]))
        old = self.files[name][path]
        if path.endswith(".json"):
            return pack({"": name.encode(), path: mutate.mutated_json(rng, old)})
        (length,) = struct.unpack_from("<Q", old)
        header, body = old[8 : 8 + length], old[8 + length :]
        if rng.random() < 0.75:
            header = mutate.mutated_json(rng, header)
        length = (
            len(header) if rng.random() < 0.9 else rng.choice([n for n in mutate.NUMBERS if isinstance(n, int)]) % 2**64
        )
        if rng.random() < 0.1:
            body = mutate.mutate(rng, body)
        return pack({"": name.encode(), path: struct.pack("<Q", length) + header + body})

    def run(self, data: bytes) -> None:
        changed = unpack(data)
        name = changed.pop("").decode()
        for path, content in changed.items():
            (self.roots[name] / path).write_bytes(content)
        try:
            weights, closers, _ = open_weights(self.roots[name], self.config)
            try:
                for tensor in weights.values():
                    assert tensor.read().shape == tensor.shape
            finally:
                for close in closers:
                    close()
        finally:
            for path in changed:
                (self.roots[name] / path).write_bytes(self.files[name][path])


def toml(rng: random.Random, value: Any) -> str:
    """Returns a value as TOML, or as what is none."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {toml(rng, v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(rng, each) for each in value) + "]"
    return json.dumps(value) if value is not None else rng.choice(("", "nan", "1979-05-27", "'''x'''", "0x_1"))


class Recipes:
    """Recipes of a build."""

    def __init__(self, scratch: Path) -> None:
        self.path = scratch / "recipe.toml"
        folder = Path(__file__).parents[2] / "leptonc" / "recipes"
        self.seeds = [tomllib.loads((folder / f"{name}.toml").read_text()) for name in shipped()]
        rule = {"match": ["model.layers.*"], "weights": "int8", "block_size": 64, "symmetric": False}
        self.seeds.append({
            "weights": "auto:95MB", "method": "gptq", "embeddings": "int8", "seed": 3, "memory_gb": 2.5,
            "layers": [rule, rule],
            "max_loss": 3.0, "heal": "10min", "prune": "25%", "kv_cache": "int8", "chat": True, "max_seq_len": 64,
        })  # fmt: skip

    def make(self, rng: random.Random) -> bytes:
        value = json.loads(json.dumps(rng.choice(self.seeds)))
        for _ in range(rng.choice((1, 1, 2, 3))):
            value = mutate.change(rng, value)
        if not isinstance(value, dict):
            value = {"weights": value}
        lines = [f"{key if rng.random() < 0.9 else json.dumps(key)} = {toml(rng, each)}" for key, each in value.items()]
        text = "\n".join(lines).encode("utf-8", "surrogatepass")
        return mutate.mutate(rng, text) if rng.random() < 0.15 else text

    def run(self, data: bytes) -> None:
        self.path.write_bytes(data)
        check_values(with_recipe(BuildOptions("sample:tiny-llama"), str(self.path)))
