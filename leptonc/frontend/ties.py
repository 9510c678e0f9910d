"""Ties of parameters, and tensors of a checkpoint that a model does not take: transformers' rules for both.

The rules are those of `PreTrainedModel.tie_weights` and `_adjust_missing_and_unexpected_keys` in transformers 5.24.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from leptonc.frontend.weights import find, stored_names
from leptonc.sources.base import LazyTensor

_SHOWN = 5
# Computed buffers that checkpoints of earlier versions hold all the same.
_COMPUTED = {"rotary_emb.inv_freq": r"rotary_emb\.inv_freq", "position_ids": r"(^|\.)position_ids$"}


def separate(model: Any, weights: Mapping[str, LazyTensor]) -> list[str]:
    """Unties parameters that the checkpoint holds apart with other values, as `from_pretrained` does.

    Two tied tensors stay tied where the checkpoint has one of them, or both with the same values.

    Returns:
        A warning for each parameter that was untied.
    """
    prefix = getattr(model, "base_model_prefix", "") or ""
    stored = stored_names(model, weights)
    stored_sources: dict[str, str | None] = {}
    warnings = []
    for target, source in getattr(model, "all_tied_weights_keys", {}).items():
        first = stored_sources.setdefault(source, find(source, stored, prefix))
        second = find(target, stored, prefix)
        if first is None:
            stored_sources[source] = second
        elif second is not None and second != first and not _equal(weights[first], weights[second]):
            _untie(model, target)
            warnings.append(
                f"the config ties `{target}` to `{source}`, but the checkpoint has `{second}` with values of its own: "
                "they are not tied, as transformers does not tie them"
            )
    return warnings


def _untie(model: nn.Module, name: str) -> None:
    path, _, leaf = name.rpartition(".")
    tied = model.get_parameter(name)
    with torch.device("meta"):
        setattr(model.get_submodule(path), leaf, nn.Parameter(torch.empty_like(tied), requires_grad=False))


def _equal(first: LazyTensor, second: LazyTensor) -> bool:
    """Compares with one of the two in memory at a time; embeddings are the largest tensors of a model."""
    return tuple(first.shape) == tuple(second.shape) and _digest(first) == _digest(second)


def _digest(tensor: LazyTensor) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(tensor.read(), np.float32).data).digest()


def unused(model: Any, weights: Mapping[str, LazyTensor], config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Returns two lists of tensors that the model does not take: known ones, and others.

    Known are heads and towers of the architecture that the config names. Tensors that transformers ignores without a
    word are in neither list.
    """
    prefix = getattr(model, "base_model_prefix", "") or ""
    stored = stored_names(model, weights)
    used = {find(name, stored, prefix) for name in _names(model)}
    buffers = [name for name, _ in model.named_buffers()]
    ignored = set(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    ignored |= {rule for end, rule in _COMPUTED.items() if any(name.endswith(end) for name in buffers)}
    remaining = {
        name: current for current, name in stored.items()
        if name not in used and not any(re.search(rule, current) for rule in ignored)
    }  # fmt: skip
    whole = _declared(model, config) if remaining else None
    known: set[str | None] = set()
    if whole is not None:
        names, prefix = stored_names(whole, weights), getattr(whole, "base_model_prefix", "") or ""
        known = {find(name, names, prefix) for name in _names(whole)}
    return sorted(name for name in remaining if name in known), sorted(name for name in remaining if name not in known)


def _names(model: nn.Module) -> Iterable[str]:
    yield from (name for name, _ in model.named_parameters(remove_duplicate=False))
    yield from (name for name, _ in model.named_buffers(remove_duplicate=False))


def _declared(model: Any, config: Mapping[str, Any]) -> Any:
    """Returns a model of the architecture that the config names, on the meta device, or None where `model` is one."""
    name = next(iter(config.get("architectures") or ()), None)
    kind = getattr(transformers, str(name), None)
    if kind is None or isinstance(model, kind):
        return None
    fields = {key: value for key, value in config.items() if key not in ("model_type", "dtype", "torch_dtype")}
    try:
        parsed = transformers.AutoConfig.for_model(config["model_type"], **fields)
        with torch.device("meta"):
            return kind._from_config(parsed)
    except (ValueError, TypeError, AttributeError):  # the class is of another kind
        return None


def summary(names: Iterable[str]) -> str:
    """Returns names as text: the layers' numbers left out, the first few shown."""
    groups = Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names)
    shown = [f"`{name}`" + (f" ({count})" if count > 1 else "") for name, count in sorted(groups.items())]
    return ", ".join(shown[:_SHOWN]) + (f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else "")
