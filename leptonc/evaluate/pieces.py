"""Runs a captured graph with states over a text in pieces, as the runtime does, one stage's weights in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.calibrate.stage_session import Values, open_stage
from leptonc.calibrate.stages import Stage
from leptonc.evaluate.graph import stages_and_head
from leptonc.ir.ports import part_of, text_values
from leptonc.ir.types import fill_types
from leptonc.memory import dropping_cycles, give_back
from runtime_edge.part_record import Part


def outputs_in_pieces(
    model: ir.Model, token_ids: NDArray[np.int64], ways: Sequence[Sequence[int]], folder: Path | None = None
) -> list[NDArray[np.float32]]:
    """Runs a graph over one text in several ways of cutting it.

    Args:
        model: A captured graph of one output and with states. Its values get their types, nothing else changes.
        token_ids: int64 [batch, length].
        ways: For each way, the lengths of its pieces in order. Their sum is the text's length.
        folder: Directory for temporary files. Default: the system's.

    Returns:
        For each way the graph's output, float32 [batch, length, …].
    """
    fill_types(model.graph)
    part = part_of(model)
    runs = [_Run(part, model, token_ids, lengths) for lengths in ways]
    cut, output = stages_and_head(model), str(model.graph.outputs[0].name)
    readers = {name: at for at, stage in enumerate(cut) for name in stage.inputs}
    with ExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory(dir=folder, prefix=".pieces.")))
        drop_cycles = stack.enter_context(dropping_cycles())
        for at, stage in enumerate(cut):
            made = stage.made
            names = [name for name in stage.outputs if readers.get(name, -1) > at]
            names += [name for name in (output, *_presents(part)) if name in made and name not in names]
            if not names:
                continue
            session = open_stage(model, stage, names, {}, place, once=True)
            for run in runs:
                run.over(session, stage, names)
                run.forget(name for name, last in readers.items() if last == at)
            del session
            drop_cycles()
            give_back()
    return [run.whole(output) for run in runs]


class _Run:
    """One way of cutting a text, with what its pieces hand on."""

    def __init__(self, part: Part, model: ir.Model, token_ids: NDArray[np.int64], lengths: Sequence[int]) -> None:
        ends = np.cumsum(lengths)
        if ends[-1] != token_ids.shape[1]:
            raise ValueError(f"expected pieces of {token_ids.shape[1]} tokens together, found {ends[-1]}")
        self._next = {buffer.input: buffer.output for state in part.states for buffer in state.buffers}
        self._states = {
            str(value.name): np.zeros(_sizes(value, token_ids.shape), np.float32)
            for value in model.graph.inputs
            if value.name in self._next
        }
        self._pieces: list[Values] = []
        for end, length in zip(ends, lengths, strict=True):
            values = text_values(token_ids[:, end - length : end], past=int(end - length))
            self._pieces.append({port.name: values[port.role] for port in part.inputs})

    def over(self, session: Any, stage: Stage, names: Sequence[str]) -> None:
        """Runs a stage over the pieces, one after the other."""
        for values in self._pieces:
            inputs = {name: self._states[name] if name in self._states else values[name] for name in stage.inputs}
            results = dict(zip(names, session.run(None, inputs), strict=True))
            for name in stage.inputs:
                if name in self._next:
                    self._states[name] = results.pop(self._next[name])
            values.update(results)

    def forget(self, names: Iterator[str]) -> None:
        for name in names:
            self._states.pop(name, None)
            for values in self._pieces:
                values.pop(name, None)

    def whole(self, output: str) -> NDArray[np.float32]:
        return np.concatenate([values[output] for values in self._pieces], axis=1)


def _presents(part: Part) -> list[str]:
    return [buffer.output for state in part.states for buffer in state.buffers]


def _sizes(value: ir.Value, text: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an empty state: open sizes are the batch, and what the text needs."""
    sizes = tuple(value.shape or ())
    return (text[0], *(size if isinstance(size, int) else text[1] for size in sizes[1:]))
