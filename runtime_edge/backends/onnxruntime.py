"""ONNX Runtime: sessions, and buffers bound to them in place.

A decoder graph has the inputs `input_ids` int64 [1, seq], `past_length` int64 [1], `logits_to_keep` int64 [1] and
`past_key_values.{i}.key`, `.value`; its outputs are `logits` float32 [1, n, vocab] and `present.{i}.key`, `.value`.
Past and present are one buffer, which attention writes in place. All that a decode step reads or writes is bound
once: a step sets two integers and runs.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime_edge import kernels, ort
from runtime_edge.backends import windows
from runtime_edge.cache import KVCache
from runtime_edge.ending import Terminated
from runtime_edge.errors import ArtifactError, EngineError, MissingDependencyError
from runtime_edge.files import Background, listing
from runtime_edge.manifest import Decoder, Encoder

if TYPE_CHECKING:
    from runtime_edge.backends import Floats, Ints
    from runtime_edge.ending import Stop

CPU = ("CPUExecutionProvider",)
_GPU = ("CUDAExecutionProvider", "TensorrtExecutionProvider")  # in this order: TensorRT's builds for each new shape
# Tokens a run: attention's scores take chunk x length a head, of which a run computes also those of later tokens, and
# what 256 tokens make in a layer stays in a core's cache.
PREFILL_CHUNK = 256
PREFILL_LEAST = 16  # tokens that the graph for prefill is worth: below, both take about the same time
# Threads of a session that has done its run spin, some 50 ms, on cores that another one wants: a prompt behind
# a step of the other graph took 1.2 times as long. Between two steps less passes than this. 1.23 spins on.
SPIN_US = "1000"
# On the CPU the kernel that this makes takes 3 to 6 times as long as the sum and the norm that it replaces.
SLOWER = ("SkipLayerNormFusion",)
FOLDER = "session.model_external_initializers_file_folder_path"  # of a graph that is no file
BATCH_TOKENS = 32  # MiniLM-L6 in static int8: one text of 23 tokens takes 2.2 ms, 32 of 14 take 18
MOST_TWICE = 256 * 2**20  # bytes of an encoder's artifact, up to which its weights are held twice for many texts


class OrtDecoder:
    """A decoder graph in a session, and the graph that it may have for prefill in another; the cache serves both."""

    def __init__(
        self, graph: Path, decoder: Decoder, threads: int, providers: Sequence[str] = CPU, activations: str = "none",
        prefill: Path | None = None, derived: Path | None = None,
    ) -> None:  # fmt: skip
        self.decoder = decoder
        self.cache_inputs, self.cache_outputs = _cache_names(len(decoder.cache))
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
    ) -> _Session:
        # On a GPU the cache's type may be another.
        ours = kernels.chosen(self.decoder, activations) if tuple(providers) == CPU else ()
        session = _Session(graph, threads, providers, derived, ours)
        session.expect(
            inputs=("input_ids", "past_length", "logits_to_keep", *self.cache_inputs),
            outputs=("logits", *self.cache_outputs),
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
        for binding in self._bindings:
            _bind_input(binding, "past_length", self._past)
        _bind_input(self._step, "logits_to_keep", self._one)
        _bind_input(self._step, "input_ids", self._token)
        _bind_output(self._step, "logits", self._logits)

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
        _bind_input(binding, "logits_to_keep", keep)
        _bind_input(binding, "input_ids", self._chunk[:, :count])
        _bind_output(binding, "logits", logits)
        session.run(binding, self.stop)
        tokens.extend(token_ids)  # only now: an interrupted run leaves rows that count as garbage

    def _bind_cache(self) -> None:
        owner = self._owner
        for binding in self._bindings:
            for past, present, buffer in zip(owner.cache_inputs, owner.cache_outputs, self.cache.buffers, strict=True):
                _bind_input(binding, past, buffer)
                _bind_output(binding, present, buffer)


class OrtEncoder:
    """An encoder graph in a session of all threads; and in one of one thread once many batches run side by side.

    Threads that share a product wait for each other at its end, those that have batches of their own do not. The second
    session has weights of its own, in the order that its kernels want: there is none for an artifact of more than
    `MOST_TWICE` bytes, whose products are large enough to be shared, nor where its graph is no longer what was loaded.
    """

    def __init__(
        self, graph: Path, encoder: Encoder, threads: int, providers: Sequence[str] = CPU, activations: str = "none"
    ) -> None:
        self.encoder = encoder
        on_cpu = tuple(providers) == CPU
        self._ours = kernels.chosen(None, activations) if on_cpu else ()
        self.workers = threads if on_cpu and sum(listing(graph.parent).values()) <= MOST_TWICE else 1
        self.batch_tokens: int | None = BATCH_TOKENS if on_cpu else None
        self._graph = graph
        self._seen = _file_of(graph)
        self._lock = threading.Lock()
        self._single: _Session | None = None
        self.session = self._open(threads, providers)

    def new_stop(self) -> Stop:
        """See `EncoderSession.new_stop`."""
        return self.session.new_stop()

    def run(self, inputs: Mapping[str, Ints], *, alone: bool = True, stop: Stop | None = None) -> Floats:
        """See `EncoderSession.run`."""
        session = self.session if alone or self.workers == 1 else self._side()
        return session.run_once(self.encoder.output, inputs, stop)

    def _side(self) -> _Session:
        """The session that runs beside itself."""
        with self._lock:
            if self._single is None:
                found = self._open(1, CPU) if _file_of(self._graph) == self._seen else self.session
                self._single = found if _file_of(self._graph) == self._seen else self.session
            return self._single

    def _open(self, threads: int, providers: Sequence[str]) -> _Session:
        session = _Session(self._graph, threads, providers, ours=self._ours)
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
    found = next((name for name in _GPU if name in available), None)
    if found is None:
        raise MissingDependencyError(
            f"ONNX Runtime: expected one of {' and '.join(_GPU)}, found {', '.join(available)}",
            hint="pip uninstall onnxruntime && pip install 'lepton-edge[gpu]'",
        )
    return [found, *CPU]


def open_decoder(
    graph: Path, decoder: Decoder, threads: int, providers: Sequence[str] = CPU, *, activations: str = "none",
    prefill: Path | None = None, derived: Path | None = None,
) -> OrtDecoder:  # fmt: skip
    """See `Backend.open_decoder`."""
    return OrtDecoder(graph, decoder, threads, providers, activations, prefill, derived)


def open_encoder(
    graph: Path, encoder: Encoder, threads: int, providers: Sequence[str] = CPU, *, activations: str = "none"
) -> OrtEncoder:
    """See `Backend.open_encoder`."""
    return OrtEncoder(graph, encoder, threads, providers, activations)


class _Session:
    """An `onnxruntime.InferenceSession` whose errors are ours."""

    def __init__(
        self, graph: Path, threads: int, providers: Sequence[str], derived: Path | None = None,
        ours: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._ort = ort.load()
        self._errors = ort.errors()
        self._name = graph.name
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = self._ort.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_US)
        options.log_severity_level = 4  # what it would print is in the error that it raises
        # SmolLM2-135M, int4: after one prompt of 512 tokens the arena costs 25 MB (273 for 247), but it stays there,
        # where the C library's allocator fragments: after five prompts the peak is 285 MB for 338, after one of 3000
        # tokens 397 for 412 to 454. A memory pattern would be kept for every length of prompt: 20 MB more.
        options.enable_cpu_mem_arena = True
        options.enable_mem_pattern = False
        try:
            kernels.register(options, ours)
            if derived is not None:
                self._derive(options, derived, threads, kernels.PRODUCT in ours)
            left_out = SLOWER if tuple(providers) == CPU else ()
            model: str | bytes = str(graph)
            # Kernels of ours count windows as artifacts do, whatever version loads them.
            changed = None if kernels.attends(ours) else windows.rewritten(graph, self._ort.__version__)
            if changed is not None:
                model = changed
                options.add_session_config_entry(FOLDER, str(graph.parent))
            self._session = self._ort.InferenceSession(
                model, options, providers=list(providers), disabled_optimizers=left_out
            )
        except self._errors as error:
            raise self._fault(f"a graph that ONNX Runtime {self._ort.__version__} opens", error) from error
        # A provider whose libraries are missing is left out without an error. (A float32 cache stays in the host's
        # memory on a GPU too: GroupQueryAttention of that type runs on the CPU.)
        if providers[0] not in self._session.get_providers():
            raise EngineError(
                f"{graph.name}: expected ONNX Runtime's {providers[0]}, found that it does not load",
                hint="are CUDA and cuDNN of the versions that this onnxruntime-gpu wants installed?",
            )

    def _derive(self, options: Any, derived: Path, threads: int, packed: bool) -> None:
        """Gives a session the weights that its graph has not, in the order that our product wants where it runs."""
        from runtime_edge.derived import make

        made: dict[str, Any] = {}

        def use(name: str, weight: NDArray[np.int8]) -> None:
            made[name] = self._ort.OrtValue.ortvalue_from_numpy(kernels.packed(weight) if packed else weight)

        make(derived, threads, use)
        options.add_external_initializers(list(made), list(made.values()))
        # Most kernels copy a weight, in an order of their own; one that does not, as ours, reads it here as it runs.
        self._made = made

    def expect(self, *, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Raises `ArtifactError` unless the graph's inputs and outputs are these."""
        for what, expected, nodes in (
            ("inputs", inputs, self._session.get_inputs()),
            ("outputs", outputs, self._session.get_outputs()),
        ):
            found = {node.name for node in nodes}
            if found != set(expected):
                missing, extra = sorted(set(expected) - found), sorted(found - set(expected))
                raise ArtifactError(
                    f"{self._name}: expected the {what} that its task has, found {len(missing)} missing {missing[:3]} "
                    f"and {len(extra)} unknown {extra[:3]}"
                )

    def binding(self) -> Any:
        return self._session.io_binding()

    def new_stop(self) -> Stop:
        options: Stop = self._ort.RunOptions()
        return options

    def run(self, binding: Any, stop: Stop | None = None) -> None:
        try:
            self._session.run_with_iobinding(binding, stop)
        except self._errors as error:
            if stop is not None and stop.terminate:
                raise Terminated from error
            raise self._fault("a graph that runs", error) from error

    def run_once(self, output: str, inputs: Mapping[str, Ints], stop: Stop | None = None) -> Floats:
        try:
            result: Floats = self._session.run([output], dict(inputs), stop)[0]
        except self._errors as error:
            if stop is not None and stop.terminate:
                raise Terminated from error
            raise self._fault("a graph that runs", error) from error
        return result

    def _fault(self, expected: str, error: Exception) -> ArtifactError:
        hint = "is it of this machine's kind? `lepton-edge inspect` says what it was built for"
        return ArtifactError(
            f"{self._name}: expected {expected}, found: {str(error)[:500]}",
            hint=ort.lacks(self._ort.__version__) or hint,
        )


def _file_of(path: Path) -> tuple[int, ...]:
    """What tells a file from another one that takes its place; of no file nothing."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _cache_names(layers: int) -> tuple[list[str], list[str]]:
    parts = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    return [f"past_key_values.{part}" for part in parts], [f"present.{part}" for part in parts]


def _bind_input(binding: Any, name: str, array: NDArray[Any]) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _bind_output(binding: Any, name: str, array: NDArray[Any]) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
