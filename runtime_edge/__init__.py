"""The runtime of Lepton: loads an artifact that `leptonc build` wrote, and runs it.

    import runtime_edge

    with runtime_edge.load("SmolLM2-135M-Instruct.lepton") as model:
        print(model.generate("Once upon a time", max_new_tokens=40).text)

Importing it costs little: numpy, the tokenizer and the backend are imported by the first `load`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from runtime_edge.errors import (
    ArtifactError,
    BackendWarning,
    ChatTemplateError,
    ClosedError,
    EngineError,
    FormatVersionError,
    LeptonError,
    MissingDependencyError,
    PromptTooLongError,
    RequestError,
    RequestWarning,
    RunEndedError,
)
from runtime_edge.load import load
from runtime_edge.verify import verify

__version__ = "0.1.0"

if TYPE_CHECKING:
    from runtime_edge.manifest import Manifest
    from runtime_edge.model import Context, Model
    from runtime_edge.tasks.embed import Classification
    from runtime_edge.tasks.results import Chunk, Generation, Stats

__all__ = [
    "ArtifactError",
    "BackendWarning",
    "ChatTemplateError",
    "Chunk",
    "Classification",
    "ClosedError",
    "Context",
    "EngineError",
    "FormatVersionError",
    "Generation",
    "LeptonError",
    "Manifest",
    "MissingDependencyError",
    "Model",
    "PromptTooLongError",
    "RequestError",
    "RequestWarning",
    "RunEndedError",
    "Stats",
    "load",
    "verify",
]

_LATER = {
    "Chunk": "runtime_edge.tasks.results",
    "Classification": "runtime_edge.tasks.embed",
    "Context": "runtime_edge.model",
    "Manifest": "runtime_edge.manifest",
    "Generation": "runtime_edge.tasks.results",
    "Model": "runtime_edge.model",
    "Stats": "runtime_edge.tasks.results",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
