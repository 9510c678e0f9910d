"""Binds a model's parameters to a checkpoint's lazily read tensors, and finds the values of computed buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, apply_renamings

from leptonc.errors import CaptureError, InputError
from leptonc.ir.weights import SOURCE_KEY
from leptonc.sources.base import LazyTensor

_INTEGERS = {"BOOL", *(f"{sign}{bits}" for sign in "IU" for bits in (8, 16, 32, 64))}


def stored_names(model: Any, weights: Mapping[str, LazyTensor]) -> dict[str, str]:
    """Returns the checkpoint's name of each tensor by the name that transformers has for it.

    transformers lists the tensors that it renamed since checkpoints were made. One that it puts together from several
    keeps its name.

    Raises:
        InputError: Two tensors have one name in transformers (`norm.gamma` and `norm.weight`).
    """
    renamed = [change for change in get_model_conversion_mapping(model) if isinstance(change, WeightRenaming)]
    stored: dict[str, str] = {}
    for name in sorted(weights):
        current = apply_renamings(name, renamed)
        if current in stored:
            raise _ambiguous(current, stored[current], name)
        stored[current] = name
    return stored


def _ambiguous(parameter: str, first: str, second: str) -> InputError:
    return InputError(
        f"expected one tensor for `{parameter}`, found two in the checkpoint: `{first}` and `{second}`",
        hint="remove the one that is not the model's, and save the checkpoint again",
    )


def _other_name(name: str, prefix: str) -> str:
    """Returns a name without the base model's prefix where the name has it, else with the prefix."""
    return name.removeprefix(prefix + ".") if name.startswith(prefix + ".") else f"{prefix}.{name}"


def find(name: str, stored: Mapping[str, str], prefix: str) -> str | None:
    """Returns the checkpoint's name of parameter `name`, which may be there with or without the base's prefix."""
    names = [name]
    if prefix:
        names.append(_other_name(name, prefix))
    # Checkpoints of multimodal models keep the language model one level down.
    names += [f"language_model.{name}", name.replace("model.", "model.language_model.", 1)]
    return next((stored[n] for n in names if n in stored), None)


def aliases(model: nn.Module) -> dict[int, list[str]]:
    """Returns all names of each parameter by identity: tied parameters have several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def bind(model: nn.Module, weights: Mapping[str, LazyTensor]) -> dict[str, tuple[str, LazyTensor]]:
    """Returns for each parameter name of `model` the name and handle of its tensor in the checkpoint.

    Parameters that the checkpoint does not have are left out: `require_weights` refuses those that the model reads.

    Raises:
        InputError: a tensor has another shape than its parameter, or holds integers; or two tensors, one with the
            base model's prefix and one without it, have different values for one parameter.
    """
    prefix = getattr(model, "base_model_prefix", "") or ""
    stored = stored_names(model, weights)
    for name, _ in model.named_parameters(remove_duplicate=False) if prefix else ():
        both = [stored[n] for n in (name, _other_name(name, prefix)) if n in stored]
        if len(both) > 1 and not np.array_equal(weights[both[0]].read(), weights[both[1]].read()):
            raise _ambiguous(name, *both)
    bound: dict[str, tuple[str, LazyTensor]] = {}
    parameters = {id(p): p for p in model.parameters()}
    for key, names in aliases(model).items():
        stored_name = next((f for f in (find(n, stored, prefix) for n in names) if f is not None), None)
        if stored_name is None:
            continue
        handle, shape = weights[stored_name], tuple(parameters[key].shape)
        if tuple(handle.shape) != shape:
            raise InputError(
                f"expected `{stored_name}` of shape {list(shape)} as the config says, found {list(handle.shape)}",
                hint="config.json and the weights belong to different models",
            )
        if handle.dtype in _INTEGERS:
            raise InputError(
                f"expected `{stored_name}` to hold floating-point weights, found {handle.dtype}: these are quantized",
                hint="give the original model: Lepton does the quantization itself",
            )
        bound.update((n, (stored_name, handle)) for n in names)
    return bound


def require_weights(read: Iterable[str], bound: Mapping[str, object]) -> None:
    """Refuses a model that reads parameters for which the checkpoint has no tensor.

    Raises:
        InputError: There are such parameters; the message lists the first few.
    """
    missing = sorted(name for name in read if name not in bound)
    if missing:
        shown = ", ".join(f"`{n}`" for n in missing[:5])
        raise InputError(
            f"expected weights for every parameter, found none for {len(missing)}: {shown}",
            hint="the checkpoint is incomplete, or config.json names another architecture",
        )


def checked(name: str, handle: LazyTensor) -> Callable[[], np.ndarray[Any, Any]]:
    """Returns a reader of `handle` as float32 that refuses NaN and infinity."""

    def read() -> np.ndarray[Any, Any]:
        array = np.asarray(handle.read(), dtype=np.float32)
        # The sum is finite iff, but for overflow, every element is; one pass without a mask in memory.
        with np.errstate(invalid="ignore"):  # inf - inf
            total = np.sum(array, dtype=np.float64)
        if not np.isfinite(total) and not np.isfinite(array).all():
            bad = int(array.size - np.count_nonzero(np.isfinite(array)))
            raise InputError(
                f"expected finite weights, found {bad} NaN or infinite values in `{name}`",
                hint="the checkpoint is damaged, or its training diverged",
            )
        return array

    return read


def lazy(name: str, shape: Iterable[int], read: Callable[[], np.ndarray[Any, Any]], source: str) -> ir.LazyTensor:
    """Returns a float32 tensor of the IR that calls `read` whenever its data is read."""
    return ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(read(), dtype=np.float32)),
        dtype=ir.DataType.FLOAT, shape=ir.Shape(tuple(shape)), name=name, cache=False,
        metadata_props={SOURCE_KEY: source},
    )  # fmt: skip


def buffers(model: Any, weights: Mapping[str, LazyTensor]) -> dict[str, np.ndarray[Any, Any]]:
    """Returns the values of the model's buffers: from the checkpoint, else as transformers initialises them.

    The model stays on the meta device: a module's buffers are made real, initialised, read and put back.
    """
    values: dict[str, np.ndarray[Any, Any]] = {}
    prefix = getattr(model, "base_model_prefix", "") or ""
    stored = stored_names(model, weights)
    for path, module in model.named_modules():
        own = {n: b for n, b in module.named_buffers(recurse=False) if b is not None}
        if not own:
            continue
        marks: dict[str, torch.Tensor] = {}
        for name, buffer in own.items():
            unset = float("nan") if buffer.is_floating_point() else 0 if buffer.dtype == torch.bool else -(2**31)
            marks[name] = torch.full(buffer.shape, unset, dtype=buffer.dtype, device="cpu")
            module._buffers[name] = marks[name]
        with torch.no_grad():
            model._init_weights(module)
        for name, buffer in own.items():
            full = f"{path}.{name}" if path else name
            stored_name = find(full, stored, prefix)
            computed = module._buffers[name]
            if stored_name is not None:
                values[full] = np.asarray(weights[stored_name].read())
            elif computed is not None and not _unset(computed):
                values[full] = computed.numpy()
            module._buffers[name] = buffer
    return values


def _unset(tensor: torch.Tensor) -> bool:
    if tensor.is_floating_point():
        return bool(torch.isnan(tensor).any())
    return tensor.dtype != torch.bool and bool((tensor == -(2**31)).any())


def require_buffer(values: Mapping[str, np.ndarray[Any, Any]], name: str) -> np.ndarray[Any, Any]:
    """Returns a buffer's value (raises `CaptureError` where neither the checkpoint nor transformers gives it one)."""
    if name not in values:
        raise CaptureError(f"expected the checkpoint or transformers to give the buffer `{name}` a value, found none")
    return values[name]
