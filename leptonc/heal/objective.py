"""The loss of a student: its distance from the teacher's outputs on the same text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from leptonc.calibrate.store import Store
from leptonc.heal.graph import Graph, writable
from leptonc.ir.ports import inputs_of
from leptonc.passes.last_logits import head_of

BLOCK_BYTES = 2**26  # logits of a block, of which a few copies are in memory at once
Window = NDArray[np.int64]


class Halves:
    """A graph, cut before its head: a body that makes a vector for each token, and a head that makes logits of some.

    A graph without such a head is all body, and its head does nothing. `keep` is the body's, see `Graph`.
    """

    def __init__(self, model: ir.Model, *, keep: bool = True) -> None:
        self.output = str(model.graph.outputs[0].name)
        head = head_of(model.graph)
        self.cut = str(head.x.name) if head is not None else self.output
        self.body = Graph(model, [self.cut], keep=keep)
        self.head = Graph(model, [self.output], [self.cut])
        self.model = model

    def hidden(self, window: Window, variables: Mapping[str, Tensor]) -> Tensor:
        """Runs the body on token ids int64 [length]."""
        return self.many([window], variables)[0]

    def many(self, windows: Sequence[Window], variables: Mapping[str, Tensor]) -> list[Tensor]:
        """Runs the body on several windows, and reads its weights once."""
        inputs = [{name: writable(x) for name, x in inputs_of(self.model, window).items()} for window in windows]
        return [rows for (rows,) in self.body.many(inputs, variables)]

    def outputs(self, hidden: Tensor, variables: Mapping[str, Tensor]) -> Tensor:
        """Runs the head on some rows of the body."""
        (outputs,) = self.head({self.cut: hidden}, variables)
        return outputs


def divergence(target: Tensor, output: Tensor) -> Tensor:
    """Returns the Kullback-Leibler divergence of logits [..., n] from target logits, in nats, summed over rows."""
    log = F.log_softmax(target, -1)
    return F.kl_div(F.log_softmax(output, -1), log, reduction="sum", log_target=True)


def relative_error(target: Tensor, output: Tensor) -> Tensor:
    """Returns |output - target|^2 / |target|^2 of rows [..., n], summed over rows."""
    whole = target.square().sum(-1).clamp(min=torch.finfo(target.dtype).tiny)
    return ((output - target).square().sum(-1) / whole).sum()


class Teacher:
    """Outputs of the original for each window. Its body runs once for a window, and its rows are kept.

    Args:
        model: The original graph.
        windows: Token ids int64 [length] of each text.
        store: Holds the rows of the body.
    """

    def __init__(self, model: ir.Model, windows: Sequence[Window], store: Store) -> None:
        self._halves, self._windows, self._store = Halves(model, keep=False), windows, store
        self._kept: dict[int, NDArray[Any]] = {}

    def prepare(self, places: Sequence[int]) -> None:
        """Runs the body on the windows at these places, unless it did before. Weights are read once for all of them."""
        new = [at for at in dict.fromkeys(places) if at not in self._kept]
        with torch.no_grad():
            made = self._halves.many([self._windows[at] for at in new], {}) if new else []
        self._kept.update((at, self._store.put(rows.numpy())) for at, rows in zip(new, made, strict=True))

    def hidden(self, at: int) -> Tensor:
        """Returns the body's rows for a window."""
        self.prepare([at])
        return torch.from_numpy(np.array(self._kept[at]))

    def outputs(self, hidden: Tensor) -> Tensor:
        """Returns the original's outputs for some of those rows."""
        with torch.no_grad():
            return self._halves.outputs(hidden, {})


@dataclass(frozen=True)
class Measured:
    """Measurement of a student on some windows: means over tokens or texts.

    Attributes:
        loss: Distance from the teacher.
        perplexity: The student's perplexity of the texts; 0 where the output is not logits for each token.
        perplexity_teacher: The teacher's perplexity of the texts.
    """

    loss: float
    perplexity: float = 0.0
    perplexity_teacher: float = 0.0


class Objective:
    """The mean distance of the student from the teacher over tokens or texts: see `divergence`, `relative_error`.

    Args:
        student: The graph that learns.
        teacher: The teacher, with its windows in the same order.
        windows: Token ids int64 [length] of each text.
    """

    def __init__(self, student: ir.Model, teacher: Teacher, windows: Sequence[Window]) -> None:
        self._student, self._teacher, self._windows = Halves(student), teacher, windows
        logits = self._student.output == "logits"
        self._distance = divergence if logits else relative_error
        self._a_token = logits and self._student.cut != self._student.output
        shape = student.graph.outputs[0].shape
        width = shape[-1] if shape is not None else 0
        self._rows = max(1, BLOCK_BYTES // (4 * width)) if isinstance(width, int) and width else 1

    def prepare(self, places: Sequence[int]) -> None:
        """Lets the teacher run on windows that are needed soon."""
        self._teacher.prepare(places)

    def learn(self, at: int, variables: Mapping[str, Tensor], weight: float) -> float:
        """Returns the loss on one window, and adds `weight` times its gradients to those of the variables."""
        hidden = self._student.hidden(self._windows[at], variables)
        rows, total, slopes = hidden.detach().flatten(0, -2), 0.0, []
        for start, target in self._targets(at):
            part = rows[start : start + target.shape[1]].unsqueeze(0).requires_grad_()
            loss = self._distance(target, self._student.outputs(part, variables)) / len(rows)
            (loss * weight).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            slopes.append(part.grad)
        if hidden.requires_grad:
            hidden.backward(torch.cat([s for s in slopes if s is not None], 1).reshape(hidden.shape))  # type: ignore[no-untyped-call]
        return total

    def measure(self, windows: Sequence[int], variables: Mapping[str, Tensor]) -> Measured:
        """Measures the student on windows, given by their places."""
        loss, mine, theirs, count, predicted = 0.0, 0.0, 0.0, 0, 0
        with torch.no_grad():
            for at in windows:
                rows = self._student.hidden(self._windows[at], variables).flatten(0, -2)
                next_ids = torch.from_numpy(self._windows[at][1:])
                count += len(rows)
                for start, target in self._targets(at):
                    stop = start + target.shape[1]
                    output = self._student.outputs(rows[start:stop].unsqueeze(0), variables)
                    loss += float(self._distance(target, output))
                    if self._a_token:
                        ids = next_ids[start:stop]
                        theirs, mine = (
                            total + float(F.cross_entropy(logits[0, : len(ids)], ids, reduction="sum"))
                            for total, logits in ((theirs, target), (mine, output))
                        )
                        predicted += len(ids)
        if not predicted:
            return Measured(loss / count)
        return Measured(loss / count, *(math.exp(min(logits / predicted, 700.0)) for logits in (mine, theirs)))

    def _targets(self, at: int) -> Iterator[tuple[int, Tensor]]:
        """Yields the first row of each block, and the teacher's outputs for the block, [1, n, width]."""
        hidden = self._teacher.hidden(at).flatten(0, -2)
        for start in range(0, len(hidden), self._rows):
            yield start, self._teacher.outputs(hidden[start : start + self._rows].unsqueeze(0))
