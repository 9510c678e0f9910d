"""Text that a model writes itself: calibration without data of anybody's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCH = 16  # texts that are written at once, at most
RUN = 256  # tokens whose chances are summed up together


def generate(
    graph: Path, start: int, banned: Sequence[int], samples: int, length: int, *, seed: int = 0, memory: int = 2**30,
    advance: Callable[[int], Any] = lambda _: None,
) -> list[NDArray[np.int64]]:  # fmt: skip
    """Samples texts from a decoder's own distribution (Liu et al., LLM-QAT, 2023): temperature 1, nothing filtered.

    Args:
        graph: A decoder lowered for ONNX Runtime, inputs as `runtime_edge.backends.onnxruntime` describes, any batch.
        start: The token that each text begins with.
        banned: Tokens that are never drawn: those that would end the text.
        samples: Number of texts.
        length: Tokens of each, the first among them.
        seed: Of the draws; the same texts come from the same graph, seed, version of ONNX Runtime and kind of CPU. A
            text has draws of its own: how many others there are changes nothing.
        memory: Bytes that caches may take, which bounds how many texts are written at once (at least one).
        advance: Called with 1 after each token of all texts of a batch.

    Returns:
        Token ids int64 [length] of each text.
    """
    from runtime_edge.ort import load

    ort = load()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    draws = [np.random.default_rng([seed, at]).random(length) for at in range(samples)]
    room = max(1, memory // (length * _bytes_a_token(session)))
    # By halves: what is free differs from run to run by little, and other batches round otherwise.
    batch = min(BATCH, samples, 2 ** (room.bit_length() - 1))
    found: list[NDArray[np.int64]] = []
    while len(found) < samples:
        chances = np.array(draws[len(found) : len(found) + batch])
        found += list(_write(session, start, banned, chances, advance))
    return found


def rounds(samples: int) -> int:
    """Returns the fewest batches that so many texts are written in."""
    return -(-samples // BATCH)


def _caches(session: Any) -> dict[str, tuple[int, int]]:
    """Heads and width of each cache."""
    return {
        each.name: (int(each.shape[1]), int(each.shape[3]))
        for each in session.get_inputs()
        if each.name.startswith("past_key_values.")
    }


def _bytes_a_token(session: Any) -> int:
    return sum(4 * heads * width for heads, width in _caches(session).values())


def _write(
    session: Any, start: int, banned: Sequence[int], chances: NDArray[np.float64], advance: Callable[[int], Any]
) -> NDArray[np.int64]:
    """Writes a batch of texts, int64 [rows, length], by a number from 0 to 1 for each token that is drawn.

    A cache is one buffer that attention writes in place.
    """
    rows, length = chances.shape
    ids = np.full((rows, length), start, np.int64)
    past, keep = np.zeros(rows, np.int64), np.ones(1, np.int64)
    binding = session.io_binding()
    held: list[NDArray[Any]] = []

    def bind(name: str, array: NDArray[Any], *, output: bool = False) -> None:
        put = binding.bind_output if output else binding.bind_input
        put(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        held.append(array)

    for name, (heads, width) in _caches(session).items():
        cache = np.zeros((rows, heads, length, width), np.float32)
        bind(name, cache)
        bind(name.replace("past_key_values.", "present."), cache, output=True)
    token = np.empty((rows, 1), np.int64)
    (vocab,) = (each.shape[-1] for each in session.get_outputs() if each.name == "logits")
    logits = np.empty((rows, 1, int(vocab)), np.float32)
    bind("input_ids", token)
    bind("past_length", past)
    bind("logits_to_keep", keep)
    bind("logits", logits, output=True)
    for at in range(length - 1):
        token[:, 0], past[:] = ids[:, at], at
        session.run_with_iobinding(binding)
        ids[:, at + 1] = draw(logits[:, 0], banned, chances[:, at])
        advance(1)
    return ids


def draw(logits: NDArray[np.float32], banned: Sequence[int], chances: NDArray[np.float64]) -> NDArray[np.int64]:
    """Draws a token of each row of logits float32 [rows, vocab], which are overwritten; returns int64 [rows].

    `chances` [rows] are even draws from 0 to 1.
    """
    logits[:, list(banned)] = -np.inf
    logits -= logits.max(-1, keepdims=True)
    parts = np.exp(logits, out=logits)
    # First a run of tokens, by the runs' sums, then one of its tokens: summing up all of them takes four times as long.
    starts = np.arange(0, parts.shape[1], RUN)
    sums = np.add.reduceat(parts, starts, axis=1, dtype=np.float64).cumsum(-1)
    drawn = chances * sums[:, -1]
    found = np.empty(len(parts), np.int64)
    for row, (part, known, wanted) in enumerate(zip(parts, sums, drawn, strict=True)):
        at = _reaching(known, wanted)
        inside = part[starts[at] : starts[at] + RUN].cumsum(dtype=np.float64)
        found[row] = starts[at] + _reaching(inside, wanted - (known[at - 1] if at else 0.0))
    return found


def _reaching(sums: NDArray[np.float64], wanted: float) -> int:
    """Index of the first sum above what is wanted; where rounding leaves none, of the first that is the whole."""
    found = int(np.searchsorted(sums, wanted, side="right"))
    return found if found < len(sums) else int(np.searchsorted(sums, sums[-1]))
