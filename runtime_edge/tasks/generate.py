"""Text generation: the loop, and the methods that a model and its contexts share."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime_edge import request as check
from runtime_edge.backends import DecoderSession
from runtime_edge.detokenize import Detokenizer, StopStrings
from runtime_edge.drafts import Steps
from runtime_edge.errors import ClosedError, PromptTooLongError, RequestError
from runtime_edge.manifest import Decoder
from runtime_edge.request import Event, Request
from runtime_edge.sampling import Sampler
from runtime_edge.tasks.turn import Turn
from runtime_edge.text import TextCodec

Floats = NDArray[np.float32]
Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]

_LOGITS_BYTES = 32 * 2**20  # logits of all positions are made in runs of tokens that take no more than this
_RESERVE = 1024  # tokens beyond the prompt that the cache is sized for at once; later it doubles


@dataclass(frozen=True)
class Stats:
    """What a generation took. Times are of the model's own work, not of what the caller did between tokens.

    `cached_tokens` of the prompt were in the cache from the call before. `prefill_s` is the time to the first token,
    `decode_s` that of all others. `accepted` of the `drafted` tokens needed no run of their own.
    """

    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    prefill_s: float
    decode_s: float
    drafted: int = 0
    accepted: int = 0

    @property
    def prefill_tok_s(self) -> float:
        """Prompt tokens that were run, a second."""
        return (self.prompt_tokens - self.cached_tokens) / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tok_s(self) -> float:
        """Tokens after the first, a second."""
        return max(0, self.new_tokens - 1) / self.decode_s if self.decode_s else 0.0


@dataclass(frozen=True)
class Chunk:
    """One token of a stream and the text that became certain with it, perhaps none.

    The last one has `finish_reason` (`stop`, `length` or `cancelled`) and `stats`, and no token where none was made.
    """

    text: str
    token_id: int | None
    finish_reason: str | None = None
    stats: Stats | None = None


@dataclass(frozen=True)
class Generation:
    """An answer. `token_ids` are all tokens made, the one that ended it too; `text` excludes what stopped it."""

    text: str
    token_ids: list[int]
    finish_reason: str
    stats: Stats


class Decoding:
    """One sequence at a time over a decoder session: the state, whose turn it is, and the loop."""

    def __init__(self, session: DecoderSession, decoder: Decoder, codec: TextCodec) -> None:
        self.decoder = decoder
        self.codec = codec
        self.session = session
        self.closed = threading.Event()
        self._state = session.new_state()
        self._turn = Turn()

    def close(self) -> None:
        """Ends this sequence and its forks; frees what the session holds outside of the host's memory."""
        self.closed.set()
        self.session.close()

    def fork(self) -> Decoding:
        """Returns another sequence over the same session; closing this one closes that one."""
        other = Decoding(self.session, self.decoder, self.codec)
        other.closed = self.closed
        return other

    def run(self, request: Request) -> Generator[Chunk, None, None]:
        """Generates; holds the turn from its first `next` until it ends or is closed."""
        if not self._turn.take(request.cancel):
            yield Chunk("", None, "cancelled", Stats(len(request.token_ids), 0, 0, 0.0, 0.0))
            return
        try:
            with closing(Steps(self._state, self.decoder.vocab_size, request.token_ids, request.drafts)) as steps:
                yield from self._run(request, steps)
        finally:
            self._turn.give()

    def _run(self, request: Request, steps: Steps) -> Generator[Chunk, None, None]:
        began = perf_counter()
        state, prompt = self._state, request.token_ids
        limit = self.decoder.max_seq_len - len(prompt) + 1  # the last token is made, and never run
        if request.max_new_tokens is not None:
            limit = min(limit, request.max_new_tokens)
        sampler = Sampler(request.sampling, self.decoder.vocab_size, prompt)
        detokenizer = Detokenizer(self.codec.tokenizer, self.codec.special_ids, prompt)
        stops = StopStrings(request.stop)
        cached = state.cache.keep_prefix(prompt)
        state.reserve(len(prompt) + min(limit - 1, _RESERVE))
        logits = self._prefill(request, cached)
        token: int | None = None
        reason: str | None = None
        count, prefill_s, decode_s = 0, 0.0, 0.0
        while reason is None:
            self._check_open()
            text = ""
            if logits is None or check.is_set(request.cancel):
                token, reason = None, "cancelled"
            else:
                if token is not None:
                    logits = steps.after(token, limit - count - 1)
                token = sampler(logits)
                count += 1
                if token in request.stop_token_ids:
                    reason = "stop"
                else:
                    text = stops.push(detokenizer.push(token))
                    reason = "stop" if stops.found else "length" if count == limit else None
            if reason is not None and not stops.found:
                text += stops.push(detokenizer.flush())
                reason = "stop" if stops.found else reason
                text += stops.flush()
            now = perf_counter()
            if count <= 1:
                prefill_s += now - began
            else:
                decode_s += now - began
            stats = None
            if reason is not None:
                stats = Stats(len(prompt), cached, count, prefill_s, decode_s, steps.drafted, steps.accepted)
            yield Chunk(text, token, reason, stats)
            began = perf_counter()

    def _prefill(self, request: Request, cached: int) -> Floats | None:
        """Runs the prompt from position `cached`; returns the last logits, or None where it was cancelled."""
        logits, count = None, len(request.token_ids) - cached
        runs = -(-count // self._state.chunk)  # of like length: a short one would cost as much as a long one
        for run in range(runs):
            self._check_open()
            if check.is_set(request.cancel):
                return None
            start, stop = (cached + count * at // runs for at in (run, run + 1))
            part = request.token_ids[start:stop]
            if run < runs - 1:
                self._state.fill(part)
            else:
                logits = self._state.prefill(part)
        return logits

    def score(self, token_ids: list[int]) -> Floats:
        """See `TextGeneration.score`."""
        scores = np.empty(max(0, len(token_ids) - 1), np.float32)
        buffer = np.empty((self._rows(len(scores)), self.decoder.vocab_size), np.float32)
        with self._exclusive():
            for start, part in self._parts(token_ids[:-1], len(buffer)):
                logits = buffer[: len(part)]
                self._state.all_logits(part, logits)
                scores[start : start + len(part)] = log_probabilities(
                    logits, np.asarray(token_ids[start + 1 : start + 1 + len(part)])
                )
        return scores

    def logits(self, token_ids: list[int]) -> Floats:
        """See `TextGeneration.logits`."""
        logits = np.empty((len(token_ids), self.decoder.vocab_size), np.float32)
        with self._exclusive():
            for start, part in self._parts(token_ids, self._rows(len(token_ids))):
                self._state.all_logits(part, logits[start : start + len(part)])
        return logits

    def logits_blocks(self, token_ids: list[int]) -> Iterator[tuple[int, Floats]]:
        """See `TextGeneration.logits_blocks`."""
        buffer = np.empty((self._rows(len(token_ids)), self.decoder.vocab_size), np.float32)
        with self._exclusive():
            for start, part in self._parts(token_ids, len(buffer)):
                self._state.all_logits(part, buffer[: len(part)])
                yield start, buffer[: len(part)]

    def _rows(self, length: int) -> int:
        rows = max(1, _LOGITS_BYTES // (4 * self.decoder.vocab_size))
        return max(1, min(rows, self._state.chunk, length))

    def _parts(self, token_ids: list[int], rows: int) -> Iterator[tuple[int, list[int]]]:
        """Starts a fresh sequence and yields it in parts, with the position of each."""
        self._state.cache.token_ids.clear()
        self._state.reserve(len(token_ids))
        for start in range(0, len(token_ids), rows):
            self._check_open()
            yield start, token_ids[start : start + rows]

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        self._turn.take(None)
        try:
            yield
        finally:
            self._turn.give()

    def _check_open(self) -> None:
        if self.closed.is_set():
            raise closed_error()


def closed_error() -> ClosedError:
    """The error of every use after `close()`."""
    return ClosedError("the model: expected an open one, found it closed", hint="load it again")


def log_probabilities(logits: Floats, targets: NDArray[np.int64]) -> Floats:
    """Log-softmax of each row of `logits` [n, vocab] at `targets` [n], as float32 [n]; overwrites `logits`."""
    chosen = logits[np.arange(len(targets)), targets].astype(np.float64)
    largest = logits.max(axis=1)
    logits -= largest[:, None]
    np.exp(logits, out=logits)
    total = logits.sum(axis=1, dtype=np.float64)
    result: Floats = (chosen - largest - np.log(total)).astype(np.float32)
    return result


class TextGeneration(ABC):
    """What a model and a context of it do with text."""

    @abstractmethod
    def _decoding(self) -> Decoding:
        """Returns the sequence to use; raises `ClosedError`, and `RequestError` where the model has another task."""

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Iterable[str] = (),
        stop_token_ids: Iterable[int] = (),
        cancel: Event | None = None,
        drafts: bool | int = False,
    ) -> Generation:
        """Continues a prompt. One generation of a model runs at a time; other threads wait for their turn.

        Args:
            prompt: Text; or token ids; or chat messages, `{"role": …, "content": …}`, for the model's chat template.
            max_new_tokens: Tokens to make at most; None goes on until the model ends or its length is full.
            temperature: 0 takes the likeliest token each time; above, tokens are drawn.
            top_k: Draw from the k likeliest.
            top_p: Draw from the fewest likeliest whose probabilities sum to this.
            min_p: Draw from those at least this share as likely as the likeliest.
            repetition_penalty: Above 1, makes tokens of the prompt and the answer less likely.
            seed: Equal seeds draw equally; None draws anew each time.
            stop: Strings that end the text, and are not part of it.
            stop_token_ids: Tokens that end it, besides the model's own.
            cancel: Set from another thread, ends it after the token in work.
            drafts: True copies what may come next from earlier text and checks it several tokens in one run, which is
                faster where an answer repeats its context; a number is the most to copy at once. Tokens are drawn as
                ever, but from logits that may differ by rounding: a quantized model may go on otherwise near a tie.
                Without effect on a GPU.

        Raises:
            RequestError: An option is out of its range, or the model has another task.
            PromptTooLongError: The prompt exceeds the model's length.
            ChatTemplateError: Messages were given and there is no template, or it refuses them.
            ClosedError: The model is closed.
        """
        chunks = self.stream(
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=stop,
            stop_token_ids=stop_token_ids,
            cancel=cancel,
            drafts=drafts,
        )
        with closing(chunks):  # an interrupted call must not keep the turn while its traceback lives
            made = list(chunks)
        last = made[-1]
        assert last.finish_reason is not None  # a stream always ends with a chunk that says why
        assert last.stats is not None
        token_ids = [chunk.token_id for chunk in made if chunk.token_id is not None]
        return Generation("".join(chunk.text for chunk in made), token_ids, last.finish_reason, last.stats)

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Iterable[str] = (),
        stop_token_ids: Iterable[int] = (),
        cancel: Event | None = None,
        drafts: bool | int = False,
    ) -> Generator[Chunk, None, None]:
        """`generate`, token by token. The request is checked at once; the turn is held from the first `next` on.

        An iterator that is left before its end gives the turn back when it is closed or collected.
        """
        decoding = self._decoding()
        codec, vocab_size = decoding.codec, decoding.decoder.vocab_size
        sampling = check.sampling_options(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        if cancel is not None and not callable(getattr(cancel, "is_set", None)):
            raise RequestError(f"cancel: expected a threading.Event, found {type(cancel).__name__}")
        request = Request(
            token_ids=self._checked(codec.prompt_ids(prompt, vocab_size)),
            max_new_tokens=None if max_new_tokens is None else check.integer("max_new_tokens", max_new_tokens, 1),
            sampling=sampling,
            stop=check.stop_strings(stop),
            stop_token_ids=codec.eos_ids.union(check.token_ids("stop_token_ids", stop_token_ids, vocab_size)),
            cancel=cancel,
            drafts=check.drafts(drafts),
        )
        return decoding.run(request)

    def score(self, token_ids: Sequence[int]) -> Floats:
        """Log-probability (natural) of each token after the first, given those before it; float32 [len - 1].

        Raises `RequestError`, `PromptTooLongError`, `ClosedError` as `generate`.
        """
        decoding = self._decoding()
        return decoding.score(self._checked(check.token_ids("token_ids", token_ids, decoding.decoder.vocab_size)))

    def logits(self, token_ids: Sequence[int]) -> Floats:
        """Logits after every token; float32 [len, vocab], which is the caller's to bound. Raises as `score`."""
        decoding = self._decoding()
        return decoding.logits(self._checked(check.token_ids("token_ids", token_ids, decoding.decoder.vocab_size)))

    def logits_blocks(self, token_ids: Sequence[int]) -> Iterator[tuple[int, Floats]]:
        """Yields the position of a block's first token and logits after each of its tokens, float32 [n, vocab].

        Memory is bounded whatever the length: a block is valid until the next one is asked for. Raises as `score`.
        """
        decoding = self._decoding()
        return decoding.logits_blocks(
            self._checked(check.token_ids("token_ids", token_ids, decoding.decoder.vocab_size))
        )

    def _checked(self, token_ids: list[int]) -> list[int]:
        longest = self._decoding().decoder.max_seq_len
        if not token_ids:
            raise RequestError("prompt: expected at least one token, found none")
        if len(token_ids) > longest:
            raise PromptTooLongError(
                f"prompt: expected at most {longest} tokens (max_seq_len), found {len(token_ids)}",
                hint=f"shorten it by {len(token_ids) - longest} tokens, or build with a larger --max-seq-len",
            )
        return token_ids
