"""What a student is taught: to say what its teacher says on the same text."""

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

from leptonc.calibrate.inputs import inputs_of
from leptonc.calibrate.store import Store
from leptonc.heal.graph import Graph, writable
from leptonc.passes.last_logits import head_of

BLOCK_BYTES = 2**26  # of logits that are in memory at once, a few times over
Window = NDArray[np.int64]


class Halves:
    """A graph cut below its head: what has a vector a token, and what makes logits of it, a few tokens at a time.

    A graph without such a head is its own first half, and the second does nothing. `keep` is the first half's.
    """

    def __init__(self, model: ir.Model, *, keep: bool = True) -> None:
        self.output = str(model.graph.outputs[0].name)
        head = head_of(model.graph)
        self.cut = str(head.x.name) if head is not None else self.output
        self.body = Graph(model, [self.cut], keep=keep)
        self.head = Graph(model, [self.output], [self.cut])
        self.model = model

    def hidden(self, window: Window, variables: Mapping[str, Tensor]) -> Tensor:
        """Runs the first half on token ids int64 [length]."""
        return self.each([window], variables)[0]

    def each(self, windows: Sequence[Window], variables: Mapping[str, Tensor]) -> list[Tensor]:
        """Runs the first half on several windows, which reads its weights once."""
        given = [{name: writable(x) for name, x in inputs_of(self.model, each).items()} for each in windows]
        return [found for (found,) in self.body.each(given, variables)]

    def outputs(self, hidden: Tensor, variables: Mapping[str, Tensor]) -> Tensor:
        """Runs the second half on some of the first's rows."""
        (found,) = self.head({self.cut: hidden}, variables)
        return found


def divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """Returns the summed Kullback-Leibler divergence of what logits [..., n] say, in nats."""
    log = F.log_softmax(wanted, -1)
    return F.kl_div(F.log_softmax(found, -1), log, reduction="sum", log_target=True)


def relative_error(wanted: Tensor, found: Tensor) -> Tensor:
    """Returns the summed |found - wanted|^2 / |wanted|^2 of rows [..., n]."""
    whole = wanted.square().sum(-1).clamp(min=torch.finfo(wanted.dtype).tiny)
    return ((found - wanted).square().sum(-1) / whole).sum()


class Teacher:
    """What the original makes of each window, run before it is first asked for, and kept below the head.

    Args:
        model: The original graph.
        windows: Token ids int64 [length] of each text.
        store: Where a vector a token is kept.
    """

    def __init__(self, model: ir.Model, windows: Sequence[Window], store: Store) -> None:
        self._halves, self._windows, self._store = Halves(model, keep=False), windows, store
        self._kept: dict[int, NDArray[Any]] = {}

    def prepare(self, places: Sequence[int]) -> None:
        """Runs the original on the windows of these places, where it did not yet; all at once read its weights once."""
        new = [at for at in dict.fromkeys(places) if at not in self._kept]
        with torch.no_grad():
            made = self._halves.each([self._windows[at] for at in new], {}) if new else []
        self._kept.update((at, self._store.put(rows.numpy())) for at, rows in zip(new, made, strict=True))

    def hidden(self, at: int) -> Tensor:
        """Returns the first half's rows for a window."""
        self.prepare([at])
        return torch.from_numpy(np.array(self._kept[at]))

    def outputs(self, hidden: Tensor) -> Tensor:
        """Returns what the original makes of some of those rows."""
        with torch.no_grad():
            return self._halves.outputs(hidden, {})


@dataclass(frozen=True)
class Measured:
    """What a student is like on some windows, means over tokens or texts.

    Attributes:
        loss: Its distance from the teacher.
        perplexity: Of the texts as the student reads them; 0 where there are no logits a token.
        perplexity_teacher: As the teacher does.
    """

    loss: float
    perplexity: float = 0.0
    perplexity_teacher: float = 0.0


class Objective:
    """The mean, over tokens or texts, of how far the student is from the teacher: see `divergence`, `relative_error`.

    Args:
        student: The graph that learns.
        teacher: What it learns from, windows in the same order.
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
        """Asks the teacher about windows that are needed soon."""
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
        """Returns what the student is like on windows, given by their places."""
        loss, mine, theirs, count, predicted = 0.0, 0.0, 0.0, 0, 0
        with torch.no_grad():
            for at in windows:
                rows = self._student.hidden(self._windows[at], variables).flatten(0, -2)
                next_ids = torch.from_numpy(self._windows[at][1:])
                count += len(rows)
                for start, target in self._targets(at):
                    stop = start + target.shape[1]
                    found = self._student.outputs(rows[start:stop].unsqueeze(0), variables)
                    loss += float(self._distance(target, found))
                    if self._a_token:
                        ids = next_ids[start:stop]
                        theirs, mine = (
                            total + float(F.cross_entropy(each[0, : len(ids)], ids, reduction="sum"))
                            for total, each in ((theirs, target), (mine, found))
                        )
                        predicted += len(ids)
        if not predicted:
            return Measured(loss / count)
        return Measured(loss / count, *(math.exp(min(each / predicted, 700.0)) for each in (mine, theirs)))

    def _targets(self, at: int) -> Iterator[tuple[int, Tensor]]:
        """Yields (row, what the teacher makes of it and those after it, [1, n, width])."""
        hidden = self._teacher.hidden(at).flatten(0, -2)
        for start in range(0, len(hidden), self._rows):
            yield start, self._teacher.outputs(hidden[start : start + self._rows].unsqueeze(0))
