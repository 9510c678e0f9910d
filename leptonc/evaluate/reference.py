"""The reference: transformers' own float32 forward pass, its weights in memory one module at a time.

The reference runs the model's own code with its own attention, so that a wrong capture shows. It loads weights by other
code than ours, too: see `original.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

# Bytes of logits that are computed at a time.
BLOCK_BYTES = 8 * 2**20


@contextmanager
def streamed(model: nn.Module, read: Mapping[str, Callable[[], NDArray[Any]]], *, keep: bool = False) -> Iterator[None]:
    """Loads a module's parameters while the module runs (with `keep`, from its first run to the context's end)."""
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
    """The original, in float32, which artifacts are compared with."""

    def logits(self, token_ids: list[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yields blocks (position, float32 [n, vocab]) of a causal model's logits, in order."""

    def likeliest(self, texts: list[list[int]], since: list[int]) -> list[list[int]]:
        """Returns a causal model's likeliest token after each position of texts, from a position of each on."""

    def rows(self, token_ids: list[list[int]], skipped: int = 0) -> NDArray[np.float32]:
        """Returns an encoder's output for texts, float32 [n, dim]. Each text runs by itself, so without padding.

        `skipped` is the number of a prompt's tokens at the start, which a pooling without prompts leaves out.
        """

    def values(self, runs: Sequence[Mapping[str, NDArray[Any]]]) -> list[NDArray[np.float32]]:
        """Returns the last part's output for each run; a run has the inputs that no part feeds, by `part/input`."""


class Reference:
    """The original model in float32.

    Args:
        source: Config and weights.
        task: The model's task.
        noise: Observes the linear layers while the model runs. Default: none.
    """

    def __init__(self, source: Source, task: Task, noise: OutputNoise | None = None) -> None:
        self.task = task
        self._weights, self._watched = source.weights, noise is not None
        self.model, self._read = load_original(source, task)
        self._forms = task.interface(self.model.config).parts
        if noise is not None:  # hooks run in order: this one comes before those that release weights
            noise.watch(self.model)

    @property
    def max_positions(self) -> int | None:
        return position_limit(self.model.config)

    @contextmanager
    def _ready(self) -> Iterator[None]:
        with torch.inference_mode(), streamed(self.model, self._read):
            yield

    def logits(self, token_ids: list[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Runs the body, and returns blocks (position, float32 [n, vocab]) of a causal model's logits."""
        # transformers' forward runs here for the first time: its errors come from values in the config.
        with self._ready(), refusals(self.task, self.model.config.to_dict()):
            body = self.model.base_model(**self._texts([token_ids]), use_cache=False)
        give_back()  # the weights are released: make room for the comparison
        return self._head(type(body), body[0], token_ids)

    def likeliest(self, texts: list[list[int]], since: list[int]) -> list[list[int]]:
        """See `Original.likeliest`: texts run side by side, short ones padded at their ends, which changes nothing."""
        longest = max(map(len, texts))
        padded = [text + text[-1:] * (longest - len(text)) for text in texts]
        with self._ready():
            body = self.model.base_model(**self._texts(padded), use_cache=False)
        hidden = torch.cat([body[0][i, at : len(text)] for i, (text, at) in enumerate(zip(texts, since, strict=True))])
        ids = [token for text, at in zip(texts, since, strict=True) for token in text[at:]]
        return split(self._head(type(body), hidden[None], ids), texts, since)

    def _head(
        self, kind: Callable[..., Any], hidden: Tensor, token_ids: list[int]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Runs the model's own forward over the body's output `hidden`: heads, soft caps and scales are the model's.

        `kind` is the class of the body's outputs. Models read different fields of it; the other ones are empty.
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
        """See `Original.rows`; the steps after an encoder are computed by other code than the traced one."""
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
        """Returns the arguments of transformers' model for texts of one length; it makes all others itself."""
        values = text_values(np.asarray(token_ids, np.int64))
        own = (roles.PAST_LENGTH, roles.POOLING_MASK)  # inputs of our graphs only
        ports = [port for form in self._forms.values() for port in form.inputs if port.role not in own]
        return {port.name: torch.from_numpy(np.ascontiguousarray(values[port.role])) for port in ports}

    def outputs(self, token_ids: list[int], see: Callable[[str, NDArray[Any]], None]) -> None:
        """Runs the model on one text, and shows what each of its modules returns first, in the order that they end.

        Args:
            token_ids: The text, without padding.
            see: Called with a module's path and its output, or the first of them; the model itself is left out.
        """
        handles, seen = [], set()

        def look(path: str, _module: nn.Module, _args: Any, out: Any) -> None:
            first = out[0] if isinstance(out, (tuple, list)) and out else out
            if isinstance(first, Tensor) and first.is_floating_point() and path not in seen:
                seen.add(path)
                see(path, first.numpy())

        for path, module in self.model.named_modules():
            if path:
                handles.append(module.register_forward_hook(functools.partial(look, path)))
        try:
            with self._ready():
                self.model(**self._texts([token_ids]))
        finally:
            for handle in handles:
                handle.remove()

    def _run_steps(self, tokens: Tensor, skipped: int) -> None:
        """Runs the traced steps after the encoder, so that their linear layers are observed."""
        ones = torch.ones(tokens.shape[:2], dtype=torch.int64)
        pooled = (torch.arange(tokens.shape[1]) >= skipped).long()[None]
        self.model.sentence(tokens, {"attention_mask": ones, "pooling_mask": pooled})


def split(
    blocks: Iterable[tuple[int, NDArray[np.float32]]], texts: list[list[int]], since: list[int]
) -> list[list[int]]:
    """Returns the likeliest tokens of blocks of logits, by the texts whose positions they are of."""
    picked = iter([int(token) for _, logits in blocks for token in logits.argmax(-1)])
    return [[next(picked) for _ in text[at:]] for text, at in zip(texts, since, strict=True)]


def _writable(array: NDArray[Any]) -> NDArray[Any]:
    """Returns an array that torch may write to: a view of a mapped file is copied."""
    return array if array.flags.writeable else array.copy()


def _returns(output: Any) -> Callable[..., Any]:
    return lambda *_, **__: output
