"""The text that a build is measured on, and how far an artifact's outputs on it are from the original's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from tokenizers import Tokenizer

from leptonc.errors import InputError
from leptonc.evaluate import fidelity, library
from leptonc.evaluate.noise import OutputNoise, Rounded
from leptonc.evaluate.reference import Original, Reference
from leptonc.evaluate.text import sentences
from leptonc.frontend.capture import Captured
from leptonc.ir.ports import inputs_of
from leptonc.report.quality import Fidelity
from leptonc.sources.base import Source, text_limit
from runtime_edge.encoder_record import encoder_of
from runtime_edge.part_record import LABEL_LOGITS, POOLING_MASK

if TYPE_CHECKING:
    from runtime_edge.manifest import Encoder

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
        scratch: Directory for temporary files. Default: the system's.
        rounded: Linear layers whose noise is measured while the original runs.
        noise: What was measured: see `OutputNoise.decibels`.
        library: What a comparison with sentence-transformers gave, where there was one.
    """

    source: Source
    captured: Captured
    text: str
    name: str
    scratch: Path | None = None
    token_ids: list[int] = field(init=False, default_factory=list)
    texts: list[str] = field(init=False, default_factory=list)
    rounded: dict[str, Rounded] = field(init=False, default_factory=dict)
    noise: dict[str, float] = field(init=False, default_factory=dict)
    library: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.tokenizer = Tokenizer.from_str(self.source.tokenizer_json.decode())
        self.tokenizer.no_padding()
        if self.captured.interface.writes_text:
            self.token_ids = self.tokenizer.encode(self.text).ids[: min(TOKENS, self.captured.max_seq_len)]
        else:
            self.texts = sentences(self.text, SENTENCES)
            side, special = self.encoder.truncation_side, self.tokenizer.num_special_tokens_to_add(False)
            if special > self.captured.max_seq_len:
                raise InputError(
                    f"expected a model that reads the {special} tokens that the tokenizer adds to each text, found one "
                    f"that reads {self.captured.max_seq_len}",
                    hint="see max_seq_length in the model's sentence_bert_config.json, and --max-seq-len",
                )
            self.tokenizer.enable_truncation(self.captured.max_seq_len, direction=side)

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder's record in the manifest."""
        from leptonc.artifact.describe import settings_of

        found = encoder_of(tuple(self.captured.parts.values()), settings_of(self.captured, self.source))
        assert found is not None  # asked of encoders alone
        return found

    @property
    def _labels(self) -> bool:
        """Whether an encoder's rows are logits of labels."""
        return any(each.output(LABEL_LOGITS) for each in self.captured.parts.values())

    @cached_property
    def encoded(self) -> tuple[list[list[int]], int]:
        """Token ids of the texts after the model's default prompt, and how many of the first the pooling leaves out."""
        return self._encode(self.texts)

    def _encode(self, texts: list[str]) -> tuple[list[list[int]], int]:
        prompt = self._prompt
        ids = [self.tokenizer.encode(prompt + text).ids for text in texts]
        pools = any(each.input(POOLING_MASK) for each in self.captured.parts.values())
        if not prompt or not pools:
            return ids, 0
        alone = self.tokenizer.encode(prompt)
        return ids, len(alone.ids) - alone.special_tokens_mask[-1]

    def _is_read(self, text: str) -> bool:
        """Whether sentence-transformers reads as much of a text: it cuts where the model's files say, nowhere else."""
        limit = text_limit(self.source)
        whole = limit is None or limit > self.captured.max_seq_len
        return not whole or not self.tokenizer.encode(self._prompt + text).overflowing

    @cached_property
    def _prompt(self) -> str:
        record = self.encoder
        return "" if self._labels or record.default_prompt is None else record.prompts[record.default_prompt]

    def encoder_batches(self) -> list[dict[str, NDArray[np.int64]]]:
        """Returns the inputs of an encoder's graph, one batch a sentence."""
        texts, skipped = self.encoded
        return [inputs_of(self.captured.model, np.asarray(ids, np.int64), skipped) for ids in texts]

    def compare_decoder(self, blocks: Iterable[tuple[int, NDArray[np.float32]]]) -> Fidelity:
        """Compares logits of `token_ids`, (position, float32 [n, vocab]) in order, with the original's in float32."""
        reference = self._original(watching := OutputNoise(self.rounded))
        compared = fidelity.compare_logits(reference.logits(self.token_ids), blocks, self.token_ids)
        self.noise = watching.decibels()
        return self._named(compared)

    def _original(self, watching: OutputNoise) -> Original:
        """What there is of the original: transformers' model or, where that was left behind, the emitted graph."""
        if self.source.emitted is None:
            return Reference(self.source, self.captured.task, watching)
        from leptonc.evaluate.graph import GraphReference, emitted_graph

        return GraphReference(emitted_graph(self.source), self.scratch, watching)

    def _named(self, compared: Fidelity) -> Fidelity:
        """Returns a comparison that says what was compared on which text."""
        reference = None if self.source.emitted is None else f"the graph emitted as {self.source.name}"
        return msgspec.structs.replace(
            compared, text=self.name, reference=reference, sentence_transformers=self.library
        )  # fmt: skip

    def reference_rows(self) -> NDArray[np.float32]:
        """Returns what the original computes in float32 for each of `texts`, [n, dim]."""
        reference = self._original(watching := OutputNoise(self.rounded))
        found = reference.rows(*self.encoded)
        self.noise = watching.decibels()
        place = self.source.library_path
        if not self._labels and place is not None and self.library is None and library.is_installed():
            # A long text and one in capitals show where texts are cut, and what is done to them first.
            texts = [self.text, self.text[:80].swapcase()]
            rows = np.concatenate([found, reference.rows(*self._encode(texts))])
            both = [(text, row) for text, row in zip([*self.texts, *texts], rows, strict=True) if self._is_read(text)]
            if both:
                self.library = library.compare(place, [text for text, _ in both], np.stack([row for _, row in both]))
        return found

    def compare_graph(self, model: ir.Model) -> Fidelity:
        """Compares a captured graph of the same task, run in float32 a layer at a time, with the original."""
        from leptonc.evaluate.graph import GraphReference

        found = GraphReference(model, self.scratch)
        if self.captured.interface.writes_text:
            return self.compare_decoder(found.logits(self.token_ids))
        rows = found.rows(*self.encoded)
        return self.compare_encoder(self.reference_rows(), rows, logits=True)

    def compare_encoder(
        self, reference: NDArray[np.float32], found: NDArray[np.float32], *, logits: bool
    ) -> Fidelity:
        """Compares with `reference_rows`, both [n, dim].

        Args:
            reference: What that returned: embeddings, or logits of labels.
            found: Embeddings, or logits of labels, or with `logits` false the scores that the runtime makes of them.
            logits: Whether `found` has logits, where it has labels.
        """
        function = self.encoder.score_function if self._labels else None
        if function is not None:
            reference = fidelity.scores(reference, function)
            found = fidelity.scores(found, function) if logits else found
        return self._named(fidelity.compare_rows(reference, found, function=function))
