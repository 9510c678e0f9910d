"""Methods that choose the codes of weights by what a text makes of their inputs, one file a method.

`leptonc.passes.quantize.methods` has the table of their names.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from leptonc.calibrate.moments import Moments
from leptonc.passes.quantize.blocks import Codes, Format
from leptonc.passes.quantize.methods import METHODS


@dataclass(frozen=True)
class Layers:
    """Linear layers that read one value.

    Attributes:
        weights: float32 [out, in] of each.
        forms: The format that each weight's codes get.
        moments: Statistics of the value.
        looked_up: Whether one of the weights is an embedding's table too, whose rows are read one by one.
        outside: Whether one of them is outside of the model's layers, as a head is.
    """

    weights: Sequence[NDArray[np.float32]]
    forms: Sequence[Format]
    moments: Moments
    looked_up: bool = False
    outside: bool = False


@dataclass(frozen=True)
class Chosen:
    """The codes of one layer.

    Attributes:
        codes: They, with their scales and zero points.
        error: Of the layer's outputs on the text, as a part of them.
        damping: What the hessian was damped with, where that was chosen too. Default: it was not.
    """

    codes: Codes
    error: float
    damping: float | None = None


class CodeMethod(Protocol):
    """What a method's module offers."""

    # Whether moments also know how far inputs are from the exact model's.
    WITH_EXACT: bool
    # Whether moments of some texts are kept apart, where weights have fewer than 8 bits.
    HOLDS_OUT: bool

    def choose(self, layers: Layers) -> list[Chosen]:
        """Returns the codes of each layer."""


def method_of(name: str) -> CodeMethod:
    """Imports a method that reads a text."""
    return cast(CodeMethod, importlib.import_module(f"{__name__}.{METHODS[name].module}"))
