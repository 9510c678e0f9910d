"""What the runtime reads: manifests, graphs, derived weights, tokenizers and chat templates of artifacts; requests."""

from __future__ import annotations

import json
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np

import runtime_edge
from benchmarks.fuzzing import graphs, mutate, requests, templates, tokenizers
from runtime_edge import load as loading
from runtime_edge import text as texts
from runtime_edge.chat import ChatTemplate
from runtime_edge.derived import make, read
from runtime_edge.manifest import decode
from tests.runtime_edge import tiny

loading._HEAD_START = 0  # a load is the quicker by what it waits for imports
MESSAGES = (
    [{"role": "user", "content": "hello"}],
    [
        {"role": "system", "content": ""},
        {"role": "user", "content": "é🦙"},
        {"role": "assistant", "content": "a" * 300},
    ],
)


def use(model: Any) -> None:
    """Asks of a model what it does."""
    if model.manifest.decoder is not None:
        model.generate([1, 2, 3], max_new_tokens=3)
        model.score([1, 2, 3, 4, 5])
        model.generate(MESSAGES[0], max_new_tokens=1)
    elif model.manifest.task == "text-classification":
        model.classify(["one two", ""])
    else:
        model.encode(["one two", "", "three " * 9])


class Artifacts:
    """Small artifacts of each task, whose manifests are read and written again."""

    def __init__(self, scratch: Path) -> None:
        makers = {
            "decoder": lambda root: tiny.write_decoder(root),
            "prefill": lambda root: tiny.write_decoder(root, prefill=tiny.Weights.seeded()),
            "encoder": lambda root: tiny.write_encoder(root),
            "classifier": lambda root: tiny.write_encoder(root, labels=("a", "b")),
        }
        self.roots = {name: scratch / name for name in makers}
        for name, maker in makers.items():
            self.roots[name].mkdir()
            maker(self.roots[name])
        self.manifests = {name: (root / "manifest.json").read_bytes() for name, root in self.roots.items()}

    def put(self, name: str, path: str, data: bytes) -> Path:
        """Writes a file of an artifact, and the manifest that is right for it; returns the artifact's directory."""
        import hashlib

        root, manifest = self.roots[name], json.loads(self.manifests[name])
        (root / path).write_bytes(data)
        for file in manifest["files"]:
            if file["path"] == path:
                file |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (root / "manifest.json").write_text(json.dumps(manifest))
        return root


ENGINE = {
    "spec": {
        "flavour": "tensorrt", "versions": ">=10.3;<11.0", "compute_capabilities": ["8.7"], "workspace_mb": 64,
        "profiles": [{"name": "decode", "inputs": [{"name": "input_ids", "min": [1, 1], "opt": [1, 1], "max": [1,
        8]}]}],
    },
    "cache_dtype": "float16", "cache_in_place": True,
    "plans": [{"file": "tokenizer.json", "version": "10.3.0", "compute_capabilities": ["8.7"]}],
}  # fmt: skip


class Manifests(Artifacts):
    """manifest.json: most are judged by the reader alone, some that it takes are opened and asked."""

    def make(self, rng: random.Random) -> bytes:
        name = rng.choice(list(self.roots))
        value = json.loads(self.manifests[name])
        if rng.random() < 0.2:
            value["variants"][0]["backend"] = "tensorrt"
            value["variants"][0]["graphs"][0]["engine"] = json.loads(json.dumps(ENGINE))
        if rng.random() < 0.2:
            value["passes"] = [{"name": "a", "version": 1, "config": {"a": mutate.hostile(rng)}}]
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            value = mutate.change(rng, value)
        return name.encode() + b"\n" + mutate.json_bytes(rng, value)

    def run(self, data: bytes) -> None:
        name, _, document = data.partition(b"\n")
        decode(document)
        if zlib.crc32(data) % 8 == 0:
            root = self.roots[name.decode()]
            (root / "manifest.json").write_bytes(document)
            with runtime_edge.load(root, threads=1) as model:
                use(model)


class Graphs(Artifacts):
    """ONNX graphs, with a manifest whose hashes are right."""

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self.seeds = {name: (self.roots[name] / "cpu.onnx").read_bytes() for name in ("decoder", "encoder")}

    def make(self, rng: random.Random) -> bytes:
        name = rng.choice(list(self.seeds))
        data = self.seeds[name]
        return name.encode() + b"\n" + (mutate.mutate(rng, data) if rng.random() < 0.3 else graphs.changed(rng, data))

    def run(self, data: bytes) -> None:
        name, _, graph = data.partition(b"\n")
        with runtime_edge.load(self.put(name.decode(), "cpu.onnx", graph), threads=1) as model:
            use(model)


class Derived:
    """How weights are made from stored ones."""

    BLOB = 4096

    def __init__(self, scratch: Path) -> None:
        self.path = scratch / "derived.json"
        (scratch / "blob").write_bytes(np.random.default_rng(0).bytes(self.BLOB))
        part = lambda offset: {"blob": "blob", "offset": offset}  # noqa: E731
        weight = {"name": "w.derived", "rows": 8, "columns": 32, "bits": 4, "block_size": 16, "codes": part(0),
                  "scales": part(256), "steps": part(512), "zeros": part(600), "inputs": part(700)}  # fmt: skip
        self.seed = json.dumps(
            {"weights": [weight, {**weight, "bits": 8, "name": "v.derived", "zeros": None}]}
        ).encode()

    def make(self, rng: random.Random) -> bytes:
        value = json.loads(self.seed)
        for _ in range(rng.choice((1, 1, 2, 3))):
            value = mutate.change(rng, value)
        if rng.random() < 0.1 and isinstance(value, dict) and value.get("weights"):
            value["weights"] = mutate.times(value["weights"], rng.choice((2, 50, 3000)))
            if rng.random() < 0.9:
                value["weights"] = [each for some in value["weights"] if isinstance(some, list) for each in some]
        return mutate.json_bytes(rng, value)

    def run(self, data: bytes) -> None:
        self.path.write_bytes(data)
        found = read(self.path, "derived.json", {"blob": self.BLOB})
        made = make(self.path, 1, lambda name, array: None)
        assert made is None
        assert len(found.weights) >= 0


class Tokenizers(Artifacts):
    """tokenizer.json, as a model is given it: texts become ids, and ids texts."""

    def make(self, rng: random.Random) -> bytes:
        return tokenizers.document(rng)

    def run(self, data: bytes) -> None:
        root = self.put("decoder", "tokenizer.json", data)
        codec = texts.TextCodec(root, decode((root / "manifest.json").read_bytes()))
        for text in tokenizers.TEXTS:
            ids = codec.encode(text)
            codec.decode(ids[:200])
            codec.decode([0, 5, 2**32 - 1, 258])


class Templates:
    """Chat templates."""

    def __init__(self, scratch: Path) -> None:
        self.special = {"bos_token": "<bos>", "eos_token": "<eos>"}

    def make(self, rng: random.Random) -> bytes:
        return templates.template(rng).encode("utf-8", "replace")

    def run(self, data: bytes) -> None:
        template = ChatTemplate(data.decode(), self.special)
        for messages in MESSAGES:
            template.render(messages)


class Requests:
    """Calls of a loaded model with arguments of all kinds, written as Python."""

    def __init__(self, scratch: Path) -> None:
        (scratch / "decoder").mkdir()
        (scratch / "encoder").mkdir()
        self.model = runtime_edge.load(tiny.write_decoder(scratch / "decoder"), threads=1)
        self.encoder = runtime_edge.load(tiny.write_encoder(scratch / "encoder"), threads=1)

    def make(self, rng: random.Random) -> bytes:
        return requests.call(rng).encode("ascii", "backslashreplace")

    def run(self, data: bytes) -> None:
        names = {**requests.NAMES, "model": self.model, "encoder": self.encoder}
        found = eval(data.decode("ascii"), names)  # our own text
        if requests.is_lazy(found):
            for index, _ in enumerate(found):
                if index > 3:
                    found.close()
                    break
