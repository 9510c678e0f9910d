"""The steps of sentence-transformers after an encoder, written in numpy: the reference for the captured ones.

It shares no code with the modules that are traced (`leptonc.frontend.sentence`). One text at a time, without padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonc.sources.base import EMBEDDING, TOKENS, LazyTensor, SentenceModules

Doubles = NDArray[np.float64]
_erf = np.vectorize(math.erf, otypes=[np.float64])
_ACTIVATIONS: dict[str, Callable[[Doubles], Doubles]] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0.0),
    "GELU": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "SiLU": lambda x: x / (1 + np.exp(-x)),
    "Softplus": lambda x: np.logaddexp(x, 0.0),
}


def embedded(
    tokens: NDArray[np.float32], modules: SentenceModules | None, weights: Mapping[str, LazyTensor], skipped: int = 0
) -> NDArray[np.float32]:
    """Returns a text's embedding, float32 [dim].

    Args:
        tokens: The encoder's output for each of its tokens, float32 [length, width].
        modules: The steps. None: the mean over the tokens.
        weights: The source's weights, those of step i under `sentence.step{i}.`.
        skipped: Number of a prompt's tokens at the start, which a pooling may leave out.
    """
    values: dict[str, Doubles] = {TOKENS: tokens.astype(np.float64)}
    for index, step in enumerate((modules or SentenceModules.pooled()).chain):

        def weight(name: str, _index: int = index) -> Doubles | None:
            handle = weights.get(f"sentence.step{_index}.{name}")
            return None if handle is None else np.asarray(handle.read(), np.float64)

        options = step.options
        x = values[options.get("module_input_name", TOKENS if step.kind == "Pooling" else EMBEDDING)]
        if step.kind == "Pooling":
            first = 0 if options["include_prompt"] else skipped
            output = np.concatenate([_pooled(mode, x, first) for mode in options["pooling_mode"]])
        elif step.kind == "Dense":
            output = _dense(x, options, weight)
        elif step.kind == "LayerNorm":
            output = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
            output = output * _required(weight("norm.weight")) + _required(weight("norm.bias"))
        else:
            output = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
        values[options.get("module_output_name", EMBEDDING)] = output
    return values[EMBEDDING].astype(np.float32)


def _pooled(mode: str, x: Doubles, first: int) -> Doubles:
    rows = x[first:]
    if mode == "cls":
        return np.asarray(rows[0])
    if mode == "lasttoken":
        return np.asarray(rows[-1])
    if mode == "max":
        return np.asarray(rows.max(axis=0))
    if mode == "weightedmean":
        places = np.arange(first + 1, len(x) + 1, dtype=np.float64)
        return np.asarray((places[:, None] * rows).sum(axis=0) / places.sum())
    return np.asarray(rows.sum(axis=0) / (len(rows) if mode == "mean" else math.sqrt(len(rows))))


def _dense(x: Doubles, options: Mapping[str, Any], weight: Callable[[str], Doubles | None]) -> Doubles:
    bias, through = weight("linear.bias"), weight("residual.weight")
    linear = x @ _required(weight("linear.weight")).T
    output = _ACTIVATIONS[options["activation_function"]](linear if bias is None else linear + bias)
    if not options["use_residual"]:
        return output
    return output + (x if through is None else x @ through.T)


def _required(weight: Doubles | None) -> Doubles:
    assert weight is not None  # bound when the model was captured
    return weight
