"""Holds a captured graph, in float32 and before anything is done to it, against transformers' own forward pass.

Quantization hides a wrong capture: on a short text its noise may be larger than that of a wrong position or mask. So
every build runs the captured graph itself on a few dozen tokens, as the runtime will: a decoder whole, and in pieces
over its states; an encoder text by text, and in a padded batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.artifact.describe import tokenizer_of
from leptonc.calibrate.staged_run import StagedRun
from leptonc.errors import WrongCaptureError
from leptonc.evaluate.graph import GraphReference, stages_and_head
from leptonc.evaluate.measure import NextTokens, Rows, Sample
from leptonc.evaluate.pieces import outputs_in_pieces
from leptonc.evaluate.reference import Reference
from leptonc.ir.dialect import module_of
from leptonc.ir.ports import inputs_of, part_of
from runtime_edge.part_record import ATTENTION_MASK, TOKEN_IDS

TOKENS = 32  # of a decoder's text
PIECES = (3, 1, 1, 7, 1, 2, 1)  # tokens of its first pieces; the last has what is left
TEXTS = 3  # of an encoder
# Root mean square of the differences of one row, relative to the row's standard deviation. Sums in another order make
# 2e-5 in SmolLM2's 30 layers; a position that is one off makes 0.1 and more.
TOLERANCE = 2e-3

Floats = NDArray[np.float32]


def check_capture(sample: Sample) -> None:
    """Compares the captured graph of a model of one part with the original, on the beginning of a sample.

    An emitted graph has no original, and a model of several parts is compared as a whole once it is written.

    Args:
        sample: The text, cut for the model.

    Raises:
        WrongCaptureError: They differ by more than rounding.
    """
    if sample.source.emitted is not None:
        return
    if isinstance(sample, NextTokens):
        _check_decoder(sample)
    elif isinstance(sample, Rows):
        _check_encoder(sample)


def _check_decoder(sample: NextTokens) -> None:
    ids = sample.token_ids[: min(TOKENS, sample.captured.max_seq_len)]
    if not ids:
        return
    original = Reference(sample.source, sample.captured.task)
    expected = np.concatenate([block for _, block in original.logits(ids)])
    whole, pieces = outputs_in_pieces(
        sample.captured.model, np.asarray([ids]), [[len(ids)], _pieces(len(ids))], sample.scratch
    )  # fmt: skip
    _compare(sample, ids, "", expected, whole[0], original)
    _compare(sample, ids, " in pieces, over the cache", expected, pieces[0], None)


def _check_encoder(sample: Rows) -> None:
    texts, skipped = sample.encoded
    # The longest and the shortest are among them: padding is as long as it gets.
    texts = sorted(texts, key=len)
    texts = [texts[0], texts[-1], *texts[1:-1]][: min(TEXTS, len(texts))]
    original = Reference(sample.source, sample.captured.task)
    expected = original.rows(texts, skipped)
    model = sample.captured.model
    graph = GraphReference(model, sample.scratch)
    _compare(sample, texts[1 % len(texts)], "", expected, graph.rows(texts, skipped), original)
    if part_of(model).input(ATTENTION_MASK) is not None:
        padding = tokenizer_of(sample.source, sample.captured).pad_token_id or 0
        padded = _padded(model, texts, skipped, padding)
        _compare(sample, texts[0], " in a padded batch", expected, graph.output(padded), None)


def _pieces(length: int) -> list[int]:
    lengths: list[int] = []
    for piece in PIECES:
        if sum(lengths) + piece < length:
            lengths.append(piece)
    return [*lengths, length - sum(lengths)]


def _padded(model: ir.Model, texts: list[list[int]], skipped: int, padding: int) -> dict[str, NDArray[Any]]:
    """Returns the inputs of a graph for texts in one batch, the shorter ones padded on the right."""
    length = max(map(len, texts))
    fills = {port.name: padding if port.role == TOKEN_IDS else 0 for port in part_of(model).inputs}
    own = [inputs_of(model, np.asarray(ids, np.int64), skipped) for ids in texts]

    def filled(name: str) -> list[NDArray[Any]]:
        rows = [values[name] for values in own]
        return [np.pad(row, ((0, 0), (0, length - row.shape[1])), constant_values=fills[name]) for row in rows]

    return {name: np.concatenate(filled(name)) for name in own[0]}


def _compare(
    sample: Sample, ids: list[int], how: str, expected: Floats, found: Floats, original: Reference | None
) -> None:
    """Compares rows of outputs; `original` finds where the graph differs first on the text `ids`."""
    if not np.isfinite(expected).all():
        return  # there is nothing to compare with: what measures activations or the loss refuses such a model
    worst = _difference(expected, found)
    if worst <= TOLERANCE:
        return
    place = None if original is None else first_difference(sample.captured.model, original, ids, sample.scratch)
    model = type(sample.captured.config).__name__.removesuffix("Config")
    where = "" if place is None else f", first at the module {place}"
    raise WrongCaptureError(
        f"expected the captured graph of {model} to compute{how} what transformers does, found outputs that are "
        f"{worst:.2g} of their spread away{where}",
        hint="this is a fault of Lepton's, and nothing was written. Please report it with the model's config.json",
    )


def _difference(expected: Floats, found: Floats) -> float:
    """Returns the largest root mean square of a row's differences, relative to the spread of the expected row."""
    if expected.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    differences = np.sqrt(np.mean(np.square(expected - found, dtype=np.float64), axis=-1))
    spread = expected.std(axis=-1, dtype=np.float64)
    # A row of one number has no spread of its own.
    scale = np.maximum(spread, 1e-3 + np.abs(expected).mean()) if expected.shape[-1] < 2 else np.maximum(spread, 1e-12)
    return float((differences / scale).max())


def first_difference(model: ir.Model, original: Reference, ids: list[int], folder: Path | None) -> str | None:
    """Returns the path of the first module whose output no value of the graph is equal to, from which on all differ.

    Args:
        model: The captured graph.
        original: The model in transformers.
        ids: A text.
        folder: Directory for temporary files. None: the system's.

    Returns:
        The path. None: the outputs of all modules are in the graph.
    """
    outputs: dict[str, NDArray[Any]] = {}

    def keep(path: str, output: NDArray[Any]) -> None:
        outputs[path] = output.reshape(-1).copy()

    original.outputs(ids, keep)
    # By path: whether a value of the graph with as many numbers is equal. Paths without such a value are left out.
    equal: dict[str, bool] = {}

    def see(modules: dict[str, str], _text: int, values: dict[str, NDArray[Any]]) -> None:
        for name, value in values.items():
            for path in _and_parents(modules.get(name, "")):
                expected = outputs.get(path)
                if expected is not None and expected.size == value.size and not equal.get(path):
                    scale = float(expected.std()) or 1.0
                    equal[path] = float(np.abs(expected - value.reshape(-1)).max()) <= 10 * TOLERANCE * scale

    cut = stages_and_head(model)
    with StagedRun(folder, trim=False) as run:
        graph = run.graph(model, [inputs_of(model, np.asarray(ids, np.int64))], cut)
        for at, stage in run.over(cut):
            modules = {
                str(value.name): module_of(node)
                for node in stage.nodes
                for value in node.outputs
                if value.dtype == ir.DataType.FLOAT
            }
            graph.run(at, also=list(modules), observer=partial(see, modules))
    known = [path for path in outputs if path in equal]
    last = max((at for at, path in enumerate(known) if equal[path]), default=-1)
    return next((path for path in known[last + 1 :]), None)


def _and_parents(path: str) -> Iterator[str]:
    """Yields a module's path, and those of the modules around it."""
    while path:
        yield path
        path = path.rpartition(".")[0]
