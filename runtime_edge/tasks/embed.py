"""Encoders: embeddings and classification of texts in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from runtime_edge import request as check
from runtime_edge.backends import EncoderSession
from runtime_edge.errors import RequestError
from runtime_edge.files import in_threads
from runtime_edge.manifest import Encoder
from runtime_edge.text import TextCodec

Floats = NDArray[np.float32]
SMALL = 4096  # tokens of a batch: larger ones keep all threads busy by themselves, and would take their memory at once


@dataclass(frozen=True)
class Classification:
    """What a text is: the likeliest label, its probability, and that of every label."""

    label: str
    score: float
    scores: dict[str, float]


class Encoding:
    """An encoder session with its tokenizer. Threads may use it at the same time."""

    def __init__(self, session: EncoderSession, encoder: Encoder, codec: TextCodec) -> None:
        self.encoder = encoder
        self._session = session
        self._codec = codec
        codec.tokenizer.enable_truncation(encoder.max_seq_len)

    def close(self) -> None:
        """Frees what the session holds outside of the host's memory."""
        self._session.close()

    def rows(self, texts: Iterable[str], batch_size: int) -> Floats:
        """The graph's output for each text, float32 [n, dim], in the order of the texts."""
        size = check.integer("batch_size", batch_size, 1)
        encoded = self._tokenize(texts)
        rows = np.empty((len(encoded), self.encoder.dim), np.float32)

        def run(batch: list[int], alone: bool) -> None:
            rows[batch] = self._session.run(dict(self._inputs([encoded[index] for index in batch])), alone=alone)

        lengths = [len(ids) for ids, _ in encoded]
        batches = _batches(lengths, size, self._session.batch_tokens)
        workers = self._session.workers
        small = list(takewhile(lambda batch: len(batch) * lengths[batch[-1]] <= SMALL, batches))
        if workers == 1 or len(small) < 2 * workers:  # of fewer the longest may run when the others have ended
            small = []
        for batch in batches[len(small) :]:
            run(batch, alone=True)
        in_threads(small, lambda batch: run(batch, alone=False), workers)
        return rows

    def classify(self, texts: Iterable[str], batch_size: int) -> list[Classification]:
        """See `Model.classify`."""
        logits = self.rows(texts, batch_size).astype(np.float64)
        if self.encoder.multi_label:
            probabilities = np.exp(-np.logaddexp(0.0, -logits))  # the sigmoid, without overflow
        else:
            probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
            probabilities /= probabilities.sum(axis=1, keepdims=True)
        found = []
        for row in probabilities.tolist():
            scores = dict(zip(self.encoder.labels, row, strict=True))
            label = max(scores, key=scores.__getitem__)
            found.append(Classification(label, scores[label], scores))
        return found

    def _tokenize(self, texts: Iterable[str]) -> list[tuple[list[int], list[int]]]:
        if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
            raise RequestError(
                f"texts: expected a list of texts, found {type(texts).__name__}", hint="put one text in a list: [text]"
            )
        checked = [check.text(f"texts[{index}]", text) for index, text in enumerate(texts)]
        found = self._codec.tokenizer.encode_batch_fast(checked)  # without offsets
        # A text of no tokens still is a row: it becomes one padding token.
        return [(item.ids or [self._codec.pad_id], item.type_ids or [0]) for item in found]

    def _inputs(self, batch: list[tuple[list[int], list[int]]]) -> Iterator[tuple[str, NDArray[np.int64]]]:
        longest = max(len(ids) for ids, _ in batch)
        shape = (len(batch), longest)
        ids = np.full(shape, self._codec.pad_id, np.int64)
        mask, types = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, (token_ids, type_ids) in enumerate(batch):
            ids[row, : len(token_ids)] = token_ids
            mask[row, : len(token_ids)] = 1
            types[row, : len(token_ids)] = type_ids
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return ((name, arrays[name]) for name in self.encoder.inputs)


def _batches(lengths: Sequence[int], size: int, worth: int | None) -> list[list[int]]:
    """Returns which texts are run together, by index, short ones first: at most `size` of like length.

    Padding is work for nothing: a batch ends where it would have more of it than `worth` tokens.
    """
    batches: list[list[int]] = []
    real = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        last = batches[-1] if batches else []
        padding = len(last) * lengths[index] - real
        if not last or len(last) == size or (worth is not None and padding > worth):
            batches.append([])
            real = 0
        batches[-1].append(index)
        real += lengths[index]
    return batches
