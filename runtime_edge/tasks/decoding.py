"""The loop of one generation over a decoder session, and logits of a whole text."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from runtime_edge.backends import DecoderSession, DecoderState
from runtime_edge.detokenize import Detokenizer
from runtime_edge.drafts import Steps
from runtime_edge.ending import Ending, Terminated
from runtime_edge.errors import ClosedError
from runtime_edge.manifest import Decoder
from runtime_edge.probe import usable_memory
from runtime_edge.request import Request
from runtime_edge.sampling import Sampler
from runtime_edge.stops import Answer, StopStrings
from runtime_edge.tasks.conversations import Conversations
from runtime_edge.tasks.results import Chunk, Stats
from runtime_edge.tasks.turn import Turn
from runtime_edge.text import TextCodec

Floats = NDArray[np.float32]

_LOGITS_BYTES = 32 * 2**20  # logits of all positions are made in runs of tokens that take no more than this
_RESERVE = 1024  # tokens beyond the prompt that the cache is sized for at once; later it doubles
_MEMORY_SHARE = 8  # the caches of several conversations take no more than this part of the memory


class Decoding:
    """A decoder session with its conversations: whose turn it is, and the loop of one generation at a time.

    Args:
        session: The session.
        decoder: What the manifest says of it.
        codec: Between text and token ids.
        conversations: Caches at most.
    """

    def __init__(self, session: DecoderSession, decoder: Decoder, codec: TextCodec, conversations: int = 1) -> None:
        self.decoder = decoder
        self.codec = codec
        self.session = session
        self.closed = threading.Event()
        self._conversations = Conversations(session, conversations, usable_memory() // _MEMORY_SHARE)
        self._turn = Turn()

    @property
    def _state(self) -> DecoderState:
        """The state used last."""
        return self._conversations.latest

    @property
    def can_draft(self) -> bool:
        """Whether drafts have an effect."""
        return self._state.most_drafts > 0

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
        request.ending.begin()
        prompt = request.token_ids
        reason = self._turn.take(request.ending)
        if reason is not None:
            yield Chunk("", None, reason, Stats(len(prompt), 0, 0, 0.0, 0.0))
            return
        try:
            yield from self._run(request, self._limit(request))
        finally:
            self._turn.give()

    def _limit(self, request: Request) -> int:
        """Tokens that are made at most: the last one is made, and never run."""
        room = self.decoder.max_seq_len - len(request.token_ids) + 1
        return room if request.max_new_tokens is None else min(room, request.max_new_tokens)

    def _run(self, request: Request, limit: int) -> Generator[Chunk, None, None]:
        began = perf_counter()
        prompt, ending = request.token_ids, request.ending
        sampler = Sampler(request.sampling, self.decoder.vocab_size, prompt)
        answer = self._answer(request)
        state, cached = self._conversations.take(prompt, len(prompt) + min(limit - 1, _RESERVE))
        token: int | None = None
        reason: str | None = None
        count, prefill_s, decode_s = 0, 0.0, 0.0
        with (
            closing(Steps(state, self.decoder.vocab_size, prompt, request.drafts)) as steps,
            self._watched(state, ending),
        ):
            while reason is None:
                self._check_open()
                logits = None
                with suppress(Terminated):
                    if count == 0:
                        logits = self._prefill(request, state, cached)
                    elif ending.reason() is None:
                        assert token is not None
                        logits = steps.after(token, limit - count - 1)
                if logits is None:
                    token, reason = None, ending.reason()
                    text = answer.end()
                else:
                    token = sampler(logits)
                    count += 1
                    if token in request.stop_token_ids:
                        text, reason = answer.end(token), "stop"
                    else:
                        text = answer.push(token)
                        reason = "stop" if answer.is_stopped else "length" if count == limit else None
                        text += answer.end() if reason == "length" else ""
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

    def _answer(self, request: Request) -> Answer:
        prompt, codec = request.token_ids, self.codec
        stops = StopStrings(request.stop, codec.pieces, prompt) if request.stop else None
        detokenizer = Detokenizer(
            codec.tokenizer.joining, codec.special_ids, prompt, replacements=codec.tokenizer.replacements
        )
        return Answer(detokenizer, stops)

    def _prefill(self, request: Request, state: DecoderState, cached: int) -> Floats | None:
        """Runs the prompt from position `cached`; returns the last logits, or None where it was time to end."""
        logits, count = None, len(request.token_ids) - cached
        runs = -(-count // state.chunk)  # of like length: a short one would cost as much as a long one
        for run in range(runs):
            self._check_open()
            if request.ending.reason() is not None:
                return None
            start, stop = (cached + count * at // runs for at in (run, run + 1))
            part = request.token_ids[start:stop]
            if run < runs - 1:
                state.fill(part)
            else:
                logits = state.prefill(part)
        return logits if request.ending.reason() is None else None

    @contextmanager
    def _watched(self, state: DecoderState, ending: Ending) -> Iterator[None]:
        """Within it a run is ended when it is time; nothing happens for a request that cannot be ended."""
        if not ending.is_possible:
            yield
            return
        state.stop = self.session.new_stop()
        try:
            with ending.watching(state.stop):
                yield
        finally:
            state.stop = None

    def score(self, token_ids: list[int], ending: Ending) -> Floats:
        """See `TextGeneration.score`."""
        scores = np.empty(max(0, len(token_ids) - 1), np.float32)
        with closing(self.logits_blocks(token_ids[:-1], ending)) as blocks:
            for start, logits in blocks:
                targets = np.asarray(token_ids[start + 1 : start + 1 + len(logits)])
                scores[start : start + len(logits)] = log_probabilities(logits, targets)
        return scores

    def logits(self, token_ids: list[int], ending: Ending) -> Floats:
        """See `TextGeneration.logits`."""
        logits = np.empty((len(token_ids), self.decoder.vocab_size), np.float32)
        with closing(self.logits_blocks(token_ids, ending)) as blocks:
            for start, block in blocks:
                logits[start : start + len(block)] = block
        return logits

    def logits_blocks(self, token_ids: list[int], ending: Ending) -> Generator[tuple[int, Floats], None, None]:
        """See `TextGeneration.logits_blocks`."""
        ending.begin()
        rows = max(1, min(_LOGITS_BYTES // (4 * self.decoder.vocab_size), len(token_ids)))
        if self._turn.take(ending) is not None:
            ending.check("the model")
        try:
            state = self._conversations.scratch(len(token_ids))
            rows = min(rows, state.chunk)
            buffer = np.empty((rows, self.decoder.vocab_size), np.float32)
            try:
                with self._watched(state, ending):
                    for start in range(0, len(token_ids), rows):
                        self._check_open()
                        ending.check("the model")
                        part = token_ids[start : start + rows]
                        try:
                            state.all_logits(part, buffer[: len(part)])
                        except Terminated:
                            ending.check("the model")
                        yield start, buffer[: len(part)]
            finally:
                state.cache.keep(0)  # nobody goes on from it: the next text takes this state, and no conversation's
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
