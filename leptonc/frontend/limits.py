"""Refuses configs that no model can have, before anything is built from them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from leptonc.errors import InputError

# Fields of a config of which transformers builds as many objects, and the count that a small checkpoint may have too.
_COUNTS = (
    (re.compile(r"(^n_|^num_|^encoder_|^decoder_).*(layers?|blocks?)$"), 256),
    (re.compile(r"experts$"), 1024),
    (re.compile(r"^num_labels$"), 2**20),
)


def check_sizes(config: Mapping[str, Any], tensors: int) -> None:
    """Refuses a config that counts more layers than its checkpoint has tensors, or that has NaN for a number.

    Args:
        config: As in config.json.
        tensors: How many tensors the checkpoint has.

    Raises:
        InputError: The config has such a count, or NaN.
    """
    for name, value in _numbers(config):
        if isinstance(value, float) and math.isnan(value):
            raise InputError(f"expected a number for `{name}` in the config, found NaN")
        for pattern, usual in _COUNTS:
            if pattern.search(name.rpartition(".")[2]) and value > max(tensors, usual):
                raise InputError(
                    f"expected `{name}` in the config to fit a checkpoint of {tensors} tensors, found {value}",
                    hint="config.json and the weights belong to different models",
                )


def by_length(config: Any, positions: int) -> list[str]:
    """Returns a warning where rotary frequencies depend on a text's length, else none: an artifact has one set of them.

    Args:
        config: transformers' parsed config.
        positions: Number of positions that the artifact is built for.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    trained = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    if rope.get("rope_type") != "longrope" or not trained or positions <= trained:
        return []
    return [
        f"config.json has frequencies for texts of up to {trained} tokens and for longer ones (LongRoPE): the artifact "
        f"has those for {positions} tokens for all texts, so that shorter ones are answered otherwise than by "
        f"transformers; --max-seq-len {trained} takes the others"
    ]


def _numbers(config: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, int | float]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{within}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{within}{name}", value
