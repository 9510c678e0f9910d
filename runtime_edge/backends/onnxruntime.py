"""ONNX Runtime: sessions, and buffers bound to them in place.

A decoder graph has inputs for token ids int64 [1, seq], the past's length int64 [1], `logits_to_keep` int64 [1] and the
caches; its outputs are logits float32 [1, n, vocab] and the caches. Its part says what they are called. Past and
present are one buffer, which attention writes in place. All that a decode step reads or writes is bound once: a step
sets two integers and runs.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime_edge import kernels, ort
from runtime_edge.backends.ort_session import CPU as CPU
from runtime_edge.backends.ort_session import SLOWER as SLOWER
from runtime_edge.backends.ort_session import OrtSession
from runtime_edge.cache import KVCache
from runtime_edge.decoder_record import Decoder, decoder_of
from runtime_edge.errors import ArtifactError, MissingDependencyError
from runtime_edge.files import Background, listing
from runtime_edge.installation import install_command
from runtime_edge.manifest import PROMPTS, Manifest, Variant
from runtime_edge.part_record import Part

if TYPE_CHECKING:
    from runtime_edge.backends import Floats, Ints
    from runtime_edge.ending import Stop

LOGITS_TO_KEEP = "logits_to_keep"  # the input that lowerings give a decoder
_GPU = ("CUDAExecutionProvider", "TensorrtExecutionProvider")  # in this order: TensorRT's builds for each new shape
# Tokens a run: attention's scores take chunk x length a head, of which a run computes also those of later tokens, and
# what 256 tokens make in a layer stays in a core's cache.
PREFILL_CHUNK = 256
PREFILL_LEAST = 16  # tokens that the graph for prefill is worth: below, both take about the same time
BATCH_TOKENS = 32  # MiniLM-L6 in static int8: one text of 23 tokens takes 2.2 ms, 32 of 14 take 18
MOST_TWICE = 256 * 2**20  # bytes of an encoder's artifact, up to which its weights are held twice for many texts


class OrtDecoder:
    """A decoder graph in a session, and the graph that it may have for prefill in another; the cache serves both."""

    def __init__(
        self, graph: Path, decoder: Decoder, threads: int, providers: Sequence[str] = CPU, activations: str = "none",
        prefill: Path | None = None, derived: Path | None = None,
    ) -> None:  # fmt: skip
        self.decoder = decoder
        self.names = decoder.names
        # Weights are prepared by one thread a session.
        opening = partial(self._open, threads=threads, providers=providers)
        second = None if prefill is None else Background(lambda: opening(prefill, activations="int8", derived=derived))
        self.session = opening(graph, activations=activations)
        self.prefill_session = None if second is None else second.result()
        # A draft stays below what the graph for prefill takes. On a GPU it was not measured, and TensorRT's provider
        # would build for each new length.
        self.most_drafts = PREFILL_LEAST - 2 if tuple(providers) == CPU else 0

    def _open(
        self, graph: Path, threads: int, providers: Sequence[str], activations: str, derived: Path | None = None
    ) -> OrtSession:
        # On a GPU the cache's type may be another.
        ours = kernels.chosen(self.decoder, activations) if tuple(providers) == CPU else ()
        session = OrtSession(graph, threads, providers, derived, ours)
        session.expect(
            inputs=(self.names.token_ids, self.names.past_length, LOGITS_TO_KEEP, *self.names.past),
            outputs=(self.names.logits, *self.names.present),
        )
        return session

    def new_state(self) -> OrtDecoderState:
        """Returns an empty sequence."""
        return OrtDecoderState(self)

    def new_stop(self) -> Stop:
        """See `DecoderSession.new_stop`."""
        return self.session.new_stop()

    def close(self) -> None:
        """See `DecoderSession.close`: all of it is freed when it is no longer used."""


class OrtDecoderState:
    """One sequence: bindings over the same cache, for single tokens, for runs of them, and for long runs."""

    def __init__(self, owner: OrtDecoder) -> None:
        self._owner = owner
        self.chunk = PREFILL_CHUNK
        self.most_drafts = owner.most_drafts
        self.stop: Stop | None = None
        self.cache = KVCache(owner.decoder)
        self._token = np.zeros((1, 1), np.int64)
        self._chunk = np.zeros((1, PREFILL_CHUNK), np.int64)
        self._past = np.zeros(1, np.int64)
        self._one = np.ones(1, np.int64)
        self._all = np.ones(1, np.int64)
        self._none = np.zeros(1, np.int64)
        self._logits: Floats = np.zeros((1, 1, owner.decoder.vocab_size), np.float32)
        self._row: Floats = self._logits[0, 0]
        self._step, self._many = owner.session.binding(), owner.session.binding()
        self._long = self._many if owner.prefill_session is None else owner.prefill_session.binding()
        names = owner.names
        for binding in self._bindings:
            _bind_input(binding, names.past_length, self._past)
        _bind_input(self._step, LOGITS_TO_KEEP, self._one)
        _bind_input(self._step, names.token_ids, self._token)
        _bind_output(self._step, names.logits, self._logits)

    @property
    def _bindings(self) -> tuple[Any, ...]:
        return (self._step, self._many) if self._long is self._many else (self._step, self._many, self._long)

    def reserve(self, length: int) -> None:
        """See `DecoderState.reserve`."""
        if self.cache.reserve(length):
            self._bind_cache()

    def prefill(self, token_ids: Sequence[int]) -> Floats:
        """See `DecoderState.prefill`: one chunk, at most `PREFILL_CHUNK` tokens."""
        if len(token_ids) == 1:
            return self.step(token_ids[0])
        self._run_many(token_ids, self._one, self._logits)
        return self._row

    def fill(self, token_ids: Sequence[int]) -> None:
        """See `DecoderState.fill`: graphs of earlier artifacts make the logits of one position at least."""
        if self._owner.decoder.keeps_none:
            self._run_many(token_ids, self._none, self._logits[:, :0])
        else:
            self.prefill(token_ids)

    def step(self, token_id: int) -> Floats:
        """See `DecoderState.step`."""
        tokens = self.cache.token_ids
        self.reserve(len(tokens) + 1)
        self._token[0, 0] = token_id
        self._past[0] = len(tokens)
        self._owner.session.run(self._step, self.stop)
        tokens.append(token_id)
        return self._row

    def all_logits(self, token_ids: Sequence[int], out: Floats) -> None:
        """See `DecoderState.all_logits`: one chunk, at most `PREFILL_CHUNK` tokens."""
        self._all[0] = len(token_ids)
        self._run_many(token_ids, self._all, out[None])

    def _run_many(self, token_ids: Sequence[int], keep: Ints, logits: Floats) -> None:
        tokens = self.cache.token_ids
        count = len(token_ids)
        second = self._owner.prefill_session
        if second is None or count < PREFILL_LEAST:
            session, binding = self._owner.session, self._many
        else:
            session, binding = second, self._long
        self.reserve(len(tokens) + count)
        self._chunk[0, :count] = token_ids
        self._past[0] = len(tokens)
        names = self._owner.names
        _bind_input(binding, LOGITS_TO_KEEP, keep)
        _bind_input(binding, names.token_ids, self._chunk[:, :count])
        _bind_output(binding, names.logits, logits)
        session.run(binding, self.stop)
        tokens.extend(token_ids)  # only now: an interrupted run leaves rows that count as garbage

    def _bind_cache(self) -> None:
        names = self._owner.names
        for binding in self._bindings:
            for past, present, buffer in zip(names.past, names.present, self.cache.buffers, strict=True):
                _bind_input(binding, past, buffer)
                _bind_output(binding, present, buffer)


@dataclass(frozen=True)
class Rows:
    """What a graph without states takes and gives: names of its inputs, and of its first output."""

    inputs: tuple[str, ...]
    output: str


class OrtEncoder:
    """An encoder graph in a session of all threads; and in one of one thread once many batches run side by side.

    Threads that share a product wait for each other at its end, those that have batches of their own do not. The second
    session has weights of its own, in the order that its kernels want: there is none for an artifact of more than
    `MOST_TWICE` bytes, whose products are large enough to be shared, nor where its graph is no longer what was loaded.
    """

    def __init__(
        self, graph: Path, encoder: Rows, threads: int, providers: Sequence[str] = CPU, activations: str = "none"
    ) -> None:
        self.encoder = encoder
        on_cpu = tuple(providers) == CPU
        self._ours = kernels.chosen(None, activations) if on_cpu else ()
        self.workers = threads if on_cpu and sum(listing(graph.parent).values()) <= MOST_TWICE else 1
        self.batch_tokens: int | None = BATCH_TOKENS if on_cpu else None
        self._graph = graph
        self._seen = _file_of(graph)
        self._lock = threading.Lock()
        self._single: OrtSession | None = None
        self.session = self._open(threads, providers)

    def new_stop(self) -> Stop:
        """See `EncoderSession.new_stop`."""
        return self.session.new_stop()

    def run(self, inputs: Mapping[str, NDArray[Any]], *, alone: bool = True, stop: Stop | None = None) -> Floats:
        """See `EncoderSession.run`."""
        session = self.session if alone or self.workers == 1 else self._side()
        return session.run_once(self.encoder.output, inputs, stop)

    def _side(self) -> OrtSession:
        """The session that runs beside itself."""
        with self._lock:
            if self._single is None:
                session = self._open(1, CPU) if _file_of(self._graph) == self._seen else self.session
                self._single = session if _file_of(self._graph) == self._seen else self.session
            return self._single

    def _open(self, threads: int, providers: Sequence[str]) -> OrtSession:
        session = OrtSession(self._graph, threads, providers, ours=self._ours)
        session.expect(inputs=self.encoder.inputs, outputs=(self.encoder.output,))
        return session

    def close(self) -> None:
        """See `EncoderSession.close`: all of it is freed when it is no longer used."""


def preload() -> None:
    """See `Backend.preload`."""
    ort.load()


def gpu_providers() -> list[str]:
    """Returns the providers that run what they can on a GPU and the rest on the CPU.

    Raises:
        MissingDependencyError: The installed ONNX Runtime has none for a GPU.
    """
    available = ort.load().get_available_providers()
    provider = next((name for name in _GPU if name in available), None)
    if provider is None:
        raise MissingDependencyError(
            f"ONNX Runtime: expected one of {' and '.join(_GPU)}, found {', '.join(available)}",
            hint=f"pip uninstall onnxruntime && {install_command('gpu')}",
        )
    return [provider, *CPU]


def open_part(
    root: Path, manifest: Manifest, variant: Variant, part: Part, threads: int, providers: Sequence[str] = CPU
) -> OrtDecoder | OrtEncoder:
    """See `Backend.open_part`."""
    graph, prompts = variant.graph(part.name), variant.graph(part.name, PROMPTS)
    assert graph is not None  # the variant was chosen for it
    if not part.states:
        rows = Rows(tuple(port.name for port in part.inputs), part.outputs[0].name)
        return open_encoder(root / graph.file, rows, threads, providers, activations=graph.activations)
    decoder = decoder_of([part], manifest.settings)
    if decoder is None:
        raise ArtifactError(f"part {part.name}: expected one that makes the next token's logits, found another")
    beside = None if prompts is None else root / prompts.file
    derived = None if prompts is None or prompts.derived is None else root / prompts.derived
    return open_decoder(
        root / graph.file, decoder, threads, providers, activations=graph.activations, prefill=beside, derived=derived
    )


def open_decoder(
    graph: Path, decoder: Decoder, threads: int, providers: Sequence[str] = CPU, *, activations: str = "none",
    prefill: Path | None = None, derived: Path | None = None,
) -> OrtDecoder:  # fmt: skip
    """Opens a decoder's graph, and the one that it has for prompts, whose weights `derived` may say how to make."""
    return OrtDecoder(graph, decoder, threads, providers, activations, prefill, derived)


def open_encoder(
    graph: Path, encoder: Rows, threads: int, providers: Sequence[str] = CPU, *, activations: str = "none"
) -> OrtEncoder:
    """Opens the graph of a part without states."""
    return OrtEncoder(graph, encoder, threads, providers, activations)


def _file_of(path: Path) -> tuple[int, ...]:
    """What tells a file from another one that takes its place; of no file nothing."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _bind_input(binding: Any, name: str, array: NDArray[Any]) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _bind_output(binding: Any, name: str, array: NDArray[Any]) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
