"""What the tasks need of a backend, and which backends there are.

A backend is a module with `preload` and `open_part`, imported when an artifact needs it. Artifacts
that have engines of TensorRT go through `choice`, which tries what `BACKENDS` names in that order.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime_edge.cache import TokenCache
    from runtime_edge.ending import Stop
    from runtime_edge.manifest import Manifest, Variant
    from runtime_edge.part_record import Part

    Session: TypeAlias = "DecoderSession | EncoderSession"
    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]

BACKENDS = ("tensorrt-rtx", "tensorrt", "onnxruntime-cuda", "onnxruntime")  # what `load(backend=…)` takes
MODULES = {"onnxruntime": "runtime_edge.backends.onnxruntime"}  # what runs anywhere


class DecoderState(Protocol):
    """One sequence being decoded: a cache and the buffers bound with it. Used by one thread at a time.

    `chunk` is how many tokens one call takes at most. `most_drafts` is how many drafted tokens `all_logits` can check
    behind one that was made, in the graph of `step` and for less than their steps would cost; 0 where it cannot. A run
    with a `stop` that is set raises `Terminated`, and what it wrote is not in the cache; a backend may look at it
    between runs only, that is never.
    """

    chunk: int
    most_drafts: int
    stop: Stop | None

    @property
    def cache(self) -> TokenCache:
        """The tokens that the sequence holds."""

    def reserve(self, length: int) -> None:
        """Makes room for `length` tokens in all (raises `PromptTooLongError`); the calls below do it as needed."""

    def prefill(self, token_ids: Sequence[int]) -> Floats:
        """Runs tokens after those in the cache; returns logits [vocab] after the last, valid until the next call."""

    def fill(self, token_ids: Sequence[int]) -> None:
        """`prefill` for the cache alone: what only logits need is left out where the graph can."""

    def step(self, token_id: int) -> Floats:
        """`prefill` of one token, without allocating anything."""

    def all_logits(self, token_ids: Sequence[int], out: Floats) -> None:
        """Runs tokens after those in the cache; writes their logits to `out`, [len(token_ids), vocab]."""


class DecoderSession(Protocol):
    """A decoder graph that is ready to run; its states share the weights and may run in different threads."""

    def new_state(self) -> DecoderState:
        """Returns an empty sequence."""

    def new_stop(self) -> Stop:
        """Returns what ends the runs of states that have it as their `stop`."""

    def close(self) -> None:
        """Frees what lies outside of the host's memory; a state in use is waited for, and then refuses to go on."""


class EncoderSession(Protocol):
    """A graph without states that is ready to run, from any thread.

    Attributes:
        workers: How many batches run side by side in less time than one after another.
        batch_tokens: The tokens that take as long as what a batch costs beside its tokens; None where nobody knows.
    """

    workers: int
    batch_tokens: int | None

    def run(self, inputs: Mapping[str, NDArray[Any]], *, alone: bool = True, stop: Stop | None = None) -> Floats:
        """Runs one batch; `inputs` by name, as the part has them; returns the part's first output, float32.

        `alone` is false where `workers` threads run batches at the same time. `stop` is as of a decoder's state.
        """

    def new_stop(self) -> Stop:
        """Returns what ends the runs that it is given to."""

    def close(self) -> None:
        """Frees what lies outside of the host's memory, once a run in another thread has ended."""


class Backend(Protocol):
    """What a backend's module offers."""

    def preload(self) -> None:
        """Imports what it runs on (raises `MissingDependencyError`): `load` has it done while it verifies."""

    def open_part(self, root: Path, manifest: Manifest, variant: Variant, part: Part, threads: int) -> Session:
        """Opens the graphs that a variant has of a part.

        A part that keeps keys and values is a `DecoderSession`, one that keeps nothing an `EncoderSession`.

        Args:
            root: The artifact's directory; every file was compared with the manifest.
            manifest: Its manifest.
            variant: One of its variants, which has a graph of the part.
            part: One of its parts.
            threads: Threads to compute with.

        Raises:
            MissingDependencyError: What it runs on is not installed.
            ArtifactError: A graph is not what the manifest says.
        """


def backend(name: str) -> Backend:
    """Imports the module of a backend named in `MODULES`."""
    return cast(Backend, importlib.import_module(MODULES[name]))
