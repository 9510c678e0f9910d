"""Random weights of the made-up models: each tensor depends on the model's seed and its own name only.

The numbers come straight from Philox's counter (Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405), whose
output numpy never changes, and are summed to a bell shape in integers: every machine gets the same bits.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sample_models import TinyModel

_NORM = re.compile(r"(norm\w*|ln_\w+)\.weight$", re.IGNORECASE)
_EMBEDDING = re.compile(r"(embed|wte|wpe|lm_head)")
_FINAL_NORM = re.compile(r"model\.norm\.weight")
_BIAS_SCALE = 0.05
_NORM_SCALE = 0.1
# Above 1: what layers add outweighs the token's own embedding, so that a wrong attention is seen in the logits.
_LINEAR_GAIN = 1.25


@dataclass(frozen=True)
class RandomTensor:
    """A float32 tensor made when it is read."""

    name: str
    shape: tuple[int, ...]
    seed: int
    mean: float
    scale: float
    dtype: str = "F32"

    def read(self) -> NDArray[np.float32]:
        """Returns the same numbers every time."""
        key = int.from_bytes(hashlib.sha256(f"{self.seed}/{self.name}".encode()).digest()[:16], "little")
        raw = np.asarray(np.random.Philox(key=key).random_raw(math.prod(self.shape)), dtype="<u8")
        # The sum of four uniform 16-bit integers: variance 4 * (2**32 - 1) / 12.
        sums = raw.view("<u2").reshape(-1, 4).sum(axis=1, dtype=np.int64) - 2 * 65535
        values: NDArray[np.float64] = sums.astype(np.float64) * (self.scale / math.sqrt((2**32 - 1) / 3)) + self.mean
        return values.reshape(self.shape).astype(np.float32)


class RandomWeights(Mapping[str, RandomTensor]):
    """All parameters of a made-up model; their names and shapes are asked of transformers when first needed."""

    def __init__(self, model: TinyModel) -> None:
        self._model = model
        self._known: dict[str, RandomTensor] | None = None

    def _tensors(self) -> dict[str, RandomTensor]:
        if self._known is None:
            shapes = parameter_shapes(self._model.config)
            self._known = {name: self._tensor(name, shape) for name, shape in shapes.items()}
        return self._known

    def _tensor(self, name: str, shape: tuple[int, ...]) -> RandomTensor:
        model = self._model
        if _FINAL_NORM.fullmatch(name) and model.final_norm_mean is not None:
            mean, scale = model.final_norm_mean, _NORM_SCALE
        elif _NORM.search(name):
            mean, scale = model.norm_mean, _NORM_SCALE
        elif len(shape) == 1:
            mean, scale = 0.0, _BIAS_SCALE
        elif _EMBEDDING.search(name):
            mean, scale = 0.0, model.embedding_scale
        else:
            mean, scale = 0.0, _LINEAR_GAIN / math.sqrt(shape[1])
        return RandomTensor(name, shape, model.seed, mean, scale)

    def __getitem__(self, name: str) -> RandomTensor:
        return self._tensors()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors())

    def __len__(self) -> int:
        return len(self._tensors())


def parameter_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each parameter of the model that `config` describes; tied ones once. No memory is taken."""
    import torch
    import transformers

    fields = {key: value for key, value in config.items() if key != "model_type"}
    parsed = transformers.AutoConfig.for_model(config["model_type"], **fields)
    with torch.device("meta"):
        model = getattr(transformers, config["architectures"][0])(parsed)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
