"""Backends: what can run an artifact, each lowering the graph to its fastest form.

`AVAILABLE` names those that this version can build for, with the module that does it.
"""

from __future__ import annotations

import targets
from leptonc.errors import MissingExtraError

AVAILABLE = {"onnxruntime": "leptonc.backends.onnxruntime"}


def require_backend(target: targets.Target) -> str:
    """Returns the module of the target's backend.

    Raises:
        MissingExtraError: This version of Lepton cannot build for that backend.
    """
    if target.backend not in AVAILABLE:
        ready = [name for name in targets.names() if targets.load(name).backend in AVAILABLE]
        raise MissingExtraError(
            f"building for {target.spec} needs the backend {target.backend}; this version of Lepton has "
            f"{', '.join(AVAILABLE)}",
            hint=f"targets that can be built for now: {', '.join(ready)}",
        )
    return AVAILABLE[target.backend]
