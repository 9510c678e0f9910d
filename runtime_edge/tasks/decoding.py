"""One sequence at a time over a decoder session: the state, whose turn it is, and the loop."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from runtime_edge import request as check
from runtime_edge.backends import DecoderSession
from runtime_edge.detokenize import Detokenizer, StopStrings
from runtime_edge.drafts import Steps
from runtime_edge.errors import ClosedError
from runtime_edge.manifest import Decoder
from runtime_edge.request import Request
from runtime_edge.sampling import Sampler
from runtime_edge.tasks.results import Chunk, Stats
from runtime_edge.tasks.turn import Turn
from runtime_edge.text import TextCodec

Floats = NDArray[np.float32]

_LOGITS_BYTES = 32 * 2**20  # logits of all positions are made in runs of tokens that take no more than this
_RESERVE = 1024  # tokens beyond the prompt that the cache is sized for at once; later it doubles


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
        detokenizer = Detokenizer(
            self.codec.tokenizer, self.codec.special_ids, prompt, replaced=self.codec.tokenizer.replaced
        )
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
