"""Encoders: embeddings, classification and scores of texts in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime_edge import request as check
from runtime_edge.backends import EncoderSession
from runtime_edge.ending import NEVER, Ending, Terminated
from runtime_edge.errors import ArtifactError, RequestError
from runtime_edge.files import in_threads
from runtime_edge.listed import listed
from runtime_edge.manifest import Encoder
from runtime_edge.part_record import ATTENTION_MASK, POOLING_MASK, SEGMENTS, TOKEN_IDS
from runtime_edge.text import TextCodec
from runtime_edge.tokenizer import BoundedTokenizer

Floats = NDArray[np.float32]
Pair = tuple[str, str]
SMALL = 4096  # tokens of a batch: larger ones keep all threads busy by themselves, and would take their memory at once
# sentence-transformers gives every embedding model these two prompts, empty where the model has none of the name.
ROLES = {"query": "", "document": ""}


@dataclass(frozen=True)
class Classification:
    """What a text is.

    Attributes:
        label: The likeliest label.
        score: Its score: a probability, or the model's number itself where it is a regression.
        scores: The score of every label. Where labels are not distinct, the keys are `LABEL_0`, `LABEL_1`, … instead.
        labels: All labels in the model's order; they need not be distinct.
        probabilities: Their scores, in the same order.
    """

    label: str
    score: float
    scores: dict[str, float]
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()


@dataclass(frozen=True)
class _Tokens:
    """A text as the model reads it; `skipped` tokens at its start are left out of the pooling."""

    ids: list[int]
    types: list[int]
    skipped: int = 0


class _Cutting:
    """A tokenizer that cuts texts and pairs at `most` tokens.

    Raises:
        ArtifactError: The tokens around a text alone are more.
    """

    def __init__(self, tokenizer: BoundedTokenizer, most: int, side: str) -> None:
        self.tokenizer, self.most = tokenizer, most
        tokenizer.enable_truncation(most, direction=side)


class Encoding:
    """An encoder session with its tokenizer. Threads may use it at the same time.

    Raises:
        ArtifactError: The tokenizer adds more special tokens than the model reads tokens.
    """

    def __init__(self, session: EncoderSession, encoder: Encoder, codec: TextCodec) -> None:
        self.encoder = encoder
        self._session = session
        self._codec = codec
        self._texts = self._pairs = _Cutting(codec.tokenizer, encoder.max_seq_len, encoder.truncation_side)
        if encoder.rerank_max_seq_len is not None:  # truncation is a state of a tokenizer
            own = deepcopy(codec.tokenizer)
            self._pairs = _Cutting(own, encoder.rerank_max_seq_len, encoder.truncation_side)

    def close(self) -> None:
        """Frees what the session holds outside of the host's memory."""
        self._session.close()

    def embed(
        self, texts: Iterable[str], batch_size: int, prompt_name: str | None, prompt: str | None,
        truncate_dim: int | None, normalize: bool, ending: Ending = NEVER,
    ) -> Floats:  # fmt: skip
        """See `Model.encode`."""
        encoder = self.encoder
        check.boolean("normalize_embeddings", normalize)
        width = encoder.truncate_dim or encoder.dim
        if truncate_dim is not None:
            width = check.integer("truncate_dim", truncate_dim, 1, encoder.dim)
        before = self.prompt(ROLES | encoder.prompts, prompt_name, prompt)
        rows = self.rows(texts, batch_size, before, ending)[:, :width]
        if normalize:
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
        return np.ascontiguousarray(rows)

    def prompt(self, prompts: Mapping[str, str], name: str | None, prompt: str | None) -> str:
        """The text that is put before every text: the one given, the one named, or the model's default."""
        if prompt is not None:
            if name is not None:
                raise RequestError("prompt: expected a prompt or a prompt_name, found both", hint="leave one out")
            return check.text("prompt", prompt)
        name = self.encoder.default_prompt if name is None else check.text("prompt_name", name)
        if name is None:
            return ""
        if name not in prompts:
            names = ", ".join(map(repr, sorted(prompts))) or "none"
            raise RequestError(
                f"prompt_name: expected one of this model's prompts ({names}), found {name[:80]!r}",
                hint='any text can be put before the others: encode(texts, prompt="…")',
            )
        return prompts[name]

    def rows(
        self, texts: Iterable[str | Pair | Mapping[str, str]], batch_size: int, prompt: str = "",
        ending: Ending = NEVER, cutting: _Cutting | None = None,
    ) -> Floats:  # fmt: skip
        """The graph's output for each text or pair after `prompt`, float32 [n, dim], in the order of the texts."""
        ending.begin()
        stop = self._session.new_stop() if ending.is_possible else None
        size = check.integer("batch_size", batch_size, 1)
        encoded = self._tokenize(texts, prompt, cutting or self._texts)
        rows = np.empty((len(encoded), self.encoder.dim), np.float32)

        def run(batch: list[int], alone: bool) -> None:
            ending.check("the model")
            inputs = dict(self._inputs([encoded[index] for index in batch]))
            try:
                output = self._session.run(inputs, alone=alone, stop=stop)
            except Terminated:
                ending.check("the model")
            else:
                shape = rows[batch].shape
                if output.shape != shape:
                    raise ArtifactError(
                        f"the graph: expected an output of shape {shape}, a row a text, found {output.shape}",
                        hint="the artifact is damaged: rebuild it with `leptonc build`",
                    )
                rows[batch] = output

        lengths = [len(tokens.ids) for tokens in encoded]
        batches = _batches(lengths, size, self._session.batch_tokens)
        workers = self._session.workers
        small = list(takewhile(lambda batch: len(batch) * lengths[batch[-1]] <= SMALL, batches))
        if workers == 1 or len(small) < 2 * workers:  # of fewer the longest may run when the others have ended
            small = []
        with ending.watching(stop):
            for batch in batches[len(small) :]:
                run(batch, alone=True)
            in_threads(small, lambda batch: run(batch, alone=False), workers)
        return rows

    def classify(
        self, texts: Iterable[str | Pair | Mapping[str, str]], batch_size: int, ending: Ending = NEVER
    ) -> list[Classification]:
        """See `Model.classify`."""
        labels = self.encoder.labels
        names = labels if len(set(labels)) == len(labels) else tuple(f"LABEL_{i}" for i in range(len(labels)))
        scores = _scores(self.rows(texts, batch_size, ending=ending), self.encoder.score_function)
        best = scores.argmax(axis=1).tolist()
        return [
            Classification(labels[at], row[at], dict(zip(names, row, strict=True)), labels, tuple(row))
            for at, row in zip(best, scores.tolist(), strict=True)
        ]

    def rerank(
        self, query: str, texts: Iterable[str], batch_size: int, prompt_name: str | None, prompt: str | None,
        ending: Ending = NEVER,
    ) -> Floats:  # fmt: skip
        """See `Model.rerank`."""
        if self.encoder.dim != 1:
            raise RequestError(
                f"rerank: expected a model with one score a pair, found one with {self.encoder.dim} labels",
                hint="classify takes pairs too: classify([(query, text), …])",
            )
        before = self.prompt(self.encoder.prompts, prompt_name, prompt)
        question = check.text("query", query)
        pairs = [(question, check.text(f"texts[{index}]", text)) for index, text in enumerate(_listed(texts))]
        logits = self.rows(pairs, batch_size, before, ending, self._pairs)
        scores: Floats = _scores(logits, self.encoder.rerank_function or "sigmoid")[:, 0].astype(np.float32)
        return scores

    def _tokenize(
        self, texts: Iterable[str | Pair | Mapping[str, str]], prompt: str, cutting: _Cutting
    ) -> list[_Tokens]:
        checked = [_text(f"texts[{index}]", text, prompt) for index, text in enumerate(_listed(texts))]
        if not checked:
            return []
        least = cutting.tokenizer.num_special_tokens_to_add(True)
        if least > cutting.most and any(isinstance(text, tuple) for text in checked):
            raise RequestError(
                f"texts: expected single texts: the {least} special tokens of a pair are more than the "
                f"{cutting.most} that the model reads"
            )
        skipped = self._prompt_tokens(prompt) if prompt and POOLING_MASK in self.encoder.roles else 0
        tokens = []
        for index, item in enumerate(cutting.tokenizer.encode_batch_fast(checked)):
            ids = item.ids
            if not ids:  # transformers fails on it alone, and what it gives in a batch depends on the others
                raise RequestError(
                    f"texts[{index}]: expected a text with tokens, found one without: {checked[index]!r:.80}",
                    hint="leave it out: this model's tokenizer puts no token around a text",
                )
            self._codec.check_rows(f"texts[{index}]", ids)
            if skipped >= len(ids):
                raise RequestError(
                    f"texts[{index}]: expected tokens after the prompt, which the pooling leaves out; found that the "
                    f"prompt's {skipped} tokens fill the {cutting.most} that the model reads",
                    hint="give a shorter prompt",
                )
            types = item.type_ids if self.encoder.segments else [0] * len(ids)
            tokens.append(_Tokens(ids, types, skipped))
        return tokens

    def _prompt_tokens(self, prompt: str) -> int:
        """Tokens of the prompt alone with the special ones before it, as sentence-transformers counts them."""
        encoding = self._codec.tokenizer.encode(prompt)
        ids, special = encoding.ids, encoding.special_tokens_mask
        last = bool(ids) and (special[-1] == 1 or ids[-1] in self._codec.special_ids)
        return len(ids) - last

    def _inputs(self, batch: list[_Tokens]) -> Iterator[tuple[str, NDArray[np.int64]]]:
        longest = max(len(tokens.ids) for tokens in batch)
        shape = (len(batch), longest)
        ids = np.full(shape, self._codec.pad_id, np.int64)
        mask, types, pooled = (np.zeros(shape, np.int64) for _ in range(3))
        for row, tokens in enumerate(batch):
            length = len(tokens.ids)
            ids[row, :length] = tokens.ids
            mask[row, :length] = 1
            types[row, :length] = tokens.types
            pooled[row, tokens.skipped : length] = 1
        arrays = {TOKEN_IDS: ids, ATTENTION_MASK: mask, SEGMENTS: types, POOLING_MASK: pooled}
        return ((name, arrays[role]) for name, role in zip(self.encoder.inputs, self.encoder.roles, strict=True))


def _listed(texts: Any) -> Iterator[Any]:
    if (given := listed(texts)) is None:
        raise RequestError(
            f"texts: expected a list of texts, found {type(texts).__name__}", hint="put one text in a list: [text]"
        )
    return given


def _text(name: str, value: Any, prompt: str) -> str | Pair:
    """A text after the prompt, or a pair of texts: a tuple or list of two, or a dict with `text` and `text_pair`.

    An empty `text_pair` is none, as transformers' pipeline has it.
    """
    if isinstance(value, Mapping):
        if not {"text"} <= set(value) <= {"text", "text_pair"}:
            raise RequestError(f"{name}: expected the keys text and text_pair, found {sorted(map(str, value))[:5]}")
        value = (value["text"], value["text_pair"]) if value.get("text_pair") not in (None, "") else value["text"]
    if not isinstance(value, (tuple, list)):
        return prompt + check.text(name, value)
    if len(value) != 2:
        raise RequestError(f"{name}: expected a text or a pair of texts, found {len(value)} values")
    first, second = (check.text(f"{name}[{at}]", text) for at, text in enumerate(value))
    return prompt + first, second


def _scores(logits: Floats, function: str) -> NDArray[np.float64]:
    """Returns softmax, sigmoid, or the logits themselves, float64 [n, labels]."""
    values = logits.astype(np.float64)
    if function == "softmax":
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    # -logaddexp(0, -x) is the logarithm of the sigmoid, without overflow.
    return np.exp(-np.logaddexp(0.0, -values)) if function == "sigmoid" else values


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
