"""Measures how long a lowered graph takes on this machine, for a build that prunes to a latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonc.ir.ports import text_values
from leptonc.passes.last_logits import KEEP
from runtime_edge.part_record import Part

PAST = 256  # tokens in the cache while one more is computed
TEXT = 128  # tokens of an encoder's text
SECONDS, FEWEST = 1.5, 10  # time of measuring, and least number of runs


def tokens(longest: int, *, cached: bool) -> int:
    """Returns the tokens of a decoder's cache, or of an encoder's text; a model takes `longest` at most."""
    return max(1, min(PAST, longest - 1) if cached else min(TEXT, longest))


def seconds(
    graph: Path, part: Part, vocabulary: int, longest: int, limit: float = SECONDS, left_out: Sequence[str] = ()
) -> float:
    """Returns the median time of a decoder's next token over a cache of 256, or of an encoder's text of 128 tokens.

    Args:
        graph: A graph lowered for ONNX Runtime.
        part: What it takes, gives and keeps.
        vocabulary: Token ids are below it.
        longest: Tokens that the model takes at most. The cache or the text has no more.
        limit: Seconds of measuring. There are `FEWEST` runs at least. Default: `SECONDS`.
        left_out: Names of ONNX Runtime's optimizations that the runtime leaves out. Default: none.
    """
    from runtime_edge.ort import load

    ort = load()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out
    )
    inputs = _inputs(session, part, vocabulary, longest)
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    past = {buffer.output: buffer.input for buffer in part.buffers}
    for output in session.get_outputs():
        cache = inputs.get(past.get(output.name, ""))
        if cache is None:
            binding.bind_output(output.name, "cpu")
        else:  # a cache is written in place, as the runtime has it
            binding.bind_output(output.name, "cpu", 0, cache.dtype.type, cache.shape, cache.ctypes.data)
    durations: list[float] = []
    session.run_with_iobinding(binding)
    while sum(durations) < limit or len(durations) < FEWEST:
        started = time.perf_counter()
        session.run_with_iobinding(binding)
        durations.append(time.perf_counter() - started)
    return statistics.median(durations)


def _inputs(session: Any, part: Part, vocabulary: int, longest: int) -> dict[str, NDArray[Any]]:
    count = tokens(longest, cached=bool(part.states))
    ids = np.random.default_rng(0).integers(0, vocabulary, (1, 1 if part.states else count))
    values = text_values(ids, past=count)
    known = {port.name: values[port.role] for port in part.inputs} | {KEEP.name: np.array([1])}
    shapes = {value.name: value.shape for value in session.get_inputs()}
    return {
        name: known[name] if name in known else np.zeros((1, shape[1], min(2 * PAST, longest), shape[3]), np.float32)
        for name, shape in shapes.items()
    }
