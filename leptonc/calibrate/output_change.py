"""Measures how far a model's output changes. Logits are computed a few rows at a time, for any vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.cores import side_by_side
from leptonc.calibrate.stage_session import LOGITS, open_stage
from leptonc.calibrate.stages import Stage
from leptonc.errors import OVERFLOWS, InputError
from leptonc.ir.structure import weight_of
from leptonc.passes.last_logits import head_of


def divergence(before: NDArray[Any], after: NDArray[Any], *, logits: bool, first: int = 0) -> float:
    """Returns the mean change of rows [..., n], of those from `first` on.

    For logits it is the Kullback-Leibler divergence in nats, for other outputs |after - before|^2 / |before|^2.
    """
    if not logits:
        off, whole = np.square(after - before).sum(-1), np.square(before).sum(-1)
        return float((off / np.maximum(whole, np.finfo(np.float32).tiny)).mean())
    x, y = (values.reshape(-1, values.shape[-1])[first:] for values in (before, after))
    total = 0.0
    for old, new in zip(x, y, strict=True):
        # Single precision over the vocabulary, double in its sums: the error is 1e-8, the time a tenth.
        p, q = np.exp(old - old.max()), np.exp(new - new.max())
        whole, other = p.sum(dtype=np.float64), q.sum(dtype=np.float64)
        shift = np.log(other / whole) + float(new.max()) - float(old.max())
        total += float(np.vdot(p, old - new)) / whole + shift
    return total / len(x)


class OutputChange:
    """Measures changes of a graph's first output from the value that its head reads, or from itself without a head.

    Args:
        model: A captured graph.
        folder: For temporary files.
        first: Tokens at the start of each text whose logits are not compared. Default: none.

    Attributes:
        name: Name of the value that the output is computed from.
    """

    def __init__(self, model: ir.Model, folder: Path, *, first: int = 0) -> None:
        self._model, self._folder, self._first = model, folder, first
        self._output = str(model.graph.outputs[0].name)
        head = head_of(model.graph)
        self._head = head if head is not None and head.dequantize is None else None
        self.name = str(self._head.x.name) if self._head is not None else self._output

    def divergences(
        self, before: NDArray[Any], after: Mapping[str, NDArray[Any]],
        heads: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """Returns by name how far the output changes when values [batch, length, n] take the place of `before`.

        Args:
            before: The unchanged value.
            after: The changed values, by name.
            heads: The head's changed weight float32 [out, in], by the same names. Default: the model's own.

        Raises:
            InputError: The output of `before` is not finite.
        """
        errors = dict.fromkeys(after, 0.0)
        if self._head is None:
            self._check(before)
            logits = self._output == "logits"
            first = self._first if before.ndim > 2 else 0  # a classifier's row is of a whole text
            return {name: divergence(before, x, logits=logits, first=first) for name, x in after.items()}
        rows = before.reshape(-1, before.shape[-1])
        for part in _parts(self._first, len(rows), max(1, LOGITS // self._head.shape[0])):
            theirs = self._logits(rows[part])
            self._check(theirs)

            def error(name: str, part: slice = part, theirs: NDArray[Any] = theirs) -> float:
                mine = self._logits(after[name].reshape(rows.shape)[part], (heads or {}).get(name))
                return divergence(theirs, mine, logits=True)

            for name, change in zip(after, side_by_side(error, after), strict=True):
                errors[name] += change * len(theirs)
        return {name: error / (len(rows) - self._first) for name, error in errors.items()}

    @cached_property
    def _logits(self) -> Callable[..., NDArray[Any]]:
        """Computes logits [n, vocabulary] of rows [n, in], with the head's weight, read once, or with another."""
        assert self._head is not None
        product, own = self._head.node.outputs[0], weight_of(self._head)

        def multiplied(rows: NDArray[Any], weight: NDArray[Any] | None = None) -> NDArray[Any]:
            product_rows: NDArray[Any] = rows @ (own if weight is None else weight).T
            return product_rows

        if product.is_graph_output():
            return multiplied
        nodes = _after(product)
        stage = Stage("", nodes, {str(product.name): product})
        session = open_stage(self._model, stage, [self._output], {}, self._folder)

        def logits(rows: NDArray[Any], weight: NDArray[Any] | None = None) -> NDArray[Any]:
            rows_of_logits: NDArray[Any] = session.run(None, {str(product.name): multiplied(rows, weight)[None]})[0][0]
            return rows_of_logits

        return logits

    def _check(self, output: NDArray[Any]) -> None:
        if not np.isfinite(output).all():
            raise InputError(
                f"expected finite values of {self._output} on the calibration text, found others",
                hint=OVERFLOWS,
            )


def _after(value: ir.Value) -> list[ir.Node]:
    """Returns the chain of elementwise nodes that follow a head."""
    chain: list[ir.Node] = []
    while not value.is_graph_output():
        (use,) = value.uses()
        chain.append(use.node)
        value = use.node.outputs[0]
    return chain


def _parts(start: int, stop: int, size: int) -> Iterator[slice]:
    for at in range(start, stop, size):
        yield slice(at, min(at + size, stop))
