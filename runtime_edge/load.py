"""Opens an artifact: verify, choose a variant, open its backend. Light to import; the rest comes when called."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

from runtime_edge.backends import MODULES
from runtime_edge.backends import backend as backend_module
from runtime_edge.errors import ArtifactError, MissingDependencyError, RequestError
from runtime_edge.files import Background, listing
from runtime_edge.verify import check_contents, check_listing, start_hashing

if TYPE_CHECKING:
    from runtime_edge.backends import DecoderSession, EncoderSession
    from runtime_edge.manifest import Manifest, Variant
    from runtime_edge.model import Model
    from runtime_edge.text import TextCodec

_MAX_THREADS = 1024
_HEAD_START = 0.05


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
    root = Path(path)
    found = listing(root)
    # Neither hashing nor preparing a session's weights holds the interpreter: the manifest's reader and the backend are
    # imported during the first, the tokenizer and the tasks during the second. They stand here for that, and so that
    # importing runtime_edge stays cheap.
    with start_hashing(root, found) as hashes:
        manifest = check_listing(root, found)
        variant = choose_variant(manifest, backend)
        module = backend_module(variant.backend)
        with contextlib.suppress(MissingDependencyError):  # raised below, once the artifact is known to be whole
            module.preload()
        count = _threads(threads)
        check_contents(root, manifest, hashes)
    parsing = Background(lambda: _parse(root, manifest))
    graph = root / variant.graph
    session: DecoderSession | EncoderSession
    if manifest.decoder is not None:
        session = module.open_decoder(graph, manifest.decoder, count)
    else:
        assert manifest.encoder is not None  # verified: a manifest has the one that its task needs
        session = module.open_encoder(graph, manifest.encoder, count)
    return _model(manifest, variant, count, parsing.result(), session)


def _threads(threads: int | None) -> int:
    from runtime_edge import request
    from runtime_edge.probe import default_threads

    return default_threads() if threads is None else request.integer("threads", threads, 1, _MAX_THREADS)


def _parse(root: Path, manifest: Manifest) -> TextCodec:
    time.sleep(_HEAD_START)  # imports and parsing hold the interpreter: the session's start comes before them
    from runtime_edge import model, text  # noqa: F401  (the model's module is wanted next)

    return text.TextCodec(root, manifest)


def _model(
    manifest: Manifest, variant: Variant, threads: int, codec: TextCodec, session: DecoderSession | EncoderSession
) -> Model:
    from runtime_edge.model import Model
    from runtime_edge.tasks.embed import Encoding
    from runtime_edge.tasks.generate import Decoding

    if manifest.decoder is not None:
        return Model(
            manifest, variant, threads, codec, Decoding(cast("DecoderSession", session), manifest.decoder, codec)
        )
    assert manifest.encoder is not None
    return Model(manifest, variant, threads, codec, Encoding(cast("EncoderSession", session), manifest.encoder, codec))


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
