"""Inputs of a captured graph for one text."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def inputs_of(model: ir.Model, token_ids: NDArray[np.int64], skipped: int = 0) -> dict[str, NDArray[Any]]:
    """Returns a captured graph's inputs for one text. Its cache is empty, and just large enough.

    Args:
        model: The graph.
        token_ids: int64 [length].
        skipped: Tokens of a prompt at the start, which an encoder's pooling leaves out. Default: none.

    Raises:
        ValueError: The graph has an input that a text does not give.
    """
    ids = token_ids[None]
    known: dict[str, NDArray[Any]] = {
        "input_ids": ids, "past_length": np.zeros(1, np.int64),
        "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids),
        "pooling_mask": (np.arange(len(token_ids)) >= skipped).astype(np.int64)[None],
    }  # fmt: skip
    inputs: dict[str, NDArray[Any]] = {}
    for value in model.graph.inputs:
        name = str(value.name)
        if name in known:
            inputs[name] = known[name]
        elif name.startswith("past_key_values.") and value.shape is not None:
            heads, width = int(value.shape[1]), int(value.shape[3])  # type: ignore[arg-type]
            inputs[name] = _empty_cache((1, heads, len(token_ids), width))
        else:
            raise ValueError(f"a text gives no input {name}")
    return inputs


@lru_cache(maxsize=8)
def _empty_cache(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Zeros that all texts and layers share: nothing is written to them."""
    zeros = np.zeros(shape, np.float32)
    zeros.setflags(write=False)
    return zeros
