"""A decoder over the stand-in, ready to be watched."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from runtime_edge.backends.tensorrt import TrtDecoder
from runtime_edge.cuda import Cuda
from runtime_edge.manifest import CacheLayer, Engine, EngineSpec, Profile
from tests.runtime_edge import tiny
from tests.runtime_edge.backends.standin import Api, Call, Tensor, Trt

VOCAB, LENGTH, CHUNK, ROWS = 50, 128, 8, 4
PLAN = b"plan" * 250
LAYERS = (CacheLayer(kv_heads=2, key_dim=16, value_dim=8), CacheLayer(kv_heads=2, key_dim=16, value_dim=8, window=32))
DECODER = tiny.decoder(VOCAB, LENGTH, LAYERS)
CACHE_BYTES = 2 * (2 * LENGTH * 16 + 2 * LENGTH * 8) * 2
PAST = [f"past_key_values.{layer}.{part}" for layer in range(2) for part in ("key", "value")]
PRESENT = [name.replace("past_key_values", "present") for name in PAST]
PREFILL, DECODE = 0, 1


def engine(flavour: str = "tensorrt-rtx", names: tuple[str, ...] = ("prefill", "decode"), **changes: Any) -> Engine:
    profiles = tuple(Profile(name=name, inputs=()) for name in names)
    own = {"flavour": flavour, "versions": ">=1.4", "compute_capabilities": ("8.6",), "profiles": profiles}
    spec = EngineSpec(**{**own, **changes.pop("spec", {})})
    return Engine(spec=spec, **changes)


class Bench:
    """A decoder over the stand-in: what it was told, and what it holds."""

    def __init__(self, tmp_path: Path, *, in_place: bool = True, dtype: str = "float16", **changes: Any) -> None:
        self.api = Api()
        self.plan = tmp_path / "tiny.plan"
        self.plan.write_bytes(PLAN)
        tensors = {
            "input_ids": Tensor("input", "int64", (1, -1)),
            "past_length": Tensor("input", "int64", (1,)),
            "logits_at": Tensor("input", "int64", (-1,)),
            "logits": Tensor("output", "float32", (1, -1, VOCAB)),
        }
        for index, (past, present) in enumerate(zip(PAST, PRESENT, strict=True)):
            shape = (1, 2, LENGTH, 8 if index % 2 else 16)
            tensors |= {past: Tensor("input", dtype, shape), present: Tensor("output", dtype, shape)}
        profiles = [{"input_ids": (1, CHUNK), "logits_at": (ROWS,)}, {"input_ids": (1, 1), "logits_at": (1,)}]
        self.trt = Trt(self.api, tensors, profiles)
        self.jit_cache = tmp_path / "jit.cache"
        self.why: list[str] = []
        self.record = engine(cache_in_place=in_place, cache_dtype=dtype, **changes)

    def open(self) -> TrtDecoder:
        return TrtDecoder(self.plan, self.record, DECODER, self.jit_cache, self.why, trt=self.trt, cuda=Cuda(self.api))

    def since(self, start: int) -> list[Call]:
        return self.api.calls[start:]

    def of(self, name: str, start: int = 0) -> list[Call]:
        return [call for call in self.api.calls[start:] if call[0] == name]

    def is_free(self) -> bool:
        gc.collect()
        return not (self.api.memory or self.api.live or self.api.pinned)


def names(calls: list[Call]) -> list[str]:
    return [call[0] for call in calls]
