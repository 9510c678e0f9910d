"""TensorRT and TensorRT-RTX: the cache stays on the GPU; token ids go there and the last logits come back.

A decoder's engine has inputs for token ids int64 [1, seq], the past's length int64 [1], `logits_at` int64 [n] (rows
whose logits are wanted) and the caches [1, kv_heads, max_seq_len, dim]; its outputs are logits float32 [1, n, vocab]
and caches like the past. Its part says what they are called. Its profile `prefill` takes runs of tokens, `decode`
single ones. Everything of a sequence happens in one stream; a decode step is replayed as a CUDA graph.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime_edge.backends.buffers import Inputs, aligned, device_memory, free_held, release_all
from runtime_edge.backends.engine import Context, LoadedEngine, Memory
from runtime_edge.cache import TokenCache
from runtime_edge.cuda import DeviceMemoryError
from runtime_edge.decoder_record import Decoder, decoder_of
from runtime_edge.encoder_record import Encoder, encoder_of
from runtime_edge.errors import ClosedError, EngineError, LeptonError
from runtime_edge.manifest import ENGINE_DTYPES, Engine, Manifest
from runtime_edge.part_record import Part

if TYPE_CHECKING:
    from runtime_edge.backends import Floats, Ints
    from runtime_edge.ending import Stop

LOGITS_AT = "logits_at"  # the input that lowerings give a decoder
PREFILL, DECODE, BATCH = "prefill", "decode", "batch"
_FLOAT32 = 4  # bytes


class TrtDecoder:
    """A decoder's engine. `why` receives what makes it slower than it could be; other arguments as `LoadedEngine`."""

    def __init__(
        self, plan: Path, record: Engine, decoder: Decoder, jit_cache: Path | None, why: list[str], **native: Any
    ) -> None:
        self.decoder = decoder
        self.why = why
        self.in_place = record.cache_in_place
        item = ENGINE_DTYPES[record.cache_dtype]
        shapes = [(layer.kv_heads, dim) for layer in decoder.cache for dim in (layer.key_dim, layer.value_dim)]
        # One set of buffers, each at a multiple of what TensorRT asks for.
        self.buffer_bytes = [aligned(heads * decoder.max_seq_len * dim * item) for heads, dim in shapes]
        self.names = names = decoder.names
        self.past, self.present = names.past, names.present
        sets = 1 if self.in_place else 2
        self.memory = Memory(cache=sets * sum(self.buffer_bytes), length=decoder.max_seq_len)
        self.engine = LoadedEngine(plan, record, self.memory, jit_cache, **native)
        cache = [(record.cache_dtype, (1, heads, decoder.max_seq_len, dim)) for heads, dim in shapes]
        self.engine.expect(
            {
                names.token_ids: ("int64", (1, -1)),
                names.past_length: ("int64", (1,)),
                LOGITS_AT: ("int64", (-1,)),
                **dict(zip(self.past, cache, strict=True)),
            },
            {names.logits: ("float32", (1, -1, decoder.vocab_size)), **dict(zip(self.present, cache, strict=True))},
        )
        self._states: weakref.WeakSet[TrtDecoderState] = weakref.WeakSet()

    def new_state(self) -> TrtDecoderState:
        """Returns an empty sequence (raises `DeviceMemoryError`)."""
        state = TrtDecoderState(self)
        self._states.add(state)
        return state

    def new_stop(self) -> Stop:
        """See `DecoderSession.new_stop`: a run goes on to its end."""
        return SimpleNamespace(terminate=False)

    def close(self) -> None:
        """Frees the GPU's memory; a state in use is waited for, and refuses what comes after."""
        for state in list(self._states):
            state.close()
        self.engine.close()


class TrtDecoderState:
    """One sequence: two contexts over the same cache, workspace and stream, one for single tokens, one for runs."""

    stop: Stop | None = None  # looked at between runs: an engine's run is not ended
    most_drafts = 0  # a run takes the profile `prefill`: other kernels, and no CUDA graph replays them

    def __init__(self, owner: TrtDecoder) -> None:
        self._owner = owner
        self._cuda = owner.engine.cuda
        self._lock = threading.Lock()  # closing waits for a run; nothing else needs it
        self._held = ExitStack()
        self.cache = TokenCache(owner.decoder.max_seq_len)
        self._turn = 0  # the set of buffers that holds the past
        self._busy = False
        self._graphs: dict[int, Any] = {}
        self._warm: set[int] = set()
        try:
            self._allocate()
        except BaseException:
            self._held.close()
            raise
        self._finalizer = weakref.finalize(self, free_held, self._cuda, self._stream, self._held)

    def _allocate(self) -> None:
        owner, engine, held, cuda = self._owner, self._owner.engine, self._held, self._cuda
        vocab_size = owner.decoder.vocab_size
        needed = engine.memory(owner.memory)
        needed.check(engine.name, cuda.free_memory())
        try:
            self._stream = cuda.stream()
            held.callback(cuda.end_stream, self._stream)
            sets = [self._buffers() for _ in range(1 if owner.in_place else 2)]
            workspace = device_memory(cuda, held, engine.workspace_bytes)
            self._row_at = device_memory(cuda, held, vocab_size * _FLOAT32)
            self._rows_at, self._rows_held = 0, 0  # logits of many rows: allocated where they are asked for
            self._grown: list[int] = []
            held.callback(release_all, cuda, self._grown)
            ids, past = self._ids, self._past = owner.names.token_ids, owner.names.past_length
            self.chunk = engine.greatest(PREFILL, ids)[1]
            self._most_rows = min(self.chunk, engine.greatest(PREFILL, LOGITS_AT)[0])
            self._one = Inputs(engine, held, {past: 1, LOGITS_AT: 1, ids: 1})
            self._many = Inputs(engine, held, {past: 1, LOGITS_AT: self._most_rows, ids: self.chunk})
            self._prefill: Context | None = engine.context(PREFILL, self._stream, workspace, one_shape=False)
            self._decode: Context | None = engine.context(DECODE, self._stream, workspace, one_shape=True)
        except DeviceMemoryError as error:
            raise needed.error(engine.name, cuda.free_memory()) from error
        # Of set i as the past, the present goes to the other one; or to the same.
        self._sets = [(sets[turn], sets[turn if owner.in_place else 1 - turn]) for turn in range(len(sets))]
        self._logits: Floats = cuda.pinned(vocab_size * _FLOAT32).view(np.float32)
        for context, inputs in ((self._prefill, self._many), (self._decode, self._one)):
            inputs.bind(context)
            context.bind(owner.names.logits, self._row_at)
        self._decode.shape(ids, (1, 1))
        self._decode.shape(LOGITS_AT, (1,))
        self._bound: dict[str, int | None] = {PREFILL: None, DECODE: None}
        self._bind_cache(PREFILL, self._prefill)
        self._bind_cache(DECODE, self._decode)
        on_host = self._one.on_host
        self._graph_refusal = f"{', '.join(on_host)}: read by the CPU in every step" if on_host else ""
        if on_host:
            self._tell()

    def _buffers(self) -> list[int]:
        """Returns addresses of one set of the cache, cleared: rows that are masked still must be finite."""
        sizes = self._owner.buffer_bytes
        start = device_memory(self._cuda, self._held, sum(sizes))
        self._cuda.zero(start, sum(sizes), self._stream)
        return [start + sum(sizes[:index]) for index in range(len(sizes))]

    def reserve(self, length: int) -> None:
        """See `DecoderState.reserve`: the cache has its full length from the start."""
        self.cache.check(length)

    def prefill(self, token_ids: Sequence[int]) -> Floats:
        """See `DecoderState.prefill`: one chunk, at most `chunk` tokens."""
        if len(token_ids) == 1:
            return self.step(token_ids[0])
        with self._lock:
            self._run_many(token_ids, [len(token_ids) - 1], self._row_at, self._logits)
        return self._logits

    def fill(self, token_ids: Sequence[int]) -> None:
        """See `DecoderState.fill`: an engine takes one position at least."""
        self.prefill(token_ids)

    def step(self, token_id: int) -> Floats:
        """See `DecoderState.step`."""
        with self._lock:
            context = self._open(self._decode)
            tokens = self.cache.token_ids
            self.reserve(len(tokens) + 1)
            self._one.views[self._ids][0] = token_id
            self._one.views[self._past][0] = len(tokens)
            graph = self._graph(context)
            self._busy = True
            if graph is not None:
                self._cuda.launch(graph, self._stream)
            else:
                self._bind_cache(DECODE, context)
                self._enqueue_step(context)
                self._warm.add(self._turn)
            self._finish()
            tokens.append(token_id)
        return self._logits

    def all_logits(self, token_ids: Sequence[int], out: Floats) -> None:
        """See `DecoderState.all_logits`."""
        with self._lock:
            for start in range(0, len(token_ids), self._most_rows):
                part = token_ids[start : start + self._most_rows]
                self._run_many(part, range(len(part)), self._rows(len(part)), out[start : start + len(part)])

    def close(self) -> None:
        """Frees everything that the sequence holds on the GPU; closing twice is no error."""
        with self._lock:
            self._prefill = self._decode = None  # contexts go before the memory that they use
            self._graphs.clear()
            self._finalizer()

    def _run_many(self, token_ids: Sequence[int], rows: Sequence[int], address: int, out: Floats) -> None:
        context, views, count = self._open(self._prefill), self._many.views, len(token_ids)
        tokens = self.cache.token_ids
        self.reserve(len(tokens) + count)
        views[self._ids][:count] = token_ids
        views[LOGITS_AT][: len(rows)] = rows
        views[self._past][0] = len(tokens)
        context.shape(self._ids, (1, count))
        context.shape(LOGITS_AT, (len(rows),))
        context.bind(self._owner.names.logits, address)
        self._bind_cache(PREFILL, context)
        self._busy = True
        self._many.upload(self._stream)
        context.enqueue()
        self._cuda.download(out.ctypes.data, address, out.nbytes, self._stream)
        self._finish()
        tokens.extend(token_ids)  # only now: an interrupted run leaves rows that count as garbage

    def _open(self, context: Context | None) -> Context:
        if context is None:
            raise ClosedError("the model: expected an open one, found it closed", hint="load it again")
        if self._busy:  # interrupted after it was enqueued: it still reads what would be written now
            self._cuda.wait(self._stream)
            self._busy = False
        return context

    def _finish(self) -> None:
        self._cuda.wait(self._stream)
        self._busy = False
        self._turn = (self._turn + 1) % len(self._sets)

    def _enqueue_step(self, context: Context) -> None:
        self._one.upload(self._stream)
        context.enqueue()
        self._cuda.download(self._logits.ctypes.data, self._row_at, self._logits.nbytes, self._stream)

    def _graph(self, context: Context) -> Any:
        """The graph of a step from this set of buffers, captured after one plain run; None where there is none."""
        graph = self._graphs.get(self._turn)
        if graph is not None or self._graph_refusal or self._turn not in self._warm:
            return graph
        try:
            self._bind_cache(DECODE, context)
            if not context.capturable():
                self._graph_refusal = "TensorRT says that this engine cannot be captured"
            else:
                graph = self._cuda.capture(self._stream, lambda: self._enqueue_step(context))
                self._held.callback(self._cuda.end_graph, graph)
                self._graphs[self._turn] = graph
                self._owner.engine.keep_kernels()  # all that a step takes are compiled now
        except LeptonError as error:
            self._graph_refusal = error.message
        if self._graph_refusal:
            self._tell()
        return graph

    def _tell(self) -> None:
        reason = f"{self._owner.engine.name}: decodes without a CUDA graph: {self._graph_refusal}"
        if reason not in self._owner.why:
            self._owner.why.append(reason)

    def _bind_cache(self, profile: str, context: Context) -> None:
        if self._bound[profile] == self._turn:
            return
        past, present = self._sets[self._turn]
        for names, addresses in ((self._owner.past, past), (self._owner.present, present)):
            for name, address in zip(names, addresses, strict=True):
                context.bind(name, address)
        self._bound[profile] = self._turn

    def _rows(self, count: int) -> int:
        """Address of logits for `count` rows."""
        if count > self._rows_held:
            release_all(self._cuda, self._grown)
            self._rows_held = 0
            size = count * self._owner.decoder.vocab_size * _FLOAT32
            try:
                self._rows_at = self._cuda.allocate(size)
            except DeviceMemoryError as error:
                raise Memory(workspace=size).error(self._owner.engine.name, self._cuda.free_memory()) from error
            self._grown.append(self._rows_at)
            self._rows_held = count
        return self._rows_at


class TrtEncoder:
    """An encoder's engine: one batch at a time, from any thread. Arguments as `LoadedEngine`."""

    def __init__(self, plan: Path, record: Engine, encoder: Encoder, jit_cache: Path | None, **native: Any) -> None:
        self.encoder = encoder
        self.workers = 1
        self.batch_tokens: int | None = None
        self._lock = threading.Lock()
        self._held = ExitStack()
        self.engine = LoadedEngine(plan, record, Memory(), jit_cache, **native)
        self.engine.expect(
            dict.fromkeys(encoder.inputs, ("int64", (-1, -1))), {encoder.output: ("float32", (-1, encoder.dim))}
        )
        try:
            self._allocate()
        except BaseException:
            self._held.close()
            raise
        self._finalizer = weakref.finalize(self, free_held, self.engine.cuda, self._stream, self._held)

    def _allocate(self) -> None:
        engine, cuda, held, encoder = self.engine, self.engine.cuda, self._held, self.encoder
        needed = engine.memory(Memory())
        needed.check(engine.name, cuda.free_memory())
        self._most, self._longest = engine.greatest(BATCH, encoder.inputs[0])
        try:
            self._stream = cuda.stream()
            held.callback(cuda.end_stream, self._stream)
            workspace = device_memory(cuda, held, engine.workspace_bytes)
            self._output_at = device_memory(cuda, held, self._most * encoder.dim * _FLOAT32)
            self._inputs = Inputs(engine, held, dict.fromkeys(encoder.inputs, self._most * self._longest))
            self._context: Context | None = engine.context(BATCH, self._stream, workspace, one_shape=False)
        except DeviceMemoryError as error:
            raise needed.error(engine.name, cuda.free_memory()) from error
        self._rows: Floats = cuda.pinned(self._most * encoder.dim * _FLOAT32).view(np.float32).reshape(self._most, -1)
        self._inputs.bind(self._context)
        self._context.bind(encoder.output, self._output_at)

    def new_stop(self) -> Stop:
        """See `EncoderSession.new_stop`: a run goes on to its end."""
        return SimpleNamespace(terminate=False)

    def run(self, inputs: Mapping[str, Ints], *, alone: bool = True, stop: Stop | None = None) -> Floats:
        """See `EncoderSession.run`; a batch larger than the engine's is run in parts, one batch after another."""
        count, length = inputs[self.encoder.inputs[0]].shape
        rows = np.empty((count, self.encoder.dim), np.float32)
        with self._lock:
            for start in range(0, count, self._most):
                part = {name: array[start : start + self._most] for name, array in inputs.items()}
                size = min(self._most, count - start)
                rows[start : start + size] = self._run(part, (size, length))
        return rows

    def _run(self, inputs: Mapping[str, Ints], shape: tuple[int, int]) -> Floats:
        context, cuda = self._context, self.engine.cuda
        if context is None:
            raise ClosedError("the model: expected an open one, found it closed", hint="load it again")
        cuda.wait(self._stream)  # an interrupted run may still read what is written now
        for name, array in inputs.items():
            self._inputs.views[name][: array.size] = array.reshape(-1)
            context.shape(name, shape)
        self._inputs.upload(self._stream)
        context.enqueue()
        rows = self._rows[: shape[0]]
        cuda.download(rows.ctypes.data, self._output_at, rows.nbytes, self._stream)
        cuda.wait(self._stream)
        return rows

    def close(self) -> None:
        """Frees the GPU's memory once a run in another thread has ended; closing twice is no error."""
        with self._lock:
            self._context = None
            self._finalizer()
            self.engine.close()


def open_part(
    plan: Path, record: Engine, manifest: Manifest, part: Part, jit_cache: Path | None, why: list[str]
) -> TrtDecoder | TrtEncoder:
    """Opens a plan of a part whose hash was checked; `why` as `TrtDecoder` has it, errors as `LoadedEngine`."""
    if (decoder := decoder_of([part], manifest.settings)) is not None:
        return open_decoder(plan, record, decoder, jit_cache, why)
    if (encoder := encoder_of([part], manifest.settings)) is not None:
        return open_encoder(plan, record, encoder, jit_cache)
    raise EngineError(f"part {part.name}: expected a decoder over a cache, or an encoder with one row a text")


def open_decoder(plan: Path, record: Engine, decoder: Decoder, jit_cache: Path | None, why: list[str]) -> TrtDecoder:
    """Opens a decoder's plan whose hash was checked; arguments and errors as `TrtDecoder`."""
    return TrtDecoder(plan, record, decoder, jit_cache, why)


def open_encoder(plan: Path, record: Engine, encoder: Encoder, jit_cache: Path | None) -> TrtEncoder:
    """Opens an encoder's plan whose hash was checked; arguments and errors as `TrtEncoder`."""
    return TrtEncoder(plan, record, encoder, jit_cache)
