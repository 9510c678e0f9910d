"""Calibration text that a model writes itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonc.passes.last_logits import KEEP
from runtime_edge.part_record import PAST_LENGTH, TOKEN_IDS, Part

BATCH = 16  # texts that are written at once, at most
RUN = 256  # tokens whose chances are summed up together


@dataclass(frozen=True)
class Written:
    """What a model wrote.

    Attributes:
        texts: Token ids int64 [length] of each text.
        surprise: Mean of -log p over the tokens that were drawn, in nats: the model's entropy on its own text. NaN
            where no token was drawn.
    """

    texts: list[NDArray[np.int64]]
    surprise: float

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Returns all of it as arrays by name, for a file."""
        return {"surprise": np.array(self.surprise), **{str(at): text for at, text in enumerate(self.texts)}}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Written:
        """Reads what `arrays` returned."""
        names = sorted((name for name in arrays if name != "surprise"), key=int)
        return cls([arrays[name] for name in names], float(arrays["surprise"]))


def generate(
    graph: Path, part: Part, openings: Sequence[Sequence[int]], ends: Sequence[int], samples: int, length: int, *,
    seed: int = 0, memory: int = 2**30, advance: Callable[[int], Any] = lambda _: None,
) -> Written:  # fmt: skip
    """Samples texts from a decoder's own distribution (Liu et al., LLM-QAT, 2023): temperature 1, nothing filtered.

    A text begins with an opening, and the model goes on. Where it ends its text, the next opening follows: so a model
    that ends at once gives openings alone.

    Args:
        graph: A decoder lowered for ONNX Runtime, of any batch.
        part: What it takes, gives and keeps.
        openings: Token ids of each opening, at least one of each. Text i begins with opening i, and goes on with those
            after it; the first follows the last.
        ends: Tokens that end a text.
        samples: Number of texts.
        length: Tokens of each text, openings included.
        seed: Seed of the draws. Graph, seed, version of ONNX Runtime and kind of CPU determine the texts. Each text
            has draws of its own, so that the number of texts changes none of them. Default: 0.
        memory: Bytes that caches may take, which bound how many texts are written at once. One always is. Default:
            1 GiB.
        advance: Called with 1 after each token of a batch. Default: nothing is called.
    """
    from runtime_edge.ort import load

    ort = load()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    draws = [np.random.default_rng([seed, at]).random(length) for at in range(samples)]
    room = max(1, memory // (length * _bytes_a_token(part)))
    # A power of two: free memory differs a little from run to run, and another size of batch would round otherwise.
    batch = min(BATCH, samples, 2 ** (room.bit_length() - 1))
    texts: list[NDArray[np.int64]] = []
    surprises: list[float] = []
    while len(texts) < samples:
        rows = range(len(texts), min(len(texts) + batch, samples))
        pens = [_Pen(openings, at, frozenset(ends)) for at in rows]
        texts += list(_write(session, part, pens, np.array([draws[at] for at in rows]), advance))
        surprises += [surprise for pen in pens for surprise in pen.surprises]
    return Written(texts, float(np.mean(surprises)) if surprises else float("nan"))


def rounds(samples: int) -> int:
    """Returns the least number of batches for so many texts."""
    return -(-samples // BATCH)


class _Pen:
    """What comes next in one text: the rest of an opening, or what the model draws."""

    def __init__(self, openings: Sequence[Sequence[int]], first: int, ends: frozenset[int]) -> None:
        self._openings, self._next, self._ends = openings, first, ends
        self._waiting: deque[int] = deque()
        self.surprises: list[float] = []
        self._open()

    def _open(self) -> None:
        self._waiting.extend(self._openings[self._next % len(self._openings)])
        self._next += 1

    def first(self) -> int:
        return self._waiting.popleft()

    def next(self, drawn: int, chance: float) -> int:
        if self._waiting:
            return self._waiting.popleft()
        self.surprises.append(-float(np.log(max(chance, np.finfo(np.float64).tiny))))
        if drawn in self._ends:
            self._open()
        return drawn


def _bytes_a_token(part: Part) -> int:
    return sum(4 * int(buffer.dims[1]) * int(buffer.dims[3]) for buffer in part.buffers)


def _write(
    session: Any, part: Part, pens: Sequence[_Pen], chances: NDArray[np.float64], advance: Callable[[int], Any]
) -> NDArray[np.int64]:
    """Returns a batch of texts, int64 [rows, length]; `chances` has a number from 0 to 1 for each token.

    Each cache is one buffer, which attention writes in place.
    """
    rows, length = chances.shape
    ids = np.zeros((rows, length), np.int64)
    ids[:, 0] = [pen.first() for pen in pens]
    past, keep = np.zeros(rows, np.int64), np.ones(1, np.int64)
    binding = session.io_binding()
    held: list[NDArray[Any]] = []

    def bind(name: str, array: NDArray[Any], *, output: bool = False) -> None:
        put = binding.bind_output if output else binding.bind_input
        put(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        held.append(array)

    for buffer in part.buffers:
        cache = np.zeros((rows, int(buffer.dims[1]), length, int(buffer.dims[3])), np.float32)
        bind(buffer.input, cache)
        bind(buffer.output, cache, output=True)
    token = np.empty((rows, 1), np.int64)
    (output,) = part.outputs
    logits = np.empty((rows, 1, int(output.dims[-1])), np.float32)
    for port in part.inputs:
        bind(port.name, {TOKEN_IDS: token, PAST_LENGTH: past}[port.role])
    bind(KEEP.name, keep)
    bind(output.name, logits, output=True)
    for at in range(length - 1):
        token[:, 0], past[:] = ids[:, at], at
        session.run_with_iobinding(binding)
        drawn, likely = draw(logits[:, 0], chances[:, at])
        ids[:, at + 1] = [pen.next(int(one), float(p)) for pen, one, p in zip(pens, drawn, likely, strict=True)]
        advance(1)
    return ids


def draw(logits: NDArray[np.float32], chances: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Draws a token of each row of logits float32 [rows, vocab], which are overwritten.

    Args:
        logits: The logits.
        chances: Even draws from 0 to 1, float64 [rows].

    Returns:
        Token ids int64 [rows], and the probability that each had, float64 [rows].
    """
    logits -= logits.max(-1, keepdims=True)
    parts = np.exp(logits, out=logits)
    # First a run of tokens, by the runs' sums, then one of its tokens: summing up all of them takes four times as long.
    starts = np.arange(0, parts.shape[1], RUN)
    sums = np.add.reduceat(parts, starts, axis=1, dtype=np.float64).cumsum(-1)
    drawn = chances * sums[:, -1]
    drawn_ids = np.empty(len(parts), np.int64)
    for row, (part, known, wanted) in enumerate(zip(parts, sums, drawn, strict=True)):
        at = _reaching(known, wanted)
        inside = part[starts[at] : starts[at] + RUN].cumsum(dtype=np.float64)
        drawn_ids[row] = starts[at] + _reaching(inside, wanted - (known[at - 1] if at else 0.0))
    return drawn_ids, parts[np.arange(len(parts)), drawn_ids] / sums[:, -1]


def _reaching(sums: NDArray[np.float64], wanted: float) -> int:
    """Index of the first sum above what is wanted; where rounding leaves none, of the first that is the whole."""
    index = int(np.searchsorted(sums, wanted, side="right"))
    return index if index < len(sums) else int(np.searchsorted(sums, sums[-1]))
