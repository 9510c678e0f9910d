"""Measures how far an artifact's outputs on a text are from the original's.

The interface (`leptonc.frontend.interface`) says how outputs are compared; each way has a kind of sample here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from tokenizers import Tokenizer

from leptonc.errors import InputError
from leptonc.evaluate import fidelity, library
from leptonc.evaluate.examples import Writer, answers, neighbours
from leptonc.evaluate.noise import OutputNoise, Rounded
from leptonc.evaluate.reference import Original, Reference
from leptonc.evaluate.text import sentences
from leptonc.frontend.capture import Captured
from leptonc.frontend.interface import NEXT_TOKENS, ROWS, VALUES
from leptonc.ir.ports import inputs_of
from leptonc.report.examples import Examples
from leptonc.report.quality import Fidelity
from leptonc.sources.base import Source, text_limit
from runtime_edge.encoder_record import encoder_of
from runtime_edge.part_record import LABEL_LOGITS, POOLING_MASK

if TYPE_CHECKING:
    from runtime_edge.manifest import Encoder

TOKENS = 512  # of text that a causal model is measured on
SENTENCES = 32  # that an encoder is measured on

Floats = NDArray[np.float32]
Blocks = Iterator[tuple[int, Floats]]
Inputs = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Comparison:
    """An artifact's measurements.

    Attributes:
        fidelity: Differences of its outputs from the original's.
        noise: Signal-to-noise ratio in decibels of each rounded linear layer, see `OutputNoise.decibels`.
        examples: What both made of a few texts, where the comparison shows that.
    """

    fidelity: Fidelity
    noise: Mapping[str, float] = field(default_factory=dict)
    examples: Examples | None = None


class Runner(Protocol):
    """An artifact, a lowered graph or a captured one, which is compared with the original.

    Attributes:
        gives_scores: Whether its rows for labels are scores already; the original's are logits.
    """

    gives_scores: bool

    def logits(self, sample: NextTokens) -> Blocks:
        """Yields blocks (position, float32 [n, vocab]) of the logits of a text. The first one loads the runner."""

    def rows(self, sample: Rows) -> Floats:
        """Returns an output for each of the sample's texts, float32 [n, dim]."""

    def values(self, sample: Values) -> list[Floats]:
        """Returns the last part's output for each run of the sample, float32."""


@dataclass
class Sample:
    """A text, cut for a model.

    Attributes:
        source: The model.
        captured: The model's graphs.
        text: The whole text.
        name: The text's name in reports.
        scratch: Directory for temporary files. Default: the system's.
        library: The result of the comparison with sentence-transformers. Default: none.
        examples: What the runner that was compared last and the original made of a few texts. Default: none.
    """

    source: Source
    captured: Captured
    text: str
    name: str
    scratch: Path | None = None
    library: str | None = field(init=False, default=None)
    examples: Examples | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.tokenizer = Tokenizer.from_str(self.source.tokenizer_json.decode())
        self.tokenizer.no_padding()
        self._cut()

    @abstractmethod
    def _cut(self) -> None:
        """Cuts the text (raises `InputError`)."""

    @abstractmethod
    def _compared(self, runner: Runner, original: Original) -> Fidelity:
        """Compares a runner's outputs with the original's."""

    def compare(self, runner: Runner, rounded: Mapping[str, Rounded] | None = None) -> Comparison:
        """Compares a runner's outputs with those of the original in float32.

        Args:
            runner: The runner.
            rounded: Linear layers whose noise is measured while the original runs. Default: none.
        """
        watching = OutputNoise(dict(rounded or {}))
        compared = self._compared(runner, self._original(watching))
        reference = None if self.source.emitted is None else f"the graph emitted as {self.source.name}"
        named = msgspec.structs.replace(
            compared, text=self.name, reference=reference, sentence_transformers=self.library
        )  # fmt: skip
        return Comparison(named, watching.decibels(), self.examples)

    def compare_graph(self, model: ir.Model) -> Fidelity:
        """Compares a captured graph of the same task, run in float32 a layer at a time, with the original."""
        return self.compare(_CapturedGraph(model, self.scratch)).fidelity

    def answers(self, writer: Writer) -> Examples:
        """Returns what an artifact that writes text and the original answer to a few prompts."""
        return answers(self._original(OutputNoise({})), writer)

    def _original(self, watching: OutputNoise) -> Original:
        """Returns the original: transformers' model or, for an emitted source, its graph."""
        if self.source.emitted is None:
            return Reference(self.source, self.captured.task, watching)
        from leptonc.evaluate.graph import GraphReference, emitted_graph

        return GraphReference(emitted_graph(self.source), self.scratch, watching)


@dataclass
class NextTokens(Sample):
    """The token ids of the text's start, for a model that continues a text."""

    token_ids: list[int] = field(init=False, default_factory=list)

    def _cut(self) -> None:
        self.token_ids = self.tokenizer.encode(self.text).ids[: min(TOKENS, self.captured.max_seq_len)]

    def _compared(self, runner: Runner, original: Original) -> Fidelity:
        return fidelity.compare_logits(original.logits(self.token_ids), runner.logits(self), self.token_ids)


@dataclass
class Rows(Sample):
    """Sentences, for a model that gives a row for each."""

    texts: list[str] = field(init=False, default_factory=list)

    def _cut(self) -> None:
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
        """The encoder's record."""
        from leptonc.artifact.describe import settings_of

        record = encoder_of(tuple(self.captured.parts.values()), settings_of(self.captured, self.source))
        assert record is not None  # `Rows` are for encoders
        return record

    @property
    def _labels(self) -> bool:
        """Whether rows are logits of labels."""
        return any(part.output(LABEL_LOGITS) for part in self.captured.parts.values())

    @cached_property
    def encoded(self) -> tuple[list[list[int]], int]:
        """Token ids of the texts with the default prompt before them, and how many at the start pooling skips."""
        return self._encode(self.texts)

    def _encode(self, texts: list[str]) -> tuple[list[list[int]], int]:
        prompt = self._prompt
        ids = [self.tokenizer.encode(prompt + text).ids for text in texts]
        pools = any(part.input(POOLING_MASK) for part in self.captured.parts.values())
        if not prompt or not pools:
            return ids, 0
        alone = self.tokenizer.encode(prompt)
        return ids, len(alone.ids) - alone.special_tokens_mask[-1]

    def _is_read(self, text: str) -> bool:
        """Whether sentence-transformers reads as much of a text: only the model's files say where it cuts."""
        limit = text_limit(self.source)
        whole = limit is None or limit > self.captured.max_seq_len
        return not whole or not self.tokenizer.encode(self._prompt + text).overflowing

    @cached_property
    def _prompt(self) -> str:
        record = self.encoder
        return "" if self._labels or record.default_prompt is None else record.prompts[record.default_prompt]

    def batches(self) -> list[dict[str, NDArray[np.int64]]]:
        """Returns the inputs of an encoder's graph, one batch a sentence."""
        texts, skipped = self.encoded
        return [inputs_of(self.captured.model, np.asarray(ids, np.int64), skipped) for ids in texts]

    def _compared(self, runner: Runner, original: Original) -> Fidelity:
        # The original runs first: its weights have left the memory when an artifact is loaded.
        reference = original.rows(*self.encoded)
        self._compare_library(original, reference)
        rows = runner.rows(self)
        function = self.encoder.score_function if self._labels else None
        if function is not None:
            reference = fidelity.scores(reference, function)
            rows = rows if runner.gives_scores else fidelity.scores(rows, function)
        if not self._labels:
            self.examples = neighbours(self.texts, reference, rows)
        return fidelity.compare_rows(reference, rows, function=function)

    def _compare_library(self, original: Original, rows: Floats) -> None:
        """Compares the original once with sentence-transformers, where that is installed."""
        place = self.source.library_path
        if self._labels or place is None or self.library is not None or not library.is_installed():
            return
        # A long text and one in capitals show where texts are cut, and what is done to them first.
        texts = [self.text, self.text[:80].swapcase()]
        rows = np.concatenate([rows, original.rows(*self._encode(texts))])
        both = [(text, row) for text, row in zip([*self.texts, *texts], rows, strict=True) if self._is_read(text)]
        if both:
            self.library = library.compare(place, [text for text, _ in both], np.stack([row for _, row in both]))


@dataclass
class Values(Sample):
    """Inputs that the task makes from the text, for a model of any parts."""

    runs: list[Inputs] = field(init=False, default_factory=list)

    def _cut(self) -> None:
        captured = self.captured
        self.runs = captured.task.feeds(self.tokenizer.encode, self.text, captured.max_seq_len)

    def _compared(self, runner: Runner, original: Original) -> Fidelity:
        reference = _rows_of(original.values(self.runs))
        return fidelity.compare_rows(reference, _rows_of(runner.values(self)), function=None)


def _rows_of(values: list[Floats]) -> Floats:
    """Joins arrays with the same last axis to rows [n, width]."""
    return np.concatenate([value.reshape(-1, value.shape[-1]) for value in values])


KINDS: dict[str, type[Sample]] = {NEXT_TOKENS: NextTokens, ROWS: Rows, VALUES: Values}


def sample_of(source: Source, captured: Captured, text: str, name: str, scratch: Path | None = None) -> Any:
    """Returns the sample that a model is measured on, of the kind that its interface names; see `Sample`.

    Raises:
        InputError: The model cannot read the text.
    """
    return KINDS[captured.interface.comparison](source, captured, text, name, scratch)


class _CapturedGraph:
    """A captured graph as a runner."""

    gives_scores = False

    def __init__(self, model: ir.Model, scratch: Path | None) -> None:
        from leptonc.evaluate.graph import GraphReference

        self._graph = GraphReference(model, scratch)

    def logits(self, sample: NextTokens) -> Blocks:
        return self._graph.logits(sample.token_ids)

    def rows(self, sample: Rows) -> Floats:
        return self._graph.rows(*sample.encoded)

    def values(self, sample: Values) -> list[Floats]:
        return self._graph.values(sample.runs)
