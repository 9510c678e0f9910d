"""Opens an artifact: verify, choose a variant, open its backend. Light to import; the rest comes when called."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from runtime_edge.backends import MODULES
from runtime_edge.backends import backend as backend_module
from runtime_edge.errors import ArtifactError, RequestError
from runtime_edge.manifest import Manifest, Variant
from runtime_edge.probe import default_threads
from runtime_edge.verify import verify

if TYPE_CHECKING:
    from runtime_edge.model import Model

_MAX_THREADS = 1024


def load(path: str | os.PathLike[str], *, threads: int | None = None, backend: str | None = None) -> Model:
    """Opens an artifact after verifying every file of it.

    Args:
        path: The artifact's directory.
        threads: Threads to compute with; None takes `LEPTON_THREADS`, or the physical cores that may be used.
        backend: Take the variant of this backend; None takes the first variant that can run here.

    Raises:
        FormatVersionError: The artifact was written by a later toolchain.
        ArtifactError: It is damaged, or breaks a rule of the format; nothing of it was opened.
        MissingDependencyError: Its backend's package is not installed.
        RequestError: `threads` or `backend` cannot be served.
    """
    # Imported here, for the numbers and the tokenizer that they need: importing runtime_edge stays cheap.
    from runtime_edge import request
    from runtime_edge.model import Model
    from runtime_edge.tasks.embed import Encoding
    from runtime_edge.tasks.generate import Decoding
    from runtime_edge.text import TextCodec

    count = default_threads() if threads is None else request.integer("threads", threads, 1, _MAX_THREADS)
    root = Path(path)
    manifest = verify(root)
    variant = choose_variant(manifest, backend)
    module = backend_module(variant.backend)
    graph = root / variant.graph
    task: Decoding | Encoding
    # Parsing a tokenizer and preparing a session's weights take about as long, and neither holds the interpreter.
    with ThreadPoolExecutor(1) as pool:
        parsing = pool.submit(TextCodec, root, manifest)
        if manifest.decoder is not None:
            session = module.open_decoder(graph, manifest.decoder, count)
            codec = parsing.result()
            task = Decoding(session, manifest.decoder, codec)
        else:
            assert manifest.encoder is not None  # verified: a manifest has the one that its task needs
            encoder = module.open_encoder(graph, manifest.encoder, count)
            codec = parsing.result()
            task = Encoding(encoder, manifest.encoder, codec)
    return Model(manifest, variant, count, codec, task)


def choose_variant(manifest: Manifest, backend: str | None = None) -> Variant:
    """Returns the first variant of `backend`, or of any backend that this runtime has.

    Raises:
        RequestError: `backend` is not one, or no variant has it.
        ArtifactError: No variant is for a backend of this runtime.
    """
    found = ", ".join(f"{variant.name} ({variant.backend})" for variant in manifest.variants)
    if backend is not None and backend not in MODULES:
        raise RequestError(f"backend: expected one of {', '.join(MODULES)}, found {backend!r}")
    wanted = MODULES.keys() if backend is None else {backend}
    for variant in manifest.variants:
        if variant.backend in wanted:
            return variant
    message = f"variants: expected one for {', '.join(sorted(wanted))}, found {found}"
    hint = "build the artifact for this machine with `leptonc build --target`"
    raise ArtifactError(message, hint=hint) if backend is None else RequestError(message, hint=hint)
