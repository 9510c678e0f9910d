"""The text that a build is measured on, and how far an artifact's outputs on it are from the original's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from tokenizers import Tokenizer

from leptonc.errors import OVERFLOWS, BoundError, InputError
from leptonc.evaluate import fidelity
from leptonc.evaluate.noise import OutputNoise, Rounded
from leptonc.evaluate.reference import Original, Reference
from leptonc.evaluate.text import sentences
from leptonc.frontend.capture import Captured
from leptonc.sources.base import Source

TOKENS = 512  # of text that a causal model is measured on
SENTENCES = 32  # that an encoder is


@dataclass
class Sample:
    """A text, cut for a model: token ids of its start for a causal model, sentences for an encoder.

    Attributes:
        source: The model that it is for.
        captured: Its graph.
        text: The whole text.
        name: What reports call the text.
        rounded: Linear layers whose noise is measured while the original runs.
        noise: What was measured: see `OutputNoise.decibels`.
        scratch: Directory for temporary files; None for the system's.
    """

    source: Source
    captured: Captured
    text: str
    name: str
    token_ids: list[int] = field(init=False, default_factory=list)
    texts: list[str] = field(init=False, default_factory=list)
    rounded: dict[str, Rounded] = field(init=False, default_factory=dict)
    noise: dict[str, float] = field(init=False, default_factory=dict)
    scratch: Path | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.tokenizer = Tokenizer.from_str(self.source.tokenizer_json.decode())
        self.tokenizer.no_padding()
        if self.captured.task.cached:
            self.token_ids = self.tokenizer.encode(self.text).ids[: min(TOKENS, self.captured.max_seq_len)]
        else:
            self.texts = sentences(self.text, SENTENCES)
            self.tokenizer.enable_truncation(self.captured.max_seq_len)

    def encoder_batches(self) -> list[dict[str, NDArray[np.int64]]]:
        """Returns the inputs of an encoder's graph, one batch a sentence."""
        found = []
        for text in self.texts:
            ids = np.asarray([self.tokenizer.encode(text).ids], np.int64)
            arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            names = [str(value.name) for value in self.captured.model.graph.inputs]
            found.append({name: arrays[name] for name in names})
        return found

    def compare_decoder(self, blocks: Iterable[tuple[int, NDArray[np.float32]]]) -> dict[str, Any]:
        """Compares logits of `token_ids`, (position, float32 [n, vocab]) in order, with the original's in float32."""
        reference = self._original(watching := OutputNoise(self.rounded))
        found = fidelity.compare_logits(reference.logits(self.token_ids), blocks, self.token_ids)
        self.noise = watching.decibels()
        return {**found, **self._about()}

    def _original(self, watching: OutputNoise) -> Original:
        """What there is of the original: transformers' model or, where that was left behind, the emitted graph."""
        if self.source.emitted is None:
            return Reference(self.source, self.captured.task, watching)
        from leptonc.evaluate.graph import GraphReference, emitted_graph

        return GraphReference(emitted_graph(self.source), self.scratch, watching)

    def _about(self) -> dict[str, Any]:
        emitted = {} if self.source.emitted is None else {"reference": f"the graph emitted as {self.source.name}"}
        return {"text": self.name, **emitted}

    def reference_rows(self) -> NDArray[np.float32]:
        """Returns what the original computes in float32 for each of `texts`, [n, dim]."""
        reference = self._original(watching := OutputNoise(self.rounded))
        found = reference.rows([self.tokenizer.encode(text).ids for text in self.texts])
        self.noise = watching.decibels()
        return found

    def compare_graph(self, model: ir.Model) -> dict[str, Any]:
        """Compares a captured graph of the same task, run in float32 a layer at a time, with the original."""
        from leptonc.artifact.describe import encoder_of
        from leptonc.evaluate.graph import GraphReference

        found = GraphReference(model, self.scratch)
        if self.captured.task.cached:
            return self.compare_decoder(found.logits(self.token_ids))
        encoder = encoder_of(self.captured)
        multi_label = bool(encoder and encoder.multi_label)
        rows = found.rows([self.tokenizer.encode(text).ids for text in self.texts])
        if self.captured.task.output == "logits":
            rows = fidelity.probabilities(rows, multi_label)
        return self.compare_encoder(self.reference_rows(), rows, multi_label=multi_label)

    def compare_encoder(
        self, reference: NDArray[np.float32], found: NDArray[np.float32], *, multi_label: bool
    ) -> dict[str, Any]:
        """Compares with `reference_rows`: embeddings, or probabilities of labels, both [n, dim]."""
        labels = self.captured.task.output == "logits"
        if labels:
            reference = fidelity.probabilities(reference, multi_label)
        return {**fidelity.compare_rows(reference, found, labels=labels), **self._about()}


def judge(found: dict[str, Any], bound: float | None, whom: str, hint: str) -> None:
    """Holds what a comparison found against a bound in percent; None bounds nothing.

    Args:
        found: What `compare_decoder` or `compare_encoder` returned.
        bound: Largest loss.
        whom: What lost it, for the message.
        hint: What helps.

    Raises:
        BoundError: It lost more.
        InputError: What it lost is no number: outputs, of the original most often, are not finite.
    """
    what, lost = loss(found)
    if bound is not None and lost > bound:
        raise BoundError(
            f"expected a loss of at most {bound:g} % for {whom}, found that {what} by {lost:.2f} %; nothing was "
            "written",
            hint=hint,
        )
    if not math.isfinite(lost):
        raise InputError(
            f"expected finite outputs on the text that is measured, found that {what} by {lost} % for {whom}",
            hint=OVERFLOWS,
        )


def loss(found: dict[str, Any]) -> tuple[str, float]:
    """Returns the loss of quality that a comparison found: what fell or rose, and by how many percent."""
    if "perplexity" in found:
        return "perplexity rises", 100 * (found["perplexity"] / found["perplexity_reference"] - 1)
    if "top1_agreement" in found:
        return "agreement of labels falls", 100 * (1 - found["top1_agreement"])
    return "cosine similarity falls", 100 * (1 - found["cosine_mean"])
