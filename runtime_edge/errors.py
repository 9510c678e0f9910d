"""Every error that the runtime raises on purpose, as one small tree.

LeptonError                 carries `hint` and `exit_code`
├── ArtifactError           the artifact is missing, damaged, or not to be trusted         (1)
│   └── FormatVersionError  it was written by a later toolchain                            (1)
├── RequestError            what was asked of a model cannot be done                       (1)
│   ├── PromptTooLongError  the prompt exceeds the model's length limit                    (1)
│   └── ChatTemplateError   messages were given and the template is missing or refuses     (1)
├── RunEndedError           a call was ended by its deadline or by `cancel`                (1)
├── EngineError             an engine cannot be built from what was given                  (1)
├── ClosedError             the model was used after `close()`                             (1)
└── MissingDependencyError  a backend's package is not installed                           (4)
"""

from __future__ import annotations


class LeptonError(Exception):
    """Base of every error raised on purpose.

    Args:
        message: What was expected and what was found.
        hint: What the user can do about it, or None.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = _printable(message)
        self.hint = None if hint is None else _printable(hint)
        super().__init__(self.message)


def _printable(text: str) -> str:
    """Text that any terminal and file takes: names of files may have letters that UTF-8 has not."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class ArtifactError(LeptonError):
    """The artifact is missing, damaged, or breaks a rule of the format."""


class FormatVersionError(ArtifactError):
    """The artifact's format version is later than this runtime reads."""


class RequestError(LeptonError):
    """The request cannot be served by this model."""


class PromptTooLongError(RequestError):
    """The prompt exceeds the model's maximum sequence length."""


class ChatTemplateError(RequestError):
    """Messages need a chat template; it is missing, or it raised."""


class RunEndedError(LeptonError):
    """A call was ended before it was done: by its deadline, or by `cancel`. What it began with can be used again."""


class EngineError(LeptonError):
    """TensorRT cannot build an engine from this graph and engine spec, or not on this machine."""


class BackendWarning(UserWarning):
    """A model runs, and on something slower than the artifact was built for; the text says why."""


class RequestWarning(UserWarning):
    """An option was given that has no effect together with the others; the text says why."""


class ClosedError(LeptonError):
    """The model was used after `close()`."""


class MissingDependencyError(LeptonError):
    """A package that this needs is not installed; the hint names the extra."""

    exit_code = 4
