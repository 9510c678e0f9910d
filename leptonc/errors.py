"""Errors of the compiler, leaves of the runtime's tree (`runtime_edge.errors`), each with its exit code.

LeptonError
├── InputError         the model, file or option that was given is wrong        (1)
│   └── CaptureError   the architecture cannot be captured                      (1)
├── WrongCaptureError  the captured graph does not compute what the model does      (70)
├── BoundError         a quality or size bound was not met; nothing is written  (3)
└── MissingExtraError  a verb needs packages of an extra that is not installed  (4)
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from types import ModuleType

from runtime_edge.errors import LeptonError as LeptonError
from runtime_edge.errors import RequestWarning
from runtime_edge.installation import install_command

# What helps where activations are not finite.
OVERFLOWS = "the checkpoint's weights hold values that are not finite, or the model overflows float32"


class InputError(LeptonError):
    """What the user gave is wrong."""


class ResumeWarning(RequestWarning):
    """What an interrupted build left of a step is damaged: the step is done again."""


class CaptureError(InputError):
    """A model's graph could not be captured whole; the message names the module and what was expected of it."""


class WrongCaptureError(LeptonError):
    """The captured graph does not compute what the model does: a fault of this program, and nothing is written."""

    exit_code = 70


class BoundError(LeptonError):
    """A bound that the user set on quality or size was not met."""

    exit_code = 3


class MissingExtraError(LeptonError):
    """The environment lacks packages; the hint names the extra that has them."""

    exit_code = 4


def require(module: str, *, extra: str, needed_by: str) -> ModuleType:
    """Imports `module`, or says which extra of this distribution has it.

    Raises:
        MissingExtraError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{needed_by} needs the package `{error.name}`, which is not installed",
            hint=install_command(extra),
        ) from error


def near(word: str, known: Sequence[str]) -> str:
    """What a hint says of a word that is not among those known."""
    close = difflib.get_close_matches(word, known, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"known are: {', '.join(known)}"
