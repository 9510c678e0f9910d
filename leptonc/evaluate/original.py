"""Loads the original for the check through transformers' own `from_pretrained`, by code that shares nothing with ours.

`from_pretrained` decides which file is read, how tensors are named, which are tied and which are left out. It gets
marks in the place of tensors: views of one number in a tensor's shape, which take no memory. The number that it puts
into a parameter says which tensor the parameter is made from, and that one is read when the parameter's module runs.
The `safetensors` library reads safetensors; `gguf_original.py` reads GGUF with the `gguf` package.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import modeling_utils

from leptonc.errors import InputError
from leptonc.frontend.tasks import Task, refusals
from leptonc.quiet import quiet
from leptonc.sources.base import Source

_PIECE = 2**22  # values that are converted at a time
_STEPS = "sentence."  # prefix of the steps after an encoder, see `leptonc.evaluate.sentence`
_FIRST = -(2**10)  # float32 has every whole number down to -2**24

Read = Callable[[], NDArray[Any]]


def load_original(source: Source, task: Task) -> tuple[Any, dict[str, Read]]:
    """Returns transformers' model, its parameters on the meta device, and a reader of each parameter as float32.

    Args:
        source: The model's source; `path` says where its files are. A made-up sample has no files: its weights are the
            source's own.
        task: The model's task.

    Raises:
        InputError: transformers does not load the model, or the checkpoint is incomplete.
        CaptureError: transformers has no such model.
    """
    if source.path and source.path[0].is_dir():
        model, reads = _of_directory(source, task)
    elif source.path:
        from leptonc.evaluate.gguf_original import tensors_of

        model, reads = _of_tensors(task, source.config, lambda model: tensors_of(source.path, model))
    else:
        tensors = {name: (tuple(t.shape), t.read) for name, t in source.weights.items() if not name.startswith(_STEPS)}
        model, reads = _of_tensors(task, source.config, lambda _: tensors)
    with torch.device("meta"):
        task.attach(model)
    steps = [name for name, _ in model.named_parameters() if name.startswith(_STEPS)]
    return model.eval(), reads | {name: source.weights[name].read for name in steps}


class _Marks:
    """Numbers that stand for tensors: a parameter full of `_FIRST - i` was made from the i-th.

    No initialization gives such numbers, so parameters that transformers initializes have no mark.
    """

    def __init__(self, whole: frozenset[int] = frozenset()) -> None:
        self.reads: list[Read] = []
        self._whole = whole  # these have their values, because several make one parameter

    def mark(self, shape: tuple[int, ...], read: Read) -> Tensor:
        self.reads.append(read)
        index = len(self.reads) - 1
        return torch.from_numpy(read()) if index in self._whole else torch.tensor(float(_FIRST - index)).expand(shape)

    def of(self, tensor: Tensor) -> int | None:
        """Returns the index of a parameter's tensor, or None where it is not one whole tensor."""
        moving = any(step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
        return None if moving or not tensor.numel() else self._index(float(tensor.detach().flatten()[0]))

    def parts(self, tensor: Tensor) -> set[int]:
        """Returns the indices of the tensors that a parameter was put together from."""
        values: Any = tensor.detach()
        indices = {self._index(value) for value in values.unique().tolist()}
        return {index for index in indices if index is not None}

    def _index(self, value: float) -> int | None:
        index = _FIRST - value
        return int(index) if index in range(len(self.reads)) else None


class _MarkedFile:
    """Stands for `safetensors.safe_open` inside `from_pretrained`: it has the file's names, and marks as tensors."""

    def __init__(self, marks: _Marks, path: str) -> None:
        self._marks, self._path = marks, path
        self._file: Any = safe_open(path, framework="pt")

    def keys(self) -> list[str]:
        return list(self._file.keys())

    def metadata(self) -> Any:
        return self._file.metadata()

    def get_slice(self, name: str) -> Tensor:
        stored = self._file.get_slice(name)
        if not stored.get_dtype().startswith(("F", "BF")):
            values: Tensor = self._file.get_tensor(name)
            return values  # integers are small, and never parameters
        return self._marks.mark(tuple(stored.get_shape()), lambda: _read(self._path, name))

    def __enter__(self) -> _MarkedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.__exit__(None, None, None)


def _read(path: str, name: str) -> NDArray[np.float32]:
    """Reads one tensor. The file is open only meanwhile, so that its pages leave the memory."""
    with safe_open(path, framework="pt") as file:
        stored = file.get_slice(name)
        result = torch.empty(stored.get_shape(), dtype=torch.float32)
        if result.dim() == 0:
            return result.copy_(stored[...]).numpy()
        rows = max(1, _PIECE * len(result) // max(1, result.numel()))
        for start in range(0, len(result), rows):
            result[start : start + rows].copy_(stored[start : start + rows])
        return result.numpy()


def _of_directory(source: Source, task: Task) -> tuple[Any, dict[str, Read]]:
    directory = source.path[0]
    written = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    # Values that sentence-transformers' files change.
    changed = {name: value for name, value in source.config.items() if name not in written or written[name] != value}

    def load(marks: _Marks) -> tuple[Any, dict[str, Any]]:
        with _replaced_safe_open(lambda path, *_, **__: _MarkedFile(marks, str(path))):
            loaded = getattr(transformers, task.auto_class).from_pretrained(
                str(directory), dtype=torch.float32, attn_implementation="eager", output_loading_info=True,
                use_safetensors=True, local_files_only=True, **changed,
            )  # fmt: skip
        return loaded[0], loaded[1]

    return _loaded(load, task, str(directory))


def _of_tensors(
    task: Task, config: Mapping[str, Any], tensors: Callable[[Any], Mapping[str, tuple[tuple[int, ...], Read]]]
) -> tuple[Any, dict[str, Read]]:
    fields = {name: value for name, value in config.items() if name not in ("model_type", "dtype", "torch_dtype")}
    with refusals(task, config):
        parsed = transformers.AutoConfig.for_model(config["model_type"], **fields)
        with torch.device("meta"):
            model = getattr(transformers, task.auto_class).from_config(parsed)
    stored = tensors(model)

    def load(marks: _Marks) -> tuple[Any, dict[str, Any]]:
        state = {name: marks.mark(shape, read) for name, (shape, read) in stored.items()}
        loaded = type(model).from_pretrained(
            None, config=model.config, state_dict=state, dtype=torch.float32, attn_implementation="eager",
            output_loading_info=True,
        )  # fmt: skip
        return loaded[0], loaded[1]

    return _loaded(load, task, str(config.get("model_type")))


def _loaded(
    load: Callable[[_Marks], tuple[Any, dict[str, Any]]], task: Task, label: str
) -> tuple[Any, dict[str, Read]]:
    marks = _Marks()
    with _quiet(), refusals(task, {"model_type": label}):
        try:
            model, info = load(marks)
            several: set[int] = set()
            for parameter in model.parameters():
                several |= marks.parts(parameter) if marks.of(parameter) is None else set()
            if several:
                marks = _Marks(frozenset(several))
                model, info = load(marks)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{label}: transformers cannot load it: {' '.join(str(error).split())[:300]}") from error
        model = task.original(model)
    return model, _reads(model, marks, whole=bool(several), missing=set(info["missing_keys"]))


def _reads(model: Any, marks: _Marks, *, whole: bool, missing: set[str]) -> dict[str, Read]:
    """Moves parameters to the meta device and gives the checkpoint's buffers their values."""
    reads: dict[str, Read] = {}
    for path, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            if parameter is None:
                continue
            index, name = marks.of(parameter), f"{path}.{leaf}" if path else leaf
            if index is not None:
                reads[name] = functools.partial(_finite, name, marks.reads[index])
            elif whole and name not in missing:
                reads[name] = functools.partial(_finite, name, parameter.detach().clone().numpy)
            else:
                reads[name] = functools.partial(_unknown, tuple(parameter.shape))
            module._parameters[leaf] = nn.Parameter(parameter.to("meta"), requires_grad=False)
        for leaf, buffer in module._buffers.items():
            index = None if buffer is None or not buffer.is_floating_point() else marks.of(buffer)
            if index is not None:
                module._buffers[leaf] = torch.from_numpy(marks.reads[index]())
    return reads


def _finite(name: str, read: Read) -> NDArray[np.float32]:
    array = np.asarray(read(), np.float32)
    with np.errstate(invalid="ignore"):
        total = np.sum(array, dtype=np.float64)
    if not np.isfinite(total) and not (finite := np.isfinite(array)).all():
        raise InputError(
            f"expected finite weights, found {int(array.size - finite.sum())} NaN or infinite values in `{name}`",
            hint="the checkpoint is damaged, or its training diverged",
        )
    return array


def _unknown(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Returns NaN for a parameter that a checkpoint lacks: the comparison shows where a model reads it."""
    return np.full(shape, np.nan, np.float32)


@contextmanager
def _replaced_safe_open(stand_in: Callable[..., Any]) -> Iterator[None]:
    loading: Any = modeling_utils
    plain = loading.safe_open
    loading.safe_open = stand_in
    try:
        yield
    finally:
        loading.safe_open = plain


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers' report on its loading: our own loader has told the user by then."""
    bars: Any = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        with quiet():
            yield
    finally:
        if shown:
            bars.enable_progress_bar()
