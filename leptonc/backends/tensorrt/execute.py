"""Runs a lowered graph on the CPU with ONNX Runtime: the same operators as in the engine, before it is built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.backends.tensorrt.decoder import AT
from leptonc.ir.ports import text_values
from runtime_edge.part_record import Part


def open_session(graph: ir.Model | Path, folder: Path | None = None) -> Any:
    """Opens a session over a graph's file, or over a model that is written to `folder` first.

    float16 is computed in float32 by ONNX Runtime's CPU kernels and rounded where a tensor is float16.
    """
    from runtime_edge.ort import load

    ort = load()
    if isinstance(graph, ir.Model):
        if folder is None:
            raise ValueError("a model needs a folder to be written to")
        path = folder / "graph.onnx"
        ir.save(graph, path, external_data="graph.data")
    else:
        path = graph
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # The graph as it stands, in float arithmetic: kernels for signed codes on both sides are slow on a CPU.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # Weights become float while a run reads them. Folded at the start, all would be in memory as float32.
    return ort.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
    )


def empty_cache(session: Any, part: Part) -> dict[str, NDArray[Any]]:
    """Returns zeroed caches of a decoder's session, by input name."""
    past = {buffer.input for buffer in part.buffers}
    dtypes = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
    return {
        value.name: np.zeros(value.shape, dtypes[value.type]) for value in session.get_inputs() if value.name in past
    }


def decoder_inputs(
    part: Part, token_ids: Sequence[int], past: int, keep: Sequence[int]
) -> dict[str, NDArray[np.int64]]:
    """Returns the inputs of one run besides the cache; logits are of the positions `keep`."""
    values = text_values(np.asarray([token_ids], np.int64), past=past)
    return {port.name: values[port.role] for port in part.inputs} | {AT.name: np.asarray(keep, np.int64)}


def logits_blocks(
    path: Path, part: Part, token_ids: Sequence[int], chunk: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yields (position, logits float32 [n, vocab]) of a text, `chunk` tokens a run, the cache carried over.

    The graph's file is opened when the first block is asked for.
    """
    session = open_session(path)
    cache, present = empty_cache(session, part), {buffer.input: buffer.output for buffer in part.buffers}
    names = [output.name for output in session.get_outputs()]
    for start in range(0, len(token_ids), chunk):
        run = token_ids[start : start + chunk]
        outputs = session.run(None, {**decoder_inputs(part, run, start, range(len(run))), **cache})
        values = dict(zip(names, outputs, strict=True))
        yield start, values[part.outputs[0].name][0]
        cache = {name: values[present[name]] for name in cache}


def encoder_rows(session: Any, batches: Sequence[dict[str, NDArray[np.int64]]]) -> NDArray[np.float32]:
    """Returns an encoder's embeddings or logits, one row a text, float32 [n, dim]."""
    return np.concatenate([session.run(None, batch)[0] for batch in batches]).astype(np.float32)
