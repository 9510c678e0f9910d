"""Opens an artifact: verify, choose a variant, open its backend. Light to import; the rest comes when called."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from runtime_edge.backends import BACKENDS
from runtime_edge.backends import backend as backend_module
from runtime_edge.errors import ArtifactError, MissingDependencyError, RequestError
from runtime_edge.files import Background, Hashes, listing
from runtime_edge.stamps import Watched
from runtime_edge.verify import check_contents, check_listing, check_opened, start_hashing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime_edge.backends import Session
    from runtime_edge.manifest import Manifest, Variant
    from runtime_edge.model import Model
    from runtime_edge.text import TextCodec

_MAX_THREADS = 1024
_MAX_CONVERSATIONS = 1024
_HEAD_START = 0.05


def load(
    path: str | os.PathLike[str], *, threads: int | None = None, backend: str | None = None, conversations: int = 4
) -> Model:
    """Opens an artifact after verifying every file of it.

    Args:
        path: The artifact's directory.
        threads: Threads to compute with. Default: `LEPTON_THREADS`, or the physical cores that may be used.
        backend: Run on this or fail: `tensorrt-rtx`, `tensorrt`, `onnxruntime-cuda` or `onnxruntime`. Default: the
            first of them that the artifact has a variant for and that runs here. `model.why` and a `BackendWarning`
            tell why one was passed over. An engine that this machine lacks is built, which takes minutes once.
        conversations: Caches that the model keeps at most. A prompt goes on in the cache that shares the longest start
            with it, so conversations that take turns do not read their history again. The least recently used cache is
            dropped beyond this number, and where all take more than an eighth of the memory. A TensorRT engine and
            each `model.context()` have one cache.

    Raises:
        FormatVersionError: The artifact was written by a later toolchain.
        ArtifactError: It is damaged, or breaks a rule of the format; nothing of it was opened.
        MissingDependencyError: Its backend's package is not installed, or there is no GPU with a driver for it.
        EngineError: TensorRT cannot build or run its engine here.
        RequestError: `threads`, `backend` or `conversations` cannot be served.

    Example:
        import runtime_edge

        with runtime_edge.load("smollm2.lepton") as model:
            print(model.backend, model.manifest.name)
    """
    root = Path(path)
    sizes = listing(root)
    # Neither hashing nor preparing a session's weights holds the interpreter: the manifest's reader and the backend are
    # imported during the first, the tokenizer and the tasks during the second. They stand here for that, and so that
    # importing runtime_edge stays cheap.
    with start_hashing(root, sizes) as hashes:
        manifest = check_listing(root, sizes)
        has_choice = _has_choice(manifest, backend)
        variant = choose_variant(manifest, backend)
        if not has_choice:
            module = backend_module(variant.backend)
            with contextlib.suppress(MissingDependencyError):  # raised below, once the artifact is known to be whole
                module.preload()
        count, caches = _threads(threads), _conversations(conversations)
        check_contents(root, manifest, hashes)
    parsing = Background(lambda: _parse(root, manifest))
    if has_choice:
        from runtime_edge.backends.choice import open_best

        opened = open_best(root, manifest, backend, count, sys._getframe(1))
        codec = parsing.result()
        check_opened(root, hashes)
        watched = _watched(root, opened.variant, hashes)
        return _model(
            manifest, opened.variant, count, codec, opened.sessions, opened.backend, opened.why, caches, watched
        )
    sessions = {part.name: module.open_part(root, manifest, variant, part, count) for part in manifest.parts}
    codec = parsing.result()
    check_opened(root, hashes)  # what was opened by its name is what was hashed
    watched = _watched(root, variant, hashes)
    return _model(manifest, variant, count, codec, sessions, variant.backend, [], caches, watched)


def _watched(root: Path, variant: Variant, hashes: Hashes) -> Watched:
    """Watches the weights of a variant, which its session may have mapped."""
    return Watched(root, {path: hashes.stamps[path] for path in variant.blobs})


def _has_choice(manifest: Manifest, backend: str | None) -> bool:
    """Whether more than the CPU comes into question: what that takes is imported for such artifacts only."""
    if backend is None:
        return any(variant.engine is not None for variant in manifest.variants)
    return backend != "onnxruntime"


def _threads(threads: int | None) -> int:
    from runtime_edge import request
    from runtime_edge.probe import default_threads

    return default_threads() if threads is None else request.integer("threads", threads, 1, _MAX_THREADS)


def _conversations(count: int) -> int:
    from runtime_edge import request

    return request.integer("conversations", count, 1, _MAX_CONVERSATIONS)


def _parse(root: Path, manifest: Manifest) -> TextCodec:
    time.sleep(_HEAD_START)  # imports and parsing hold the interpreter: the session's start comes before them
    from runtime_edge import model, text  # noqa: F401  (the model's module is wanted next)

    return text.TextCodec(root, manifest)


def _model(
    manifest: Manifest,
    variant: Variant,
    threads: int,
    codec: TextCodec,
    sessions: Mapping[str, Session],
    backend: str,
    why: list[str],
    conversations: int,
    watched: Watched,
) -> Model:
    from runtime_edge.model import Model
    from runtime_edge.tasks import room

    task = room(manifest.task).start(manifest, sessions, codec, conversations)
    return Model(manifest, variant, threads, codec, task, backend, why, watched)


def choose_variant(manifest: Manifest, backend: str | None = None) -> Variant:
    """Returns the first variant that `backend` can run, or that any backend can.

    Raises:
        RequestError: `backend` is not one, or no variant is for it.
        ArtifactError: No variant is for a backend of this runtime.
    """
    if backend is not None and backend not in BACKENDS:
        raise RequestError(f"backend: expected one of {', '.join(BACKENDS)}, found {backend!r}")
    # A variant is for engines or for ONNX Runtime; that it runs on a GPU is chosen when it is opened.
    kinds = tuple(name for name in BACKENDS if name != "onnxruntime-cuda")
    wanted = kinds if backend is None else ("onnxruntime",) if backend == "onnxruntime-cuda" else (backend,)
    for variant in manifest.variants:
        if variant.backend in wanted and all(variant.graph(part.name) is not None for part in manifest.parts):
            return variant
    variants = ", ".join(f"{variant.name} ({variant.backend})" for variant in manifest.variants)
    message = f"variants: expected one for {', '.join(wanted)}, found {variants}"
    hint = "build the artifact for this machine with `leptonc build --target`"
    raise ArtifactError(message, hint=hint) if backend is None else RequestError(message, hint=hint)
