"""The reference: transformers' own float32 forward pass, its weights in memory one module at a time.

The captured graph is not its own judge: the reference runs the model's own code with its own attention, so a capture
that went wrong shows. Nor is the loader of our weights: see `original.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leptonc.evaluate.noise import OutputNoise
from leptonc.evaluate.original import load_original
from leptonc.evaluate.sentence import embedded
from leptonc.frontend.capture import position_limit
from leptonc.frontend.tasks import Task, refusals
from leptonc.ir.ports import text_values
from leptonc.memory import give_back
from leptonc.sources.base import Source
from runtime_edge import part_record as roles

# Logits of so many bytes are computed at a time.
BLOCK_BYTES = 8 * 2**20


@contextmanager
def streamed(model: nn.Module, read: Mapping[str, Callable[[], NDArray[Any]]], *, keep: bool = False) -> Iterator[None]:
    """Within it a module's parameters are real while the module runs (with `keep`, from its first run to the end)."""
    handles: list[Any] = []
    releases: list[Callable[[], None]] = []
    for path, module in model.named_modules():
        own = [n for n, p in module.named_parameters(recurse=False) if p is not None]
        if not own:
            continue

        def enter(m: nn.Module, _args: Any, _path: str = path, _own: list[str] = own) -> None:
            for name in _own:
                full = f"{_path}.{name}" if _path else name
                parameter = m._parameters[name]
                if parameter is not None and not parameter.is_meta:
                    continue
                m._parameters[name] = nn.Parameter(torch.from_numpy(_writable(read[full]())), requires_grad=False)

        def leave(m: nn.Module, _args: Any, _out: Any, _own: list[str] = own) -> None:
            for name in _own:
                real = m._parameters[name]
                if real is not None:
                    m._parameters[name] = nn.Parameter(real.to("meta"), requires_grad=False)

        handles.append(module.register_forward_pre_hook(enter))
        if keep:
            releases.append(functools.partial(leave, module, None, None))
        else:
            handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for release in releases:
            release()


class Original(Protocol):
    """What artifacts are compared with, in float32."""

    def logits(self, token_ids: list[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yields (position, float32 [n, vocab]) blocks of a causal model's logits, in order."""

    def rows(self, token_ids: list[list[int]], skipped: int = 0) -> NDArray[np.float32]:
        """Returns an encoder's output for texts, float32 [n, dim], each run by itself and so without padding.

        `skipped` is how many tokens at the start, a prompt's, a pooling leaves out that has no prompts in it.
        """

    def values(self, runs: Sequence[Mapping[str, NDArray[Any]]]) -> list[NDArray[np.float32]]:
        """Returns what the last part gives for each run; a run has the inputs that no part feeds, by `part/input`."""


class Reference:
    """The original model in float32.

    Args:
        source: Config and weights.
        task: What it is for.
        noise: What looks at its linear layers while it runs, or None.
    """

    def __init__(self, source: Source, task: Task, noise: OutputNoise | None = None) -> None:
        self.task = task
        self._weights, self._watched = source.weights, noise is not None
        self.model, self._read = load_original(source, task)
        self._forms = task.interface(self.model.config).parts
        if noise is not None:  # before what lets go of weights: hooks run in the order that they come
            noise.watch(self.model)

    @property
    def max_positions(self) -> int | None:
        return position_limit(self.model.config)

    @contextmanager
    def _ready(self) -> Iterator[None]:
        with torch.inference_mode(), streamed(self.model, self._read):
            yield

    def logits(self, token_ids: list[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Runs the body, and returns (position, float32 [n, vocab]) blocks of a causal model's logits."""
        # Errors of its own forward are of the config's values: what ran before is the captured graph alone.
        with self._ready(), refusals(self.task, self.model.config.to_dict()):
            body = self.model.base_model(**self._texts([token_ids]), use_cache=False)
        give_back()  # the weights have left, and what compares comes
        return self._head(type(body), body[0], token_ids)

    def _head(
        self, kind: Callable[..., Any], hidden: Tensor, token_ids: list[int]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The model's own forward with its body answering `hidden`: heads, soft caps and scales are the model's.

        `kind` is the class of the body's outputs: some models read more fields than others, all empty here.
        """
        base = self.model.base_model
        rows = max(1, BLOCK_BYTES // (4 * self.model.config.vocab_size))
        plain = base.forward
        try:
            with streamed(self.model, self._read, keep=True):
                for start in range(0, len(token_ids), rows):
                    base.forward = _returns(kind(last_hidden_state=hidden[:, start : start + rows]))
                    inputs = self._texts([token_ids[start : start + rows]])
                    with torch.inference_mode():
                        logits = self.model(**inputs, use_cache=False).logits[0].numpy()
                    yield start, logits
        finally:
            base.forward = plain

    def rows(self, token_ids: list[list[int]], skipped: int = 0) -> NDArray[np.float32]:
        """See `Original.rows`; what follows an encoder is computed apart from what is traced of it."""
        results = []
        (form,) = self._forms.values()
        labels = form.outputs[0].role == roles.LABEL_LOGITS
        with torch.inference_mode(), streamed(self.model, self._read, keep=True):
            for ids in token_ids:
                output = self.model(**self._texts([ids]))
                if labels:
                    results.append(output.logits.numpy())
                    continue
                if self._watched:
                    self._run_steps(output[0], skipped)
                row = embedded(output[0][0].numpy(), self.task.modules, self._weights, skipped)
                results.append(row[None])
        return np.concatenate(results)

    def values(self, runs: Sequence[Mapping[str, NDArray[Any]]]) -> list[NDArray[np.float32]]:
        """See `Original.values`: parts run one after the other, as transformers has them."""
        results = []
        with torch.inference_mode(), streamed(self.model, self._read, keep=True):
            for run in runs:
                tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in run.items()}
                for part, form in self._forms.items():
                    args = {port.name: tensors[port.source or f"{part}/{port.name}"] for port in form.traced}
                    returned = self.task.run(part, self.model, None, args)
                    outputs = returned if isinstance(returned, tuple) else (returned,)
                    tensors |= {f"{part}/{port.name}": out for port, out in zip(form.outputs, outputs, strict=True)}
                results.append(outputs[0].float().numpy())
        return results

    def _texts(self, token_ids: list[list[int]]) -> dict[str, Tensor]:
        """What transformers' model is given for texts of one length; the rest is its own to make."""
        values = text_values(np.asarray(token_ids, np.int64))
        own = (roles.PAST_LENGTH, roles.POOLING_MASK)  # of our graphs alone
        ports = [port for form in self._forms.values() for port in form.inputs if port.role not in own]
        return {port.name: torch.from_numpy(np.ascontiguousarray(values[port.role])) for port in ports}

    def _run_steps(self, tokens: Tensor, skipped: int) -> None:
        """Lets what looks at linear layers see those after the encoder."""
        ones = torch.ones(tokens.shape[:2], dtype=torch.int64)
        pooled = (torch.arange(tokens.shape[1]) >= skipped).long()[None]
        self.model.sentence(tokens, {"attention_mask": ones, "pooling_mask": pooled})


def _writable(array: NDArray[Any]) -> NDArray[Any]:
    """Torch wants memory that it may write to; a view of the mapped file is copied."""
    return array if array.flags.writeable else array.copy()


def _returns(output: Any) -> Callable[..., Any]:
    return lambda *_, **__: output
